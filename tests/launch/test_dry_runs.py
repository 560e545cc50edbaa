"""What --dry_run prints: commands that can be pasted, and that hand the program its arguments unchanged."""

import subprocess

import pytest
from fake_programs import HARD, PYTHON, ROOT


def paste(fakes, printed):
    """Runs what was printed, as a user would who pastes it."""
    fakes.run("-c", printed)


def remote(call):
    """What a shell makes of the line that a call sends elsewhere."""
    (line,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    shown = subprocess.run(
        ["bash", "-c", f"set -- {line}\nprintf '%s\\0' \"$@\""], capture_output=True, text=True
    )
    return shown.stdout.split("\0")[:-1]


def test_local(fakes):
    python = fakes.add(
        "python", PYTHON + "\nenv | grep -E '^(RLHF|JAX_[NP]|CUDA)' | sort >$HOME/env.$RLHF_JAX_PROCESS_ID"
    )
    printed = fakes.run(
        "launch/local.sh", "3", "--devices", "2", "--dry_run", "--", *HARD, PYTHON=str(python)
    )
    assert [call[0] for call in fakes.calls("python")] == ["-c"]  # only to find a port
    paste(fakes, printed)
    assert fakes.calls("python")[1:] == [["-m", "rlhf_jax.main", *HARD]] * 3
    home = fakes.log.parent
    given = [dict(x.split("=", 1) for x in (home / f"env.{i}").read_text().splitlines()) for i in range(3)]
    ports = {x.pop("RLHF_JAX_COORDINATOR") for x in given}
    assert len(ports) == 1 and ports.pop().startswith("127.0.0.1:")
    assert [x.pop("RLHF_JAX_PROCESS_ID") for x in given] == ["0", "1", "2"]
    for x in given:
        assert x["RLHF_JAX_NUM_PROCESSES"] == "3"
        assert x["JAX_PLATFORMS"] == "cpu" and x["JAX_NUM_CPU_DEVICES"] == "2"


@pytest.mark.parametrize(("visible", "expected"), [("", ["0,1", "2,3"]), ("4,6,7,5", ["4,6", "7,5"])])
def test_local_gives_every_process_its_gpus(fakes, visible, expected):
    python = fakes.add("python", PYTHON)
    printed = fakes.run(
        *("launch/local.sh", "2", "--gpus", "2", "--dry_run", "--", "--config=configs/sft.py"),
        PYTHON=str(python),
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert [line.split("CUDA_VISIBLE_DEVICES=")[1].split()[0] for line in printed.splitlines()] == expected
    assert "JAX_PLATFORMS" not in printed


def test_local_says_when_there_are_too_few_gpus(fakes):
    python = fakes.add("python", PYTHON)
    command = ("launch/local.sh", "2", "--gpus", "2", "--", "--config=configs/sft.py")
    out = fakes.run(*command, PYTHON=str(python), CUDA_VISIBLE_DEVICES="0,1,2", status=2)
    assert out == "error: --gpus: 2 x 2 needs 4 GPUs, but CUDA_VISIBLE_DEVICES has 3; use less\n"


def test_slurm(fakes):
    printed = fakes.run("launch/slurm.sbatch", "--dry_run", "--", *HARD)
    fakes.add("srun")
    paste(fakes, printed)
    (call,) = fakes.calls("srun")
    options, command = call[: call.index(".venv/bin/python")], call[call.index(".venv/bin/python") :]
    assert options == ["--kill-on-bad-exit=1", "--gpu-bind=none"]
    assert command == [".venv/bin/python", "-m", "rlhf_jax.main", *HARD]


TPU = (
    "launch/tpu_vm.sh",
    "run",
    "pod",
    "--zone",
    "us-east5-b",
    "--type",
    "v6e-16",
    "--project",
    "p",
    "--spot",
)


def test_tpu_vm(fakes):
    printed = fakes.run(*TPU, "--dry_run", "--", *HARD)
    fakes.add("gcloud")
    fakes.add("tar")
    paste(fakes, printed)
    calls = fakes.calls("gcloud")
    assert all(call[:3] == ["compute", "tpus", "tpu-vm"] for call in calls)
    assert all(call[-2:] == ["--zone=us-east5-b", "--project=p"] for call in calls)
    assert [call[3:5] for call in calls] == [
        ["describe", "pod"],
        ["create", "pod"],
        ["scp", f"{fakes.log.parent}/rlhf_jax-pod.tar.gz"],
        *[["ssh", "pod"]] * 4,
    ]
    assert calls[1][5:8] == ["--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot"]
    assert [call[5] for call in calls[3:]] == ["--worker=all"] * 3 + ["--worker=0"]
    script = "rlhf_jax/launch/tpu_worker.sh"
    assert remote(calls[4]) == ["bash", script, "install"]
    assert remote(calls[5]) == ["bash", script, "start", *HARD]
    assert remote(calls[6]) == ["bash", script, "follow"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "logs pod --zone z --worker 3",
            "ssh pod --worker=3 '--command=bash rlhf_jax/launch/tpu_worker.sh follow'",
        ),
        ("stop pod --zone z", "ssh pod --worker=all '--command=bash rlhf_jax/launch/tpu_worker.sh stop'"),
        ("delete pod --zone z", "delete pod --quiet"),
    ],
)
def test_tpu_vm_other_commands(fakes, command, expected):
    printed = fakes.run("launch/tpu_vm.sh", *command.split(), "--dry_run")
    assert printed == f"gcloud compute tpus tpu-vm {expected} --zone=z\n"


@pytest.mark.parametrize(
    ("kind", "version"),
    [("v5p-8", "v2-alpha-tpuv5"), ("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_tpu_vm_software_for_the_type(fakes, kind, version):
    command = ("launch/tpu_vm.sh", "run", "pod", "--zone", "z", "--type", kind, "--dry_run", "--", "a")
    assert f" --accelerator-type={kind} --version={version} " in fakes.run(*command)
    assert " --version=mine " in fakes.run(*command[:-3], "--version", "mine", *command[-3:])


GKE = ("launch/gke_xpk.sh", "sft-7b", "--cluster", "c", "--type", "v6e-16", "--zone", "us-east5-b")


def test_gke(fakes):
    printed = fakes.run(*GKE, "--xpk", "--priority=high", "--xpk", "--env=A=b c", "--dry_run", "--", *HARD)
    fakes.add("xpk")
    paste(fakes, printed)
    (call,) = fakes.calls("xpk")
    staged = fakes.log.parent / "rlhf_jax-sft-7b"
    assert call[:-1] == [
        *("workload", "create", "--workload=sft-7b", "--cluster=c", "--zone=us-east5-b", "--tpu-type=v6e-16"),
        *("--base-docker-image=python:3.12", f"--script-dir={staged}", "--max-restarts=3"),
        *(
            "--restart-on-user-code-failure",
            "--termination-grace-period-seconds=180",
            "--priority=high",
            "--env=A=b c",
        ),
    ]
    install, _, program = call[-1].removeprefix("--command=").partition(" && ")
    assert install == "pip install --quiet -r requirements.txt 'jax[tpu]'"
    assert remote([f"--command={program}"]) == ["exec", "python", "-m", "rlhf_jax.main", *HARD]
    # What is packed is the checkout, and no more.
    assert (staged / "rlhf_jax/main.py").read_text() == (ROOT / "rlhf_jax/main.py").read_text()
    assert (staged / "configs/sft.py").exists()
    assert not [x for x in staged.iterdir() if x.name.startswith((".git/", ".venv")) or x.name == "runs"]
    assert not (staged / ".git").exists() and not list(staged.rglob("__pycache__"))


def test_gke_with_an_image(fakes):
    printed = fakes.run(
        *GKE, "--project", "p", "--image", "gcr.io/p/mine:1", "--restarts", "0", "--dry_run", "--", *HARD
    )
    fakes.add("xpk")
    paste(fakes, printed)
    (call,) = fakes.calls("xpk")
    assert "--docker-image=gcr.io/p/mine:1" in call and "--project=p" in call and "--max-restarts=0" in call
    assert remote(call) == ["exec", "python", "-m", "rlhf_jax.main", *HARD]
    assert not fakes.calls("tar") and "--script-dir" not in printed


@pytest.mark.parametrize("command", [TPU, GKE])
def test_a_dry_run_needs_no_program_and_starts_none(fakes, command):
    for name in ("gcloud", "xpk", "tar", "rm", "mkdir"):
        fakes.add(name)
    fakes.run(*command, "--dry_run", "--", *HARD)
    assert not fakes.log.exists()
