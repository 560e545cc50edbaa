"""local.sh: processes of a stand-in program, and real training runs: one that is told to stop, one that fails."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_farm
from fake_programs import HARD, PYTHON, ROOT, finish, wait_until
from wide import wide

# The stand-in's process I does what $PROGRAM_I says.
PROGRAM = PYTHON + '\necho "I am $RLHF_JAX_PROCESS_ID"; do=PROGRAM_$RLHF_JAX_PROCESS_ID; eval "${!do}"'
SAVES = (
    "trap 'echo saved $RLHF_JAX_PROCESS_ID; exit 0' TERM; touch $HOME/up.$RLHF_JAX_PROCESS_ID; "
    "while true; do sleep 0.1; done"
)
DEAF = "trap '' TERM; while true; do sleep 0.1; done"


def local(fakes, *programs, status=0):
    """Runs a stand-in per program; what local.sh prints."""
    return finish(start(fakes, *programs), status)


def start(fakes, *programs):
    fakes.environment["PYTHON"] = str(fakes.add("python", PROGRAM))
    todo = {f"PROGRAM_{i}": program for i, program in enumerate(programs)}
    return fakes.start("launch/local.sh", str(len(programs)), "--", *HARD, **todo)


def test_all_go_well(fakes):
    out = local(fakes, "sleep 0.5", ":", "sleep 1; exit 0")
    assert out == "I am 0\n"
    assert fakes.calls("python")[1:] == [["-m", "rlhf_jax.main", *HARD]] * 3


@pytest.mark.parametrize(
    ("programs", "to_blame", "status"),
    [
        (["sleep 0.3; exit 5", "exec sleep 60"], 0, 5),
        (["exec sleep 60", "echo it broke; exit 2"], 1, 2),
        (["sleep 1; exit 2", "echo it broke; exit 3"], 0, 2),  # status 3: it only heard of it
        (["exit 3", "exec sleep 60", "echo it broke; exit 1"], 2, 1),
        (["exit 0", "echo it broke; sleep 0.5; exit 9"], 1, 9),
    ],
)
def test_one_fails(fakes, programs, to_blame, status):
    out = local(fakes, *programs, status=status)
    assert (
        out.splitlines()[-1]
        == f"error: process {to_blame} ended with status {status}; the others were stopped"
    )
    for i, program in enumerate(programs[1:], start=1):
        assert f"--- process {i}, last lines:\nI am {i}\n" in out
        assert ("it broke\n" in out) == any("broke" in x for x in programs), program


def test_nothing_is_left_behind(fakes):
    began = time.monotonic()
    assert "error: process 0 ended with status 1" in local(fakes, "sleep 0.5; exit 1", DEAF, status=1)
    assert time.monotonic() - began < 25
    left = subprocess.run(["pgrep", "-f", str(fakes.folder / "python")], capture_output=True, text=True)
    assert left.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_all_save(fakes, number):
    run = start(fakes, SAVES, SAVES)
    wait_until(lambda: all((fakes.log.parent / f"up.{i}").exists() for i in range(2)))
    run.send_signal(number)
    assert finish(run) == "I am 0\nsaved 0\n"


def real(processes, *arguments, status=0, **environment):
    """Runs `bash launch/local.sh PROCESSES -- ARGUMENTS` with this interpreter; what it prints."""
    return finish(start_real(processes, *arguments, **environment), status, timeout=600)


def start_real(processes, *arguments, **environment):
    process = subprocess.Popen(
        ["bash", "launch/local.sh", str(processes), "--", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    tiny_farm.STARTED.append(process)
    return process


@pytest.fixture(scope="module")
def alone(farm, tmp_path_factory):
    """The rows that one process writes, for a short run of SFT."""
    workdir = tmp_path_factory.mktemp("alone")
    tiny_farm.finish(tiny_farm.start(["-m", "rlhf_jax.main", *sft(farm, workdir)]))
    return tiny_farm.rows(workdir)


def sft(farm, workdir, **changes):
    return tiny_farm.arguments("sft", farm, workdir, **{"epochs": 0.16, **changes})


@pytest.mark.timeout(900)
@wide  # Two processes run in the test in which one fails, and on a cluster in test_slurm_cluster.py.
@pytest.mark.parametrize("processes", [2, 4])
def test_a_real_run(farm, alone, tmp_path, processes):
    workdir = tmp_path / 'a run\'s "folder"'
    out = real(processes, *sft(farm, workdir))
    assert out.count("data.train:") == 2  # process 0 talks
    rows = tiny_farm.rows(workdir)
    assert len(rows) == len(alone) > 2
    for mine, theirs in zip(rows, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=5e-6)
    assert (workdir / "export/model.safetensors").exists()


@pytest.mark.timeout(900)
def test_a_real_run_in_which_one_process_fails(farm, tmp_path):
    """Each of four processes is on a machine of its own; the third lacks the data."""
    for i in range(4):
        (tmp_path / f"machine_{i}").mkdir()
        if i != 2:
            shutil.copy(farm / "data/sft.parquet", tmp_path / f"machine_{i}/mine.parquet")
    python = tmp_path / "python"
    elsewhere = f'[ "$1" = -c ] || cd "{tmp_path}/machine_$RLHF_JAX_PROCESS_ID"'
    python.write_text(f'#!/usr/bin/env bash\n{elsewhere}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    arguments = sft(farm, tmp_path / "run", **{"data.train": "mine.parquet"})
    out = real(4, *arguments, status=2, PYTHON=str(python), PYTHONPATH=str(ROOT))
    assert out.splitlines()[-1] == "error: process 2 ended with status 2; the others were stopped"
    assert (
        "\nerror: data.train: mine.parquet: no such file"
        in out.split("--- process 2, last lines:")[1].split("---")[0]
    )
    assert (
        "error: process 2 failed: data.train: mine.parquet: no such file" in out.split("---")[0]
    )  # says process 0
    assert "Traceback" not in out


@wide
@pytest.mark.timeout(900)
def test_a_real_run_that_is_told_to_stop(farm, tmp_path):
    """Both processes save after the same step, and the same command goes on from there."""
    arguments = sft(farm, tmp_path / "run", epochs=1)
    run = start_real(2, *arguments)
    metrics = tmp_path / "run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, timeout=300)
    run.send_signal(signal.SIGTERM)
    out = finish(run, timeout=300)
    (step,) = re.findall(r"told to stop: saved after step (\d+)", out)
    out = real(2, *arguments)
    assert f"continuing {tmp_path}/run at step {step}\n" in out
    assert (tmp_path / "run/export/model.safetensors").exists()
