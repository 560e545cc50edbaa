"""kill -9 at any moment, then the same command again: the same parameters and rows as without a kill.

RLHF_JAX_KILLS=5 kills every trainer five times instead of PPO once. All run the same loop; training/test_kill_training
kills it, too, on a toy model.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_farm
from same_runs import assert_same_files, assert_same_state, writing

pytestmark = pytest.mark.timeout(900)
ASKED = int(os.environ.get("RLHF_JAX_KILLS", "0"))
KILLS = dict.fromkeys(tiny_farm.TRAINERS, ASKED) if ASKED else {"ppo": 1}
# Long enough to be hit in the middle, with a checkpoint and an evaluation every few iterations.
OFTEN = {"save_every": 3, "eval_every": 9, "log_every": 1}
CHANGES = {
    "sft": OFTEN | {"epochs": 2.4},
    "reward_model": OFTEN | {"epochs": 6.0},
    "dpo": OFTEN | {"epochs": 6.0},
    "ppo": OFTEN | {"steps": 24, "adaptive_kl": True},
}
MOMENTS = ("writing", "iterating", "starting", "writing", "iterating")  # PPO's "iterating" is "in a rollout"
FRONT_DOOR = {"ppo": [str(Path(__file__).with_name("slow_rollouts.py"))]}  # else -m rlhf_jax.main


def rows_of(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def in_rollout(folder):
    return (folder / "rollout").exists()


def moment_of(kind, folder, last_row, rng):
    """A function that says when to kill."""
    before = rows_of(folder)
    if kind == "starting":  # restored, and not one iteration done
        return lambda: "continuing" in (folder / "log").read_text()
    after = before + rng.randint(2, max(3, (last_row - before) // 2))
    due, delay = [], rng.uniform(0, 0.03)

    def moment():
        if not due and rows_of(folder) > after:
            due.append(time.monotonic() + delay)
        if not due or time.monotonic() < due[0]:
            return False
        return {"writing": writing, "in a rollout": in_rollout}.get(kind, bool)(folder)

    return moment


def run(job, farm, folder, moment=None):
    """Runs the job's command; kills it at the moment. Returns whether a checkpoint was half written then."""
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        (folder / "rollout").unlink(missing_ok=True)
        door = FRONT_DOOR.get(job, ["-m", "rlhf_jax.main"])
        command = [*door, *tiny_farm.arguments(job, farm, folder, **CHANGES[job])]
        process = tiny_farm.start(command, stdout=log)
        while process.poll() is None and not (moment and moment()):
            time.sleep(0.001 if moment else 0.1)
        ended = process.poll()
        process.send_signal(signal.SIGKILL)
        process.wait()
    text = (folder / "log").read_text()
    assert ended == (None if moment else 0), f"ended with {ended} before its moment came:\n{text}"
    return writing(folder)


@pytest.mark.parametrize("job", KILLS)
def test_a_killed_run_ends_as_if_nothing_had_happened(job, farm, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(job, farm, whole)
    rng = random.Random(f"{job} {KILLS[job]}")
    half_written = []
    for kind in MOMENTS[: KILLS[job]]:
        kind = "in a rollout" if (job, kind) == ("ppo", "iterating") else kind
        half_written.append(run(job, farm, killed, moment_of(kind, killed, rows_of(whole), rng)))
        print(f"{job}: killed while {kind} after {rows_of(killed)} of {rows_of(whole)} rows", flush=True)
    assert any(half_written)
    run(job, farm, killed)
    assert "continuing" in (killed / "log").read_text()
    assert_same_state(killed, whole)
    assert_same_files(killed, whole, "export/*")
    if job == "ppo":
        assert_same_files(killed, whole, "samples/*")
