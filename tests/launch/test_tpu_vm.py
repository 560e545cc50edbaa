"""tpu_vm.sh from creation to deletion, with a gcloud whose TPU VM is a folder of this machine."""

import shutil
import tarfile

import pytest
from fake_programs import HARD, ROOT, finish, wait_until

# Both workers of the VM are the folders $HOME/worker_0 and worker_1; state: what `describe` answers, when it exists.
GCLOUD = """shift 3
action=$1 name=$2
for word; do
  case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac
done
if [ "${worker:-}" = all ]; then workers='0 1'; else workers=${worker:-}; fi
case $action in
  describe) cat "$HOME/state" ;;
  create | start) mkdir -p "$HOME/worker_0" "$HOME/worker_1"; echo READY >"$HOME/state" ;;
  delete) rm -r "$HOME/worker_0" "$HOME/worker_1" "$HOME/state" ;;
  scp) for i in $workers; do cp "$2" "$HOME/worker_$i/${3#*:}"; done ;;
  ssh) for i in $workers; do (cd "$HOME/worker_$i" && HOME=$PWD I=$i bash -c "$command"); done ;;
esac"""
UV = """[ "$1" != venv ] || { mkdir -p .venv/bin; cp "$FAKE_PYTHON" .venv/bin/python; }"""
RUN = ("launch/tpu_vm.sh", "run", "pod", "--zone", "z", "--type", "v6e-16", "--", *HARD)


@pytest.fixture
def cloud(fakes):
    fakes.add("gcloud", GCLOUD)
    fakes.add("uv", UV)
    python = fakes.add("python", 'echo hello from $I; eval "$PROGRAM"', at=fakes.log.parent / "fake_python")
    fakes.environment |= {"FAKE_PYTHON": str(python), "PROGRAM": "exit 0"}
    return fakes


def actions(cloud):
    return [call[3] for call in cloud.calls("gcloud")]


def test_run_creates_copies_installs_starts_and_follows(cloud):
    out = cloud.run(*RUN)
    assert actions(cloud) == ["describe", "create", "scp", "ssh", "ssh", "ssh", "ssh"]
    assert "hello from 0" in out and "hello from 1" not in out
    assert cloud.calls("python") == [["-m", "rlhf_jax.main", *HARD]] * 2
    assert cloud.calls("uv")[:2] == [
        ["venv", "--quiet", "--python", "3.12", ".venv"],
        ["pip", "install", "--quiet", "-r", "requirements.txt", "jax[tpu]"],
    ]
    assert "hello from 1" in cloud.run("launch/tpu_vm.sh", "logs", "pod", "--zone", "z", "--worker", "1")


def test_what_is_copied(cloud):
    cloud.run(*RUN)
    with tarfile.open(cloud.log.parent / "rlhf_jax-pod.tar.gz") as archive:
        names = archive.getnames()
    assert {"./rlhf_jax/main.py", "./configs/sft.py", "./requirements.txt", "./launch/tpu_worker.sh"} <= set(
        names
    )
    assert not [x for x in names if x.startswith(("./.git/", "./.venv", "./runs")) or "__pycache__" in x]


def test_a_second_run_reuses_the_vm_and_keeps_what_is_there(cloud):
    cloud.run(*RUN)
    worker = cloud.log.parent / "worker_0/rlhf_jax"
    (worker / "runs/sft").mkdir(parents=True)
    (worker / "old.py").touch()
    cloud.run(*RUN)
    assert actions(cloud).count("create") == 1 and actions(cloud).count("describe") == 2
    assert (worker / "runs/sft").exists() and not (worker / "old.py").exists()
    assert [call[0] for call in cloud.calls("uv")].count("venv") == 2  # one on each worker


def test_the_programs_status_is_that_of_the_launcher(cloud):
    out = cloud.run(*RUN, status=7, PROGRAM="echo bad; exit 7")
    assert out.splitlines()[-1] == "bad"


def test_stop_lets_the_program_save(cloud):
    program = "trap 'echo saved; exit 0' TERM; while true; do sleep 0.1; done"
    run = cloud.start(*RUN, PROGRAM=program)
    worker = cloud.log.parent / "worker_0/rlhf_jax"
    wait_until(
        lambda: "hello" in (worker / "run.log").read_text() if (worker / "run.log").exists() else False
    )
    refused = cloud.run(*RUN, status=1)
    assert "a run is under way; stop it first: bash launch/tpu_vm.sh stop" in refused
    cloud.run("launch/tpu_vm.sh", "stop", "pod", "--zone", "z")
    assert finish(run).splitlines()[-1] == "saved"
    assert "no run is under way" in cloud.run("launch/tpu_vm.sh", "stop", "pod", "--zone", "z", status=1)


@pytest.mark.parametrize(("state", "then"), [("PREEMPTED", ["delete", "create"]), ("STOPPED", ["start"])])
def test_a_vm_that_is_not_ready(cloud, state, then):
    cloud.run(*RUN)
    (cloud.log.parent / "state").write_text(f"{state}\n")
    before = len(actions(cloud))
    cloud.run(*RUN)
    assert actions(cloud)[before : before + 2 + len(then)] == ["describe", *then, "scp"]


def test_a_vm_that_is_being_made(cloud):
    (cloud.log.parent / "state").write_text("CREATING\n")
    out = cloud.run(*RUN, status=2)
    assert out.startswith(
        "error: NAME: pod is CREATING; wait until it is READY, or: bash launch/tpu_vm.sh delete"
    )


def test_delete(cloud):
    cloud.run(*RUN)
    cloud.run("launch/tpu_vm.sh", "delete", "pod", "--zone", "z")
    assert cloud.calls("gcloud")[-1] == ["compute", "tpus", "tpu-vm", "delete", "pod", "--quiet", "--zone=z"]


def test_nothing_to_follow(cloud, tmp_path):
    (tmp_path / "rlhf_jax").mkdir()
    shutil.copytree(ROOT / "launch", tmp_path / "rlhf_jax/launch")
    out = cloud.run(tmp_path / "rlhf_jax/launch/tpu_worker.sh", "follow", status=1)
    assert "nothing was started here yet; start it: bash launch/tpu_vm.sh run" in out
