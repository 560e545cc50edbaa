"""The jobs on two processes: the same numbers as on one, and nobody waits for a process that failed."""

import shutil
import socket
import time
from pathlib import Path

import pytest
import run_jobs
import tiny_farm
from safetensors.numpy import load_file

from rlhf_jax.data.records import read_table

pytestmark = pytest.mark.timeout(900)
HERE = Path(__file__).parent


def start_two(*command, cwd=(), **changes):
    """Starts `python COMMAND` in two processes that know each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ours = {"RLHF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLHF_JAX_NUM_PROCESSES": "2"} | changes
    folders = cwd or (tiny_farm.ROOT,) * 2
    return [
        tiny_farm.start([*map(str, command)], cwd=folders[i], **ours, RLHF_JAX_PROCESS_ID=str(i))
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def both(farm, tmp_path_factory):
    """Folders of the same jobs on one process and on two."""
    folder = tmp_path_factory.mktemp("processes")
    script = HERE / "run_jobs.py"
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # halves the time of compiling
    runs = [
        tiny_farm.start([str(script), str(farm), str(folder / "one")], **quick),
        *start_two(script, farm, folder / "two", **quick),
    ]
    outs = [tiny_farm.finish(run) for run in runs]
    assert "data.train" in outs[1] and "data.train" not in outs[2]  # process 0 talks
    return folder / "one", folder / "two"


@pytest.mark.parametrize("job", tiny_farm.TRAINERS)
def test_two_processes_train_as_one(both, job):
    one, two = (tiny_farm.rows(folder / job) for folder in both)
    steps = [row["step"] for row in one]
    assert [row["step"] for row in two] == steps
    assert {step for step in steps if steps.count(step) == 2} == {2, run_jobs.STEPS}  # the evaluations
    for a, b in zip(two, one, strict=True):
        assert a.pop("sampling/logp_difference", 0) < 1e-5 > b.pop("sampling/logp_difference", 0)
        assert a == pytest.approx(b, rel=1e-5, abs=5e-6)
    weights = [load_file(folder / job / "export/model.safetensors") for folder in both]
    for name, x in weights[0].items():
        assert weights[1][name] == pytest.approx(x, rel=1e-4, abs=1e-5), name


def test_two_processes_sample_and_score_as_one(both):
    one, two = (read_table(folder / "generate/outputs.parquet") for folder in both)
    assert one == two
    assert len({row["output"] for row in one}) > 5
    one, two = (read_table(folder / "score/scores.parquet") for folder in both)
    assert [row["responses"] for row in one] == [row["responses"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert b["scores"] == pytest.approx(a["scores"], rel=1e-5, abs=5e-6)


@pytest.mark.parametrize("failing", [0, 1])
def test_nobody_waits_for_a_process_that_failed(farm, tmp_path, failing):
    """One of two machines lacks the data; the other has gone on and waits for it in a collective."""
    there = [tmp_path / "machine_0", tmp_path / "machine_1"]
    for i, folder in enumerate(there):
        folder.mkdir()
        if i != failing:
            shutil.copy(farm / "data/sft.parquet", folder / "mine.parquet")
    command = tiny_farm.arguments("sft", farm, tmp_path / "run", **{"data.train": "mine.parquet"})
    runs = start_two("-m", "rlhf_jax.main", *command, cwd=there)
    lines = tiny_farm.finish(runs[failing], status=2).splitlines()
    ended = time.monotonic()
    assert lines[-1].startswith("error: mine.parquet: no such file")
    other = tiny_farm.finish(runs[1 - failing], status=3).splitlines()
    assert other[-1].startswith(f"error: process {failing} failed: mine.parquet: no such file")
    assert "Traceback" not in "".join(lines + other)
    assert time.monotonic() - ended < 10
