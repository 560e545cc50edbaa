"""slurm.sbatch on a real Slurm of two nodes: it saves and goes on, or stays away, and what comes out is the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_farm
from fake_programs import ROOT, wait_until
from slurm_cluster import Cluster, missing
from wide import wide

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(900),
]
JOB = ("--partition=low", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
LONG = {"epochs": 3.0, "save_every": 50, "eval_every": 0, "log_every": 4}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def train(cluster, farm):
    """Submits an SFT of two processes; the job's number."""

    def submit(workdir, *options, **changes):
        arguments = tiny_farm.arguments("sft", farm, workdir, **LONG | changes)
        environment = {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        return cluster.submit(*JOB, *options, "launch/slurm.sbatch", "--", *arguments, **environment)

    yield submit
    cluster.ask("scancel", "--user=root")
    wait_until(lambda: not cluster.ask("squeue", "-h"), timeout=60)


def begun(workdir: Path) -> bool:
    """Whether the run has taken a few steps."""
    path = workdir / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= 3


def weights(workdir: Path) -> bytes:
    return (workdir / "export" / "model.safetensors").read_bytes()


def preempted(cluster, train, workdir) -> None:
    """Trains to the end, put back into the queue once on the way."""
    job = train(workdir)
    wait_until(lambda: begun(workdir), timeout=180)
    other = cluster.submit("--partition=high", "--nodes=2", "--wrap", "sleep 1")
    cluster.wait_for(other, "COMPLETED")
    cluster.wait_for(job, "COMPLETED")
    out = cluster.output(job)
    assert "told to stop: saved after step" in out and "back into the queue" in out
    assert "start number 2 of this job" in out and f"continuing {workdir} at step" in out


def test_preempted_it_goes_on_where_it_was(cluster, train, tmp_path):
    preempted(cluster, train, tmp_path / "run")
    steps = [row["step"] for row in tiny_farm.rows(tmp_path / "run") if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 75 and weights(tmp_path / "run")


@wide
def test_preempted_it_ends_as_if_nothing_had_been(cluster, train, farm, tmp_path):
    preempted(cluster, train, tmp_path / "run")
    arguments = tiny_farm.arguments("sft", farm, tmp_path / "alone", **LONG)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    subprocess.run(
        ["bash", "launch/local.sh", "2", "--", *arguments],
        cwd=ROOT,
        env=environment | {"PYTHON": sys.executable},
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert weights(tmp_path / "run") == weights(tmp_path / "alone")
    assert tiny_farm.rows(tmp_path / "run") == tiny_farm.rows(tmp_path / "alone")


def test_cancelled_it_stays_away(cluster, train, tmp_path):
    job = train(tmp_path / "run", epochs=100.0)
    wait_until(lambda: begun(tmp_path / "run"), timeout=180)
    cluster.ask("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    wait_until(lambda: "told to stop: saved after step" in cluster.output(job), timeout=60)
    time.sleep(3)  # Back into the queue it would go by now.
    assert cluster.state(job) == "CANCELLED"
    assert "back into the queue" not in cluster.output(job)
    assert not cluster.ask("squeue", "-h")


@wide
def test_a_task_that_dies_ends_the_job(cluster, train, tmp_path):
    job = train(tmp_path / "run", epochs=100.0)
    wait_until(lambda: begun(tmp_path / "run"), timeout=180)
    victims = [pid for pid in tasks(job) if b"SLURM_PROCID=1\0" in environment_of(pid)]
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    cluster.wait_for(job, "FAILED", timeout=120)
    assert "back into the queue" not in cluster.output(job)
    assert not tasks(job)


@wide
def test_at_the_end_of_its_time_it_saves_and_goes_back_into_the_queue(cluster, train, tmp_path):
    # Slurm looks every so often, and so sends the signal up to a minute before the 40 s that are asked for.
    job = train(tmp_path / "run", "--time=2", "--signal=B:USR1@40", epochs=1000.0)
    cluster.wait_to_say(job, "back into the queue", timeout=240)
    cluster.wait_to_say(job, f"continuing {tmp_path}/run at step", timeout=240)
    cluster.ask("scancel", job)
    cluster.wait_for(job, "CANCELLED")


@wide
def test_a_node_that_vanishes_and_comes_back(cluster, train, tmp_path):
    job = train(tmp_path / "run", epochs=100.0)
    wait_until(lambda: (tmp_path / "run" / "checkpoints" / "50").exists(), timeout=240)
    cluster.lose_node("n2")
    cluster.wait_for(job, "PENDING", "FAILED", timeout=240)
    cluster.start_node("n2")
    assert cluster.state(job) == "PENDING", cluster.output(job)
    cluster.wait_to_say(job, f"continuing {tmp_path}/run at step", timeout=400)


def tasks(job: str) -> list[int]:
    """The training processes that srun has started for this job; another cluster may be at work beside it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        ours = command.startswith(sys.executable.encode() + b"\0") and b"rlhf_jax.main" in command
        environment = environment_of(int(process.name))
        if (
            ours
            and f"SLURM_JOB_ID={job}\0".encode() in environment
            and b"SLURM_STEP_NODELIST=" in environment
        ):
            found.append(int(process.name))
    return found


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
