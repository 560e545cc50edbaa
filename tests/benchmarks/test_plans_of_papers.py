"""The command that plans the papers' recipes: what it keeps, what it does again, its tables. Nothing is compiled."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import plans

from rlhf_jax.planning.estimates import ProgramCost, Times
from rlhf_jax.planning.slice_costs import SliceCost
from rlhf_jax.planning.slices import slices_of
from rlhf_jax.training.loop.program_costs import GIB, MemoryNeeds


def program(name, gib, times, *, refused=False, tokens=0, model_flops=0.0):
    needs = MemoryNeeds(0, 0, 0, int(gib * GIB))
    return ProgramCost(name, needs, 0, refused, 2e12, model_flops, (), 0.0, {}, Times(*times), tokens, 7.0)


def cost(*programs, slice_="h100:8", updates=1):
    (found,) = slices_of(slice_)
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    return SliceCost(found, mesh, 8, programs, "7000.0M parameters", "bfloat16", (), {}, updates=updates)


OFFLINE = cost(
    program("train step", 17.5, (0.5, 0.1, 0.2), tokens=1000, model_flops=0.25 * 9.89e14),
    program("evaluation", 11.0, (0.1, 0.1, 0.1)),
)
ONLINE = cost(
    program("train step", 46.0, (1.5, 0.5, 0.5), tokens=900, model_flops=9.89e14),
    program("sampling", 51.0, (0.5, 0.1, 4.0), tokens=6000),
    program("evaluation", 1.0, (9, 9, 9)),
    updates=4,
)


def table_of(said):
    head, rule, *rows = said.strip().splitlines()
    assert set(rule) == {"|", "-"}
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *rows)]


def test_the_recipes_are_the_pages_that_train():
    found = plans.recipes()
    assert {"alpaca_farm/ppo", "dpo_rlaif/dpo", "rrhf/rrhf"} <= set(found)
    assert not [name for name in found if name.endswith(("generate", "weight_diff"))]


def test_what_is_said_of_a_plan():
    found = json.loads(json.dumps(plans.said_of(OFFLINE)))
    assert (
        found["fits"] and found["tokens_per_s"] == pytest.approx(2000) and found["mfu"] == pytest.approx(0.5)
    )
    assert found["iteration_s"] == 0
    found = plans.said_of(ONLINE)
    # Four updates and sampling; an evaluation is no part of it.
    assert found["iteration_s"] == pytest.approx(10) and found["tokens_per_s"] == pytest.approx(600)
    refused = plans.said_of(cost(program("train step", 18.0, (0.5, 0, 0), refused=True), slice_="v5e:2x4"))
    assert not refused["fits"] and refused["tokens_per_s"] == 0


def test_the_table_tells_what_is_there_and_what_is_not(tmp_path, capsys):
    kept = {
        "alpaca_farm/sft": plans.said_of(OFFLINE),
        "alpaca_farm/ppo": plans.said_of(ONLINE),
        "alpaca_farm/dpo": {"refused": "batch_size: 64 rows do not split"},
        "rrhf/rrhf": plans.said_of(cost(program("train step", 99.0, (0.5, 0, 0), refused=True))),
    }
    for recipe, found in kept.items():
        plans.result_file(tmp_path, recipe, "h100:8").write_text(json.dumps(found))
    command = ["--table", "--out", str(tmp_path), "--pages", ",".join([*kept, "dpo_rlaif/dpo"])]
    plans.main(command)
    head, *rows = table_of(capsys.readouterr().out)
    assert tuple(head) == plans.HEAD and all(len(row) == len(head) for row in rows)
    sft, ppo, dpo, rrhf, missing = rows
    assert sft[2:] == [
        "1 x 8 x 1",
        "yes",
        "17.5 GiB (train step)",
        "59.3 GiB",
        "500 ms",
        "compute",
        "50%",
        "2,000",
        "",
    ]
    assert ppo[4] == "51.0 GiB (sampling)" and ppo[6:] == ["1.5 s", "compute", "67%", "600", "10 s"]
    assert dpo[2] == "batch_size: 64 rows do not split" and missing[2] == "not planned"
    assert rrhf[3] == "no: train step" and rrhf[6:] == ["-"] * 5
    plans.main([*command, "--programs"])
    head, *rows = table_of(capsys.readouterr().out)
    assert tuple(head) == plans.HEAD_OF_PROGRAMS and all(len(row) == len(head) for row in rows)
    assert [row[2] for row in rows[:5]] == [
        "train step",
        "evaluation",
        "train step",
        "sampling",
        "evaluation",
    ]
    assert rows[3][7:] == ["500 ms", "100 ms", "4 s", "memory"]


def test_what_is_done_stays_and_what_failed_is_tried_again(tmp_path, monkeypatch, capsys):
    done, failing = plans.said_of(OFFLINE), iter([(1, "a.cc: died\nRuntimeError: no\n"), (-9, ""), None])
    asked = []

    def run(command, **about):
        recipe, slice_ = command[3:5]
        asked.append(f"{recipe} {slice_}")
        if "ppo" not in recipe:
            plans.result_file(tmp_path, recipe, slice_).write_text(json.dumps(done))
            return SimpleNamespace(returncode=0, stderr="")
        ends = next(failing)
        if ends is None:
            raise subprocess.TimeoutExpired(command, about["timeout"])
        return SimpleNamespace(returncode=ends[0], stderr=ends[1])

    monkeypatch.setattr(plans.subprocess, "run", run)
    command = [
        "--out",
        str(tmp_path),
        "--pages",
        "alpaca_farm/sft,alpaca_farm/ppo",
        "--slices",
        "h100:8,v5e:4x4",
    ]
    plans.main([*command, "--timeout", "3"])
    assert asked == [f"alpaca_farm/{name} {at}" for at in ("h100:8", "v5e:4x4") for name in ("sft", "ppo")]
    said = capsys.readouterr().out
    assert "RuntimeError: no" in said and "ended with status -9" in said
    plans.main([*command[:-1], "h100:8", "--timeout", "3"])
    assert asked[4:] == ["alpaca_farm/ppo h100:8"]
    assert table_of(capsys.readouterr().out.split("\n\n")[1])[2][2] == "not compiled within 3 s"
