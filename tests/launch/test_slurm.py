"""slurm.sbatch inside a job: what srun is given, and what happens when Slurm wants the nodes back."""

import signal

import pytest
from fake_programs import HARD, ROOT, finish, wait_until

# srun runs until scancel signals its tasks; the program then saves and ends with status 0.
SRUN = """trap 'echo saved; exit 0' TERM
echo $$ >"$HOME/tasks"
while true; do sleep 0.1; done"""
SCANCEL = 'kill -TERM "$(cat "$HOME/tasks")"'
SCONTROL = '[ "$1" != show ] || cat "$HOME/job"'
COMMAND = ("launch/slurm.sbatch", "--", *HARD)


@pytest.fixture
def job(fakes):
    """A job of two nodes with eight GPUs each."""
    fakes.environment |= {
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NTASKS": "16",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_GPUS_ON_NODE": "8",
        "PYTHON": "/bin/true",
    }
    fakes.add("scancel", SCANCEL)
    fakes.add("scontrol", SCONTROL)
    state(fakes, "JobState=RUNNING PreemptTime=None")
    return fakes


def state(fakes, text):
    (fakes.log.parent / "job").write_text(f"JobId=77 {text}\n")


def requeued(fakes):
    return [call for call in fakes.calls("scontrol") if call[0] == "requeue"]


@pytest.mark.parametrize("status", [0, 2])
def test_a_run_that_ends_by_itself(job, status):
    job.add("srun", f"exit {status}")
    job.run(*COMMAND, status=status, SLURM_CPUS_PER_TASK="12")
    assert job.calls("srun") == [
        [
            *("--kill-on-bad-exit=1", "--gpu-bind=none", "--cpus-per-task=12"),
            *("/bin/true", "-m", "rlhf_jax.main", *HARD),
        ]
    ]
    assert not requeued(job) and not job.calls("scancel")


@pytest.mark.parametrize(
    ("number", "now"),
    [
        (signal.SIGUSR1, "JobState=RUNNING PreemptTime=None"),
        (signal.SIGTERM, "JobState=RUNNING PreemptTime=2026-01-02T03:04:05"),
    ],
)
def test_told_to_stop_it_saves_and_goes_back_into_the_queue(job, number, now):
    job.add("srun", SRUN)
    script = job.start(*COMMAND)
    wait_until((job.log.parent / "tasks").exists)
    state(job, now)
    script.send_signal(number)
    out = finish(script)
    assert job.calls("scancel") == [["--signal=TERM", "77"]]
    assert requeued(job) == [["requeue", "77"]]
    said = ["told to stop; asking the program to save", "saved", "back into the queue"]
    assert [line.removeprefix("slurm.sbatch: ") for line in out.splitlines()] == said


@pytest.mark.parametrize("now", ["RUNNING", "COMPLETING", "CANCELLED"])
@pytest.mark.parametrize("before", ["None", "2026-01-02T03:04:05"])
def test_a_job_that_the_user_cancels_stays_away(job, now, before):
    """Whatever its state is while the script looks, and also when an earlier start of it was preempted."""
    state(job, f"JobState=RUNNING PreemptTime={before}")
    job.add("srun", SRUN)
    script = job.start(*COMMAND)
    wait_until((job.log.parent / "tasks").exists)
    state(job, f"JobState={now} PreemptTime={before}")
    script.send_signal(signal.SIGTERM)
    assert "back into the queue" not in finish(script)
    assert not requeued(job)


def test_a_job_cancelled_at_the_end_of_its_time_stays_away(job):
    """The program saves slowly; the user loses patience."""
    job.add("srun", SRUN.replace("echo saved;", "touch $HOME/saving; sleep 1; echo saved;"))
    script = job.start(*COMMAND)
    wait_until((job.log.parent / "tasks").exists)
    script.send_signal(signal.SIGUSR1)
    wait_until((job.log.parent / "saving").exists)
    script.send_signal(signal.SIGTERM)
    finish(script)
    assert not requeued(job)


def test_a_preemption_that_only_the_tasks_hear_of(job):
    job.add("srun", 'echo "JobState=RUNNING PreemptTime=2026-01-02T03:04:05" >"$HOME/job"')
    job.run(*COMMAND)
    assert requeued(job) == [["requeue", "77"]]


def test_a_second_start_says_so(job):
    job.add("srun")
    assert "start number 3 of this job" in job.run(*COMMAND, SLURM_RESTART_COUNT="2")


def test_idle_gpus_are_refused(job):
    job.add("srun")
    out = job.run(*COMMAND, status=2, SLURM_NTASKS="4", SLURM_NTASKS_PER_NODE="2")
    assert out == "error: --ntasks-per-node: 2 processes for 8 GPUs on a node; use --ntasks-per-node=8\n"
    assert not job.calls("srun")
    job.run(*COMMAND, SLURM_NTASKS="1", SLURM_NTASKS_PER_NODE="1")  # one process takes all GPUs of its node
    assert len(job.calls("srun")) == 1


def test_submitted_from_elsewhere(job, tmp_path):
    out = job.run(*COMMAND, status=2, SLURM_SUBMIT_DIR=str(tmp_path))
    assert out.startswith(f"error: sbatch: {tmp_path} is not the repository; submit from its root, or with")


def test_no_python(job):
    out = job.run(*COMMAND, status=2, PYTHON="/no/python")
    assert out.startswith("error: PYTHON: there is no /no/python; run scripts/install.sh")


def test_slurm_reads_the_options():
    """#SBATCH lines count only before the first command."""
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    found = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : len(found) + 1] == [f"#SBATCH {option}" for option in found]
    assert {"--requeue", "--ntasks-per-node=8", "--gpus-per-node=8"} <= set(found)
    assert any(option.startswith("--signal=B:USR1@") for option in found)
