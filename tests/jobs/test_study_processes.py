"""Stages of a study side by side, each in a process of its own. The programs are real and small."""

import json
import os
import signal
import sys
import time

import pytest
import tiny_farm
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study import study_job, study_processes
from rlhf_jax.jobs.study.study_stages import Stage, without_company
from rlhf_jax.settings import load_page

PAGE = """
from rlhf_jax.settings import load_page


def get_config():
    c = load_page("configs/farm.py")
    c.world.scale = {scale}
    groups = [name for name in c if name not in ("world", "inspect") and hasattr(c[name], "job")]
    for name in groups:
        del c[name]
    c.inspect = load_page("configs/inspect_data.py")
    c.inspect.data.path = "{{one}}/sft.parquet"
    c.inspect.tokenizer = "{{one}}/tokenizer"
    c.stages = (("one", "world"), ("two", "world", "seed=1"), ("looked", "inspect"))
    c.report, c.at_once = "", 2
    return c
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_farm.ROOT)

    def write(scale=0.02):
        path = tmp_path / "page.py"
        path.write_text(PAGE.format(scale=scale))
        return path

    return write


def test_stages_run_side_by_side_and_are_finished(page, tmp_path, capfd):
    root = tmp_path / "run"
    study_job.run(load_page(str(page())), str(root))
    told = capfd.readouterr().out
    # The second began before the first had ended; what reads the first waited for it, and for nothing else.
    assert told.index("[1] two: make_data") < told.index("[0] one: done in")
    assert told.index("[0] one: done in") < told.index("[2] looked: inspect_data")
    assert "splits" in (root / "one/output.txt").read_text() and "splits" not in told
    assert (root / "two/sft.parquet").is_file() and (root / "looked/finished.json").is_file()
    study_job.run(load_page(str(page())), str(root))
    assert capfd.readouterr().out.count("finished before") == 3


def test_a_stage_that_never_has_company_has_all_cores():
    """Of (one, two; both -> looked; looked -> last) the first two share the cores, whoever comes first."""
    edges = {"one": (), "two": (), "looked": ("one", "two"), "last": ("looked",)}
    stages = [Stage(name, name, None, None, None, upstream) for name, upstream in edges.items()]
    assert without_company(stages) == {"looked", "last"}
    chain = [
        stages[0],
        stages[2]._replace(upstream=("one",)),
        stages[3],
        stages[1]._replace(upstream=("looked",)),
    ]
    assert without_company(chain) == {"one", "looked"}


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="this system does not tell a process's cores"
)
@pytest.mark.parametrize("alone", [False, True])
def test_cores_of_a_stage(tmp_path, monkeypatch, alone):
    """All of them, or its half; the study keeps its own."""
    cores = sorted(os.sched_getaffinity(0))
    started = []
    popen = study_processes.subprocess.Popen

    def start(command, **settings):
        started.append(sorted(os.sched_getaffinity(0)))
        return popen([sys.executable, "-c", "import sys; sys.stdin.buffer.read()"], **settings)

    monkeypatch.setattr(study_processes.subprocess, "Popen", start)
    processes = study_processes.StageProcesses(2)
    stage = Stage("one", "one", None, ConfigDict(), None, ())
    with processes.ended_with_us():
        processes.start(stage, tmp_path / "one", alone=alone)
    assert started == [cores if alone else cores[: max(1, len(cores) // 2)]]
    assert sorted(os.sched_getaffinity(0)) == cores


def test_a_stage_that_fails_in_its_process_is_named_with_its_own_last_line(page, tmp_path, capfd):
    root = tmp_path / "run"
    (root / "two").mkdir(parents=True)
    (root / "two/sft.parquet").mkdir()  # Where a file should go.
    with pytest.raises(UserError) as found:
        study_job.run(load_page(str(page())), str(root))
    assert str(found.value).startswith("two: ") and "2 of 3 stages" in str(found.value)
    said = (root / "two/output.txt").read_text().splitlines()[-1]
    assert said in str(found.value)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_it_has_started_ends_with_the_study(page, tmp_path, how):
    root = tmp_path / "run"
    study = tiny_farm.start(["-m", "rlhf_jax.main", f"--config={page(2.0)}", f"--workdir={root}"])
    locks = [root / name / "lock.json" for name in ("one", "two")]
    deadline = time.monotonic() + 60
    while study.poll() is None and not all(lock.is_file() for lock in locks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert study.poll() is None, study.stdout.read()
    pids = [json.loads(lock.read_text())["process"] for lock in locks]
    assert study.pid not in pids and len(set(pids)) == 2
    study.send_signal(how)
    out = study.communicate(timeout=60)[0]
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    # Ended, not come to its end: this is what a stage writes last.
    assert not any((root / name / "tokenizer").exists() for name in ("one", "two"))
    if how == signal.SIGINT:
        assert study.returncode == 130 and "stopped: finished stages are kept" in out
    assert study.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 0, signal.SIGINT: 130}[how], out


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has waited for is no longer at work.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
