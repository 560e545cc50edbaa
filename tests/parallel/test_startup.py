"""Process start-up on one process: what the environment asks for, and its errors."""

import time

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup

OURS = {"RLHF_JAX_COORDINATOR": "127.0.0.1:1234", "RLHF_JAX_NUM_PROCESSES": "2", "RLHF_JAX_PROCESS_ID": "1"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def calls(monkeypatch):
    """Records what would be given to jax.distributed.initialize, in an environment that says nothing."""
    for name in (*OURS, *SLURM, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    made = []
    monkeypatch.setattr(startup.jax.distributed, "initialize", lambda **kwargs: made.append(kwargs))
    monkeypatch.setattr(startup, "glob", lambda pattern: [])
    return made


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_alone_when_the_environment_says_nothing(calls):
    processes = startup.join_processes()
    assert calls == []
    assert (processes.index, processes.count) == (0, 1)
    assert startup.is_main()
    assert startup.process_index() == 0
    assert startup.process_count() == 1


def test_alone_barriers_and_agreements_return_at_once(calls):
    startup.barrier("nobody else", timeout_s=0.001)
    startup.agree("workdir", {"any": "thing"}, timeout_s=0.001)


def test_our_variables_are_passed_on(calls, monkeypatch):
    set_all(monkeypatch, OURS)
    startup.join_processes(timeout_s=9)
    assert calls == [
        {
            "initialization_timeout": 9,
            "coordinator_address": "127.0.0.1:1234",
            "num_processes": 2,
            "process_id": 1,
        }
    ]


def test_off_ignores_the_environment(calls, monkeypatch):
    set_all(monkeypatch, OURS)
    startup.join_processes("off")
    assert calls == []


def test_srun_with_several_tasks_joins_and_a_batch_script_does_not(calls, monkeypatch):
    set_all(monkeypatch, SLURM)
    startup.join_processes()
    assert len(calls) == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # a step of one task inside a larger job
    startup.join_processes()
    assert len(calls) == 1
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # set by srun only
    startup.join_processes()
    assert len(calls) == 1


def test_a_cloud_tpu_machine_joins(calls, monkeypatch):
    monkeypatch.setattr(startup, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    startup.join_processes()
    assert len(calls) == 1
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    startup.join_processes()
    assert len(calls) == 1


def test_on_fails_when_nothing_can_be_detected(calls, monkeypatch):
    def refuse(**kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(startup.jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"distributed: could not join .*distributed=off"):
        startup.join_processes("on")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RLHF_JAX_PROCESS_ID": ""}, r"^RLHF_JAX_PROCESS_ID: not set, but RLHF_JAX_COORDINATOR"),
        ({"RLHF_JAX_COORDINATOR": ""}, r"^RLHF_JAX_COORDINATOR: not set"),
        ({"RLHF_JAX_COORDINATOR": "host"}, r"has no port"),
        ({"RLHF_JAX_NUM_PROCESSES": "two"}, r"^RLHF_JAX_NUM_PROCESSES: 'two' is not a whole number"),
        ({"RLHF_JAX_PROCESS_ID": "2"}, r"^RLHF_JAX_PROCESS_ID: 2 is not in 0 .. 1"),
    ],
)
def test_bad_variables(calls, monkeypatch, changes, message):
    set_all(monkeypatch, OURS | changes)
    with pytest.raises(UserError, match=message):
        startup.join_processes()
    assert calls == []


def test_a_name_that_nobody_knows_is_one_line(calls, monkeypatch, capfd):
    set_all(monkeypatch, OURS | {"RLHF_JAX_COORDINATOR": "nobody.invalid:1234"})
    monkeypatch.setattr(startup, "_NAME_S", 0.2)
    monkeypatch.setattr(startup, "_QUIET_S", 0.1)
    with pytest.raises(
        UserError, match=r"process 0 should be on nobody.invalid, but this name is not known here"
    ):
        startup.join_processes()
    assert calls == []
    assert (
        "waiting for the name nobody.invalid (process 0's machine) to be known here: 0 s"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n7", "n7"), ("n7,n9", "n7"), ("n[007-9,12],m3", "n007"), ("a-b[3,5]", "a-b3")],
)
def test_the_first_machine_of_a_slurm_step(monkeypatch, nodes, first):
    set_all(monkeypatch, SLURM | {"SLURM_STEP_NODELIST": nodes, "SLURM_PROCID": "1"})
    assert startup._slurm_coordinator() == (f"{first}:", 1, 2)


@pytest.mark.parametrize(
    ("index", "whom"), [("0", "1 more of 2 processes to join"), ("1", "process 0 at 127.0.0.1:1234")]
)
def test_it_says_for_whom_it_waits(calls, monkeypatch, capfd, index, whom):
    set_all(monkeypatch, OURS | {"RLHF_JAX_PROCESS_ID": index})
    monkeypatch.setattr(startup, "_QUIET_S", 0.05)
    monkeypatch.setattr(startup.jax.distributed, "initialize", lambda **_: time.sleep(0.3))
    startup.join_processes()
    assert capfd.readouterr().err == f"waiting for {whom}: 0 s\n"


def test_leaving_alone_is_a_plain_exit(calls):
    with pytest.raises(SystemExit) as end:
        startup.leave(2)
    assert end.value.code == 2
