"""kill -9 at any moment, then the same command again: the same parameters and rows as without a kill."""

import random
import signal
import time
from pathlib import Path

import pytest
import toy_training as toy

from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.loop import state

# Wide enough that writing a checkpoint takes longer than an iteration: many kills come while one is written.
SETTINGS = {"steps": 40, "save_every": 2, "eval_every": 5, "width": 320, "best": "eval/loss"}


def run_until(folder, moment):
    """Starts the run and kills it when `moment()` is true. Returns whether it was still running then."""
    process = toy.start(folder, "pause=0.03", *(f"{name}={value}" for name, value in SETTINGS.items()))
    while process.poll() is None and not moment():
        time.sleep(0.001)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert running or out.endswith("done\n"), out
    return running


def writing(folder: Path, after: int):
    """True while a checkpoint later than `after` is being written."""
    steps = [p.name.split(".")[0] for p in (folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
    return any(int(step) > after for step in steps if step.isdigit())


def rows_of(folder: Path):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def later(folder: Path, rows: int, seconds: float):
    """True some time after the run has written its first new row."""
    started = []

    def moment():
        if not started and rows_of(folder) > rows:
            started.append(time.monotonic())
        return bool(started) and time.monotonic() > started[0] + seconds

    return moment


@pytest.mark.parametrize("seed", [0])
def test_killed_five_times(tmp_path, seed):
    whole, _ = toy.train(tmp_path / "whole", **SETTINGS)
    folder = tmp_path / "killed"
    rng = random.Random(seed)
    in_writing = 0
    for n, moment in enumerate(["start", "writing", "random", "writing", "random"]):
        before = rows_of(folder)
        if moment == "start":  # before the first checkpoint is complete
            running = run_until(folder, lambda: rows_of(folder) > 1)
        elif moment == "writing":
            running = run_until(folder, lambda n=n: writing(folder, 8 * n))
            in_writing += bool(list((folder / "checkpoints").glob("*tmp*")))
        else:
            running = run_until(folder, later(folder, before, rng.uniform(0.0, 0.25)))
        assert running, f"kill {n} came after the end"
    assert in_writing  # at least one kill left a half-written checkpoint
    assert not run_until(folder, lambda: False)
    assert toy.rows(folder) == toy.rows(tmp_path / "whole")
    config = {"steps": 40, "optimizer": {"learning_rate": 0.02}, "width": 320}
    with Checkpoints(folder, config=config, best_metric="eval/loss", best_mode="min") as checkpoints:
        found = checkpoints.restore(state.abstract(whole))
        assert found.step == 40
        assert toy.same(found.state, whole)
        assert checkpoints.best_step() is not None
    assert not list((folder / "checkpoints").glob("*tmp*"))
