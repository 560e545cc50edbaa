"""Real rows: what real.py writes for all contestants, and our side of it, on a model of one layer."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "benchmarks" / "contestants"))

import folders
import real
import setting
from contestants import ours
from session import Job
from test_benchmarks import MICRO, Turns

from rlhf_jax.data.batches import Sequences, flattened

ROWS, BATCH = 6, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder as real.py writes it, but for the rows, and the tokenizer of its models."""
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("real")
    folders.write(source, MICRO)
    return root, real.write_models(root, str(source / "policy"), "brief", 2)[1]


def first_step(root, task, rows, lora=False):
    """What our side notes of the first step on these rows, BATCH in a step."""
    kind = "demonstrations" if task == "sft" else "pairs"
    (root / f"{kind}.json").write_text(json.dumps(rows))
    session = Turns(1)
    with pytest.raises(Turns.OverError):
        ours.run(Job(task, MICRO, True, root, 2, BATCH, lora), session)
    return session.notes


@pytest.mark.parametrize(("task", "lora"), [("sft", False), ("dpo", True), ("reward_model", True)])
def test_the_first_step_is_of_the_first_rows(models, task, lora):
    made = setting.demonstrations if task == "sft" else setting.pairs
    rows = made(dataclasses.replace(MICRO, rows=2 * ROWS), ragged=True)
    together, alone = (first_step(models[0], task, x, lora) for x in (rows[:ROWS], rows[:BATCH]))
    assert together == pytest.approx(alone, rel=1e-5)
    assert together["grad_norm"] > 0


def test_a_fresh_adapter_changes_no_loss(models):
    rows = setting.demonstrations(MICRO, ragged=True)
    full, adapter = (first_step(models[0], "sft", rows, lora) for lora in (False, True))
    assert adapter["loss"] == pytest.approx(full["loss"], rel=1e-6)
    assert adapter["grad_norm"] != pytest.approx(full["grad_norm"], rel=0.1)


def test_rows_that_do_not_fit_are_left_out(models, tmp_path, capsys):
    written = [
        {"instruction": f"t{3 + i}", "input": "", "output": " ".join(["t9"] * length)}
        for i, length in enumerate((2, 3, 40, 4))
    ]
    (tmp_path / "rows.json").write_text(json.dumps(written))
    about = {"instructions": str(tmp_path / "rows.json"), "template": "brief", "max_length": 16, "rows": 3}
    found = real.demonstrations(argparse.Namespace(**about), models[1])
    # The order is drawn; a response ends with the end token.
    assert sorted(len(row["response"]) for row in found) == [3, 4, 5]
    assert "3 demonstrations, tokens in the mean" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="3 demonstrations of --max-length"):
        real.demonstrations(argparse.Namespace(**about | {"rows": 4}), models[1])


def test_a_pair_has_one_prompt():
    def side(*rows):
        return Sequences(*flattened([np.array(x, np.int32) for x in rows]), np.array([2, 2], np.int32))

    found = list(real._rows(chosen=side([3, 4, 5], [6, 7, 8]), rejected=side([3, 4, 9, 9], [6, 6, 8])))
    assert found == [{"prompt": [3, 4], "chosen": [5], "rejected": [9, 9]}]


def test_work_of_given_rows(tmp_path):
    rows = [{"prompt": [3] * 4, "chosen": [3] * 2, "rejected": [3]}] * 2
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    full, lora = (Job("dpo", MICRO, True, tmp_path, 2, 1, lora) for lora in (False, True))
    assert (full.steps, full.work["tokens"]) == (2, 2 * (4 + 2 + 4 + 1))
    forward = 2 * (22 * MICRO.layer_parameters + 6 * MICRO.width * MICRO.vocab)
    assert (full.work["flops"], lora.work["flops"]) == (4 * forward, 3 * forward)
    full.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == full
