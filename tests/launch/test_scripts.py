"""Every shell script: no finding of shellcheck, a usage text, and errors that name the argument and the fix."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_programs import ROOT

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("launch/*", "scripts/*.sh", "benchmarks/*.sh", ".ci/*")
    for path in ROOT.glob(pattern)
)
LAUNCHERS = ("launch/local.sh", "launch/slurm.sbatch", "launch/tpu_vm.sh", "launch/gke_xpk.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=places)
    assert shellcheck, "no shellcheck; pip install -r requirements-test.txt"
    found = subprocess.run([shellcheck, "--shell=bash", ROOT / script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stop_at_the_first_failure(script):
    assert "\nset -euo pipefail\n" in (ROOT / script).read_text()


@pytest.mark.parametrize("script", LAUNCHERS)
def test_usage(script, fakes):
    usage = fakes.run(script, "--help")
    assert f"bash {script}" in usage and "--dry_run" in usage and "set -e" not in usage and "#" not in usage
    assert usage.splitlines()[-1].endswith((".", "false"))  # nothing cut off
    assert fakes.run(script, status=2) == usage


TPU = "launch/tpu_vm.sh run x --zone z --type v6e-8"
GKE = "launch/gke_xpk.sh x --cluster c --type v6e-8 --zone z"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("launch/local.sh two", "error: N: 'two' is not a number of processes; use for example 2"),
        ("launch/local.sh 2 --devices", "error: --devices: '' is not a number; use for example --devices 1"),
        ("launch/local.sh 2 --gpus 0 -- a", "error: --gpus: '0' is not a number; use for example --gpus 1"),
        (
            "launch/local.sh 2 --gpus 1 --devices 1 -- a",
            "error: --gpus: cannot be given together with --devices",
        ),
        (
            "launch/local.sh 2 --config=a",
            "error: --config=a: not an option of local.sh; arguments of the program",
        ),
        (
            "launch/local.sh 2",
            "error: --: missing; the program's arguments stand after it, as in -- --config=",
        ),
        (
            "launch/local.sh 2 --",
            "error: --: missing; the program's arguments stand after it, as in -- --config=",
        ),
        (
            "launch/slurm.sbatch --nodes=2 -- a",
            "error: --nodes=2: not an option of slurm.sbatch; sbatch's own stand",
        ),
        ("launch/slurm.sbatch --dry_run", "error: --: missing; the program's arguments stand after it"),
        ("launch/slurm.sbatch -- a", "error: SLURM_JOB_ID: not set, this is no Slurm job; submit it: sbatch"),
        ("launch/tpu_vm.sh go", "error: go: not a command of tpu_vm.sh; use run, logs, stop or delete"),
        ("launch/tpu_vm.sh run --zone z", "error: NAME: missing; the name of the TPU VM stands after run"),
        ("launch/tpu_vm.sh stop x", "error: --zone: missing; use for example --zone us-east5-b"),
        ("launch/tpu_vm.sh stop x --zone --dry_run", "error: --zone: a value is missing after it"),
        (
            "launch/tpu_vm.sh stop x --zone z -- a",
            "error: --: stop takes no arguments for the program; leave it out",
        ),
        ("launch/tpu_vm.sh run x --zone z -- a", "error: --type: missing; use for example --type v6e-8"),
        (
            "launch/tpu_vm.sh run x --zone z --type v9-8 -- a",
            "error: --type: the software for 'v9-8' is not known",
        ),
        (TPU, "error: --: missing; the program's arguments stand after it"),
        (f"{TPU} --wait -- a", "error: --wait: not an option of tpu_vm.sh"),
        (f"{TPU} -- a", "error: gcloud: not found; see https://"),
        (
            "launch/gke_xpk.sh Big_One -- a",
            "error: NAME: 'Big_One' is no workload name; use up to 39 lower-case",
        ),
        (
            "launch/gke_xpk.sh x --type v6e-8 --zone z -- a",
            "error: --cluster: missing; the name of the GKE cluster",
        ),
        (
            "launch/gke_xpk.sh x --cluster c --zone z -- a",
            "error: --type: missing; use for example --type v6e-8",
        ),
        ("launch/gke_xpk.sh x --cluster c --type v6e-8 -- a", "error: --zone: missing; use for example"),
        (
            f"{GKE} --xpk -- a",
            "error: --xpk: an option of xpk is missing after it, as in --xpk --priority=high",
        ),
        (
            f"{GKE} --restarts many -- a",
            "error: --restarts: 'many' is not a number; use for example --restarts 3",
        ),
        (
            f"{GKE} --spot -- a",
            "error: --spot: not an option of gke_xpk.sh; arguments of the program stand after --",
        ),
        (f"{GKE} -- a", "error: xpk: not found; install it: pip install xpk"),
    ],
)
def test_errors_name_the_argument_and_the_fix(command, error, fakes):
    fakes.environment["PATH"] = str(fakes.folder)  # here is neither gcloud nor xpk
    for name in ("bash", "dirname", "sed"):
        fakes.folder.joinpath(name).symlink_to(shutil.which(name))
    fakes.environment["PYTHON"] = sys.executable
    out = fakes.run(*command.split(), status=2)
    assert out.startswith(error) and out.count("\n") == 1, out
