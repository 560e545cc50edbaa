"""The jobs on two processes: the same numbers as on one, and nobody waits for a process that failed.

RLHF_JAX_WIDE=1 runs them on four processes too, on eight devices in three meshes, and kills and moves them.
"""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import quick
import run_jobs
import tiny_farm
from safetensors.numpy import load_file
from same_runs import assert_same_curve
from wide import wide

from rlhf_jax.data.records.records import read_table

pytestmark = pytest.mark.timeout(900)
HERE = Path(__file__).parent
SCRIPT = HERE / "run_jobs.py"
# Eight devices on a few cores reach a collective seconds apart; XLA gives up on those that take 40.
EIGHT = (
    f"{quick.EIGHT} "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_collective_timeout_seconds=600"
)
ELSEWHERE = ["two processes"] + [
    pytest.param(name, marks=wide) for name in ("four processes", "8,1,1", "1,8,1", "2,2,2")
]


@pytest.fixture(scope="module")
def alone(farm, tmp_path_factory):
    """The folder of the jobs on one process and device."""
    folder = tmp_path_factory.mktemp("alone")
    out = tiny_farm.finish(tiny_farm.start([str(SCRIPT), str(farm), str(folder)], XLA_FLAGS=quick.QUICK))
    assert "data.train" in out
    return folder


def start_jobs(where, farm, folder, *jobs):
    """Starts jobs on what `where` names."""
    if "," in where:
        return [tiny_farm.start([*map(str, (SCRIPT, farm, folder, where, *jobs))], XLA_FLAGS=EIGHT)]
    count = {"two": 2, "four": 4}[where.split()[0]]
    return tiny_farm.start_several(count, SCRIPT, farm, folder, f"1,{count},1", *jobs, XLA_FLAGS=quick.QUICK)


@pytest.fixture(scope="module", params=ELSEWHERE)
def elsewhere(request, farm, tmp_path_factory):
    """The folder of the same jobs on several processes or devices."""
    folder = tmp_path_factory.mktemp("elsewhere")
    outs = [tiny_farm.finish(run) for run in start_jobs(request.param, farm, folder)]
    assert "data.train" in outs[0] and not any("data.train" in out for out in outs[1:])  # process 0 talks
    return folder


@pytest.mark.parametrize("job", [job for job in run_jobs.JOBS if job not in ("generate", "score")])
def test_elsewhere_trains_as_one(elsewhere, alone, job):
    assert_same_curve(*map(tiny_farm.rows, (elsewhere / job, alone / job)))
    steps = [row["step"] for row in tiny_farm.rows(alone / job)]
    assert {step for step in steps if steps.count(step) == 2} == {2, run_jobs.STEPS}  # the evaluations
    weights = [load_file(folder / job / "export/model.safetensors") for folder in (alone, elsewhere)]
    for name, x in weights[0].items():
        assert weights[1][name] == pytest.approx(x, rel=1e-4, abs=1e-5), name


def test_elsewhere_samples_and_scores_as_one(elsewhere, alone):
    one, two = (read_table(folder / "generate/outputs.parquet") for folder in (alone, elsewhere))
    assert one == two
    assert len({row["output"] for row in one}) > 5
    one, two = (read_table(folder / "score/scores.parquet") for folder in (alone, elsewhere))
    assert [row["responses"] for row in one] == [row["responses"] for row in two]
    for a, b in zip(one, two, strict=True):
        there = [i for i, score in enumerate(a["scores"]) if score is not None]  # null: the response was cut
        assert there == [i for i, score in enumerate(b["scores"]) if score is not None]
        assert [b["scores"][i] for i in there] == pytest.approx(
            [a["scores"][i] for i in there], rel=1e-5, abs=5e-6
        )


def test_text_for_a_reward_model_is_encoded_elsewhere_as_on_one(elsewhere, alone):
    one, two = (np.load(folder / "text_scores.npy") for folder in (alone, elsewhere))
    assert np.isfinite(one).all() and np.ptp(one) > 0.1
    np.testing.assert_allclose(two, one, atol=1e-5)


@wide
@pytest.mark.parametrize("job", tiny_farm.TRAINERS)
def test_killed_on_one_and_resumed_on_others(alone, farm, tmp_path, job):
    """Killed after its first checkpoint on eight devices, finished by four processes: the curve of one."""
    saved = tmp_path / job / "checkpoints" / "2"
    (run,) = start_jobs("2,2,2", farm, tmp_path, job)
    while not saved.exists() and run.poll() is None:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert [row["step"] for row in tiny_farm.rows(tmp_path / job)][-1] <= run_jobs.STEPS
    outs = [tiny_farm.finish(run) for run in start_jobs("four processes", farm, tmp_path, job)]
    assert "continuing" in outs[0]
    assert_same_curve(*map(tiny_farm.rows, (tmp_path / job, alone / job)))


def test_machines_with_other_code_do_not_train_together(farm, tmp_path):
    """The second machine's checkout has one line more. `-m` takes the package of the working folder."""
    for name in ("rlhf_jax", "configs"):
        shutil.copytree(tiny_farm.ROOT / name, tmp_path / "checkout" / name)
    with (tmp_path / "checkout/rlhf_jax/training/loop/step.py").open("a") as file:
        file.write("# newer\n")
    command = tiny_farm.arguments("sft", farm, tmp_path / "run")
    runs = tiny_farm.start_several(
        2, "-m", "rlhf_jax.main", *command, cwd=(tiny_farm.ROOT, tmp_path / "checkout")
    )
    for run in runs:
        said = tiny_farm.finish(run, status=2).splitlines()[-1]
        assert said.startswith("error: rlhf_jax's code: process 0 has ") and "Traceback" not in said


@pytest.mark.parametrize("failing", [0, 1])
def test_nobody_waits_for_a_process_that_failed(farm, tmp_path, failing):
    """One of two machines lacks the data; the other has gone on and waits for it in a collective."""
    there = [tmp_path / "machine_0", tmp_path / "machine_1"]
    for i, folder in enumerate(there):
        folder.mkdir()
        if i != failing:
            shutil.copy(farm / "data/sft.parquet", folder / "mine.parquet")
    command = tiny_farm.arguments("sft", farm, tmp_path / "run", **{"data.train": "mine.parquet"})
    runs = tiny_farm.start_several(2, "-m", "rlhf_jax.main", *command, cwd=there)
    lines = tiny_farm.finish(runs[failing], status=2).splitlines()
    ended = time.monotonic()
    assert lines[-1].startswith("error: data.train: mine.parquet: no such file")
    other = tiny_farm.finish(runs[1 - failing], status=3).splitlines()
    assert other[-1].startswith(f"error: process {failing} failed: data.train: mine.parquet: no such file")
    assert "Traceback" not in "".join(lines + other)
    assert time.monotonic() - ended < 10
