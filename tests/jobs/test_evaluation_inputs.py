"""Joining the outputs of several methods, and reading the folders of runs."""

import json
from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.evaluate.evaluation_inputs import (
    read_outputs,
    read_stages,
    training_seconds,
)
from rlhf_jax.settings import load_page
from rlhf_jax.training.run.missing_inputs import named_paths

PAGE = Path(__file__).parents[2] / "configs/evaluate.py"


def row(instruction, output, extra=""):
    return {"instruction": instruction, "input": extra, "output": output, "family": "ignored"}


def settings(folder, baseline, **methods):
    """The page, with the given rows in files."""
    for name, rows in {"base": baseline, **methods}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    config = load_page(f"{PAGE}:outputs")
    outputs = ",".join(f"{name}={folder}/{name}.json" for name in methods)
    config.update({"outputs": outputs, "baseline": f"{folder}/base.json"})
    return config


def test_outputs_are_joined_on_instruction_and_input_and_every_drop_is_counted(tmp_path):
    base = [row(t, f"base {t}") for t in "abcde"] + [row("a", "again"), row("a", "with", "x")]
    ours = [row("e", ""), row("a", "first"), row("a", "second"), row("b", None), row("c", "\ud800")]
    ours += [row("z", "z"), {"prompt": "d", "output": "as a prompt"}]
    config = settings(tmp_path, base, ours=ours)
    found = read_outputs(config)
    assert found.prompts == [(t, "") for t in "acdea"] and found.rivals == ["ours"]
    assert found.texts["ours"] == ["first", "\ufffd", "as a prompt", "", "second"]
    assert found.texts["baseline"][-1] == "again"
    assert found.records("ours")[3] == {"instruction": "e", "input": "", "output": "", "generator": "ours"}
    left_out = "baseline 2 not in ours, ours 1 without output, ours 1 not in baseline"
    assert found.line() == f"instructions: 5 compared; left out: {left_out}"
    config.max_instructions = 2
    assert read_outputs(config).line().endswith("all 3 beyond max_instructions")


def test_methods_are_compared_on_what_all_of_them_answered(tmp_path):
    base = [row(t, t) for t in "abc"]
    config = settings(tmp_path, base, one=base[:2], two=base[1:])
    found = read_outputs(config)
    assert found.prompts == [("b", "")] and [*found.texts] == ["baseline", "one", "two"]
    assert found.left_out["baseline"] == {"not in two": 1, "not in one": 1}
    config = settings(tmp_path, base, one=base[:1], two=base[1:])
    with pytest.raises(UserError, match="no instruction is answered by all of baseline, one, two"):
        read_outputs(config)


def test_the_baseline_may_be_one_of_the_methods(tmp_path):
    base = [row(t, t) for t in "abc"]
    config = settings(tmp_path, base, sft=base, ppo=[row(t, "better") for t in "abc"])
    config.baseline_name = "sft"
    found = read_outputs(config)
    assert found.rivals == ["ppo"] and [*found.texts] == ["sft", "ppo"]
    config.baseline_name = "ppo"
    with pytest.raises(UserError, match="'ppo' is also baseline_name"):
        read_outputs(config)
    config.update({"baseline_name": "sft", "outputs": f"sft={tmp_path}/sft.json"})
    with pytest.raises(UserError, match="only the baseline 'sft'"):
        read_outputs(config)


def test_training_seconds_count_every_step_and_what_is_timed_beside_them():
    rows = [
        {"step": 10, "timing_s/step": 0.5, "timing_s/compile": 4.0},
        {"step": 10, "timing_s/eval": 1.0},
        {"step": 20, "timing_s/step": 0.25, "timing_s/save": 2.0, "timing_s/rollout": 99.0},
    ]
    assert training_seconds(rows) == pytest.approx(5 + 4 + 1 + 2.5 + 2)
    assert training_seconds([{"step": 1, "loss": 2.0}]) is None


def test_a_run_without_metrics_is_a_note(tmp_path):
    assert named_paths("", "runs") == {}
    note = f"runs: no {tmp_path}/metrics.jsonl; x has no curves in the report"
    assert read_stages(f"x={tmp_path}") == ([], [note])
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": null}\n[1]\n{"step')
    (stage,), (note,) = read_stages(f"x={tmp_path}")
    assert stage.summary == "3 steps" and stage.seconds is None and "2 broken lines" in note
