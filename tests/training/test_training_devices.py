"""The same run on one device, on 8, and on 2 processes. Other device counts need processes of their own."""

import re
import signal
import socket
import time
from pathlib import Path

import pytest
import toy_training as toy
from wide import wide

from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.loop import state

HERE = Path(__file__).parent
SETTINGS = {"steps": 6, "save_every": 2, "eval_every": 3}  # as in sharded_checks.py


def finish(process, status=0):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == status, out
    return out


def arguments(**settings):
    return [f"{name}={value}" for name, value in (SETTINGS | settings).items()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the other runs are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    last, _ = toy.train(folder, **SETTINGS)
    return folder, last


def assert_close(folder, expected):
    found, wanted = toy.rows(folder), toy.rows(expected)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=2e-6)


def restored(folder, like):
    """The last checkpoint, read here on one device."""
    config = {"steps": 6, "optimizer": {"learning_rate": 0.02}, "width": toy.WIDTH}
    with Checkpoints(folder, config=config) as checkpoints:
        return checkpoints.restore(state.abstract(like)).state


def test_eight_devices_train_as_one(tmp_path, alone):
    folder, last = alone
    out = finish(toy.start(tmp_path, script=HERE / "sharded_checks.py", devices=8))
    assert '"ok": true' in out
    for name in ("fsdp", "data"):
        assert_close(tmp_path / name, folder)
        found = restored(tmp_path / name, last)
        for a, b in zip(toy.leaves(found.params), toy.leaves(last.params), strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
        assert toy.same(found.key, last.key)


def start_several(folder, mesh="1,2,1", count=2, **settings):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {"RLHF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLHF_JAX_NUM_PROCESSES": str(count)}
    return [
        toy.start(folder, *arguments(mesh=mesh, **settings), RLHF_JAX_PROCESS_ID=str(i), **environment)
        for i in range(count)
    ]


def rows_written(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def until(moment, runs):
    """Waits for a moment while processes run."""
    deadline = time.monotonic() + 200
    while not moment() and time.monotonic() < deadline:
        assert all(run.poll() is None for run in runs), [run.communicate()[0] for run in runs]
        time.sleep(0.02)


@pytest.mark.parametrize(("count", "mesh"), [(2, "1,2,1"), pytest.param(4, "2,2,1", marks=wide)])
def test_sigterm_to_one_of_several_processes_stops_all_and_the_run_goes_on(tmp_path, alone, count, mesh):
    folder, _ = alone
    runs = start_several(tmp_path, mesh, count, pause=0.3)
    until(lambda: rows_written(tmp_path), runs)
    runs[-1].send_signal(signal.SIGTERM)
    outs = [finish(run) for run in runs]
    (stopped,) = re.findall(r"told to stop: saved after step (\d+); to continue: ", outs[0])
    assert 1 <= int(stopped) < 6
    assert "done" not in "".join(outs)
    assert "told to stop" not in "".join(outs[1:])  # one process talks
    with Checkpoints(tmp_path, config={}) as checkpoints:
        assert checkpoints.latest_step() == int(stopped)
    outs = [finish(run) for run in start_several(tmp_path, mesh, count)]
    assert f"at step {stopped}" in outs[0]
    assert_close(tmp_path, folder)


def test_a_killed_run_goes_on_with_other_devices_and_other_processes(tmp_path):
    """One device, then eight, then two processes, then eight on another mesh, then one: the curve of one device."""
    settings = {"steps": 15, "save_every": 1, "eval_every": 3}
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    toy.train(whole, **settings)
    ways = [
        lambda **more: [toy.start(moved, *arguments(**settings, **more))],
        lambda **more: [toy.start(moved, *arguments(mesh="2,4,1", **settings, **more), devices=8)],
        lambda **more: start_several(moved, **settings, **more),
        lambda **more: [toy.start(moved, *arguments(mesh="8,1,1", **settings, **more), devices=8)],
    ]
    for start in ways:
        runs, before = start(pause=0.3), rows_written(moved)
        until(lambda before=before: rows_written(moved) > before + 1, runs)
        for run in runs:
            run.send_signal(signal.SIGKILL)
        for run in runs:
            run.wait()
    steps = [row["step"] for row in toy.rows(moved) if "loss" in row]
    assert 4 < steps[-1] < 15
    assert "at step" in finish(ways[0]()[0])
    assert_close(moved, whole)
