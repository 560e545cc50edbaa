"""The same run on one device, on 8, and on 2 processes. Other device counts need processes of their own."""

import re
import signal
import socket
import time
from pathlib import Path

import pytest
import toy_training as toy

from rlhf_jax.training import state
from rlhf_jax.training.checkpoint import Checkpoints

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


def start_two(folder, **settings):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {"RLHF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLHF_JAX_NUM_PROCESSES": "2"}
    return [
        toy.start(folder, *arguments(mesh="1,2,1", **settings), RLHF_JAX_PROCESS_ID=str(i), **environment)
        for i in range(2)
    ]


def test_sigterm_to_one_of_two_processes_stops_both_and_the_run_goes_on(tmp_path, alone):
    folder, _ = alone
    runs = start_two(tmp_path, pause=0.3)
    rows = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and '"loss"' in rows.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    runs[1].send_signal(signal.SIGTERM)
    outs = [finish(run) for run in runs]
    (stopped,) = re.findall(r"told to stop: saved after step (\d+); to continue: ", outs[0])
    assert 1 <= int(stopped) < 6
    assert "done" not in outs[0] + outs[1]
    assert "told to stop" not in outs[1]  # one process talks
    outs = [finish(run) for run in start_two(tmp_path)]
    assert f"at step {stopped}" in outs[0]
    assert_close(tmp_path, folder)
