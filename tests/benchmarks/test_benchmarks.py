"""The benchmark's arithmetic and tables, and our side of it on a model of one layer."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "benchmarks" / "contestants"))

import folders
import report
import setting
from contestants import ours
from session import Job
from setting import SIZES, TASKS, Size

MICRO = Size(
    vocab=64, width=16, layers=1, heads=2, ff=24, prompt=8, response=8, rows=4, generated=2, ppo_prompts=2
)


class Turns:
    """A session without a process at the other end: it gives so many turns, then stops."""

    class OverError(Exception):
        pass

    def __init__(self, turns: int) -> None:
        self._left, self.notes = turns, {}

    def turn(self) -> None:
        if not self._left:
            raise self.OverError
        self._left -= 1

    def note(self, **numbers: float) -> None:
        self.notes |= {name: float(x) for name, x in numbers.items()}


@pytest.mark.parametrize("task", TASKS)
def test_our_side_runs_every_task(task, tmp_path):
    folders.write(tmp_path, MICRO)
    session = Turns(2)
    with pytest.raises(Turns.OverError):
        ours.run(Job(task, MICRO, ragged=True, root=tmp_path, repetitions=2), session)
    assert math.isfinite(session.notes["loss"])
    if task != "generate":
        assert session.notes["grad_norm"] > 0


@pytest.mark.parametrize("task", [task for task in TASKS if task != "generate"])
def test_it_computes_what_the_lean_loop_does(task, tmp_path):
    pytest.importorskip("torch", reason="the lean loop is of PyTorch")
    from contestants import lean

    folders.write(tmp_path, MICRO)
    sessions = Turns(2), Turns(2)
    for contestant, session in zip((ours, lean), sessions, strict=True):
        with pytest.raises(Turns.OverError):
            contestant.run(Job(task, MICRO, ragged=False, root=tmp_path, repetitions=2), session)
    for name in ("loss", "grad_norm"):
        assert sessions[0].notes[name] == pytest.approx(sessions[1].notes[name], rel=1e-4), name


def test_dpo_starts_at_ln_2(tmp_path):
    folders.write(tmp_path, MICRO)
    session = Turns(1)
    with pytest.raises(Turns.OverError):
        ours.run(Job("dpo", MICRO, ragged=False, root=tmp_path, repetitions=2), session)
    assert session.notes["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_padding_is_not_counted():
    small = SIZES["small"]
    assert setting.tokens_per_repetition("sft", small, ragged=False) == 8 * 256
    rows = setting.demonstrations(small, ragged=True)
    assert len({len(row["response"]) for row in rows}) > 1
    expected = sum(len(row["prompt"]) + len(row["response"]) for row in rows)
    assert setting.tokens_per_repetition("sft", small, ragged=True) == expected < 8 * 256


def test_flops_of_a_training_step():
    layers = 8 * (4 * 512 * 512 + 3 * 512 * 1376)
    expected = 6 * (8 * 256 * layers + 8 * 192 * 512 * 4096)
    assert setting.matrix_flops("sft", SIZES["small"], ragged=False) == expected


def test_tokens_never_look_special():
    for row in setting.pairs(SIZES["tiny"], ragged=True):
        assert all(min(part) > setting.EOS for part in row.values())


def _notes(seconds, loss=0.5, waited=0.0):
    return {
        "seconds": seconds,
        "cpu_seconds": seconds,
        "waited_seconds": waited,
        "loss": loss,
        "grad_norm": 1.0,
    }


def _found(**contestants):
    yardstick = {"notes": [{"gflops": 200.0, "gbytes": 30.0}], "peak_bytes": 0, "failed": ""}
    given = {name: {"notes": notes, "peak_bytes": 2**30, "failed": ""} for name, notes in contestants.items()}
    return {
        "title": "small, sft",
        "tokens": 2048,
        "flops": 1e11,
        "contestants": given | {"yardstick": yardstick},
    }


def test_table_compares_the_fastest_timed_repetitions():
    text = report.table(_found(ours=[_notes(0.1), _notes(2.0), _notes(4.0)], peer=[_notes(0.1), _notes(3.0)]))
    ours_line, peer_line = text.splitlines()[-2:]
    assert ours_line.split()[:3] == ["ours", "1024", "1.00"]
    assert peer_line.split()[:3] == ["peer", "683", "1.50"]
    assert "!!!" not in text


def test_table_says_loudly_that_sides_disagree():
    text = report.table(_found(ours=[_notes(1.0)] * 2, peer=[_notes(1.0, loss=0.5002)] * 2))
    assert "!!! DISAGREEMENT: loss at step 0 is 0.5002 for peer, but 0.5 for ours" in text
    close = report.table(_found(ours=[_notes(1.0)] * 2, peer=[_notes(1.0, loss=0.50001)] * 2))
    assert "DISAGREEMENT" not in close


def test_table_says_when_the_machine_was_busy():
    assert "!!! BUSY MACHINE: ours" in report.table(_found(ours=[_notes(1.0), _notes(1.0, waited=0.3)]))


def test_table_names_who_failed():
    found = _found(ours=[_notes(1.0)] * 2, peer=[])
    found["contestants"]["peer"]["failed"] = "ImportError: no"
    assert "peer          failed: ImportError: no" in report.table(found)
