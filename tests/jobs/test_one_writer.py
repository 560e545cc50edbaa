"""Two equal commands in one workdir: the second one leaves with a line, and the first one is not disturbed."""

import json
import os
import time

import pytest
import tiny_farm

from rlhf_jax import programs
from rlhf_jax.errors import UserError
from rlhf_jax.methods import sft
from rlhf_jax.programs import program
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.run import missing_inputs

HOST = ("annotate", "evaluate", "measure", "inspect_data", "make_data", "weight_diff")


@pytest.mark.parametrize("job", HOST)
def test_jobs_of_the_host_do_not_write_where_another_job_runs(tmp_path, job, monkeypatch):
    """Nor its config.json; but what another process waits for can be cancelled. Their inputs are not looked for."""
    monkeypatch.setattr(missing_inputs, "check_needs", lambda *_: None)
    parent = {"process": os.getppid(), "started": lock._started(os.getppid()), "folder": str(tmp_path)}
    (tmp_path / "lock.json").write_text(json.dumps(lock._myself() | parent))
    changes = {"instructions": f"{tmp_path}/gone.jsonl"} if job == "make_data" else {}
    run, page = program(job).run, tiny_farm.settings(job, tmp_path, **changes)
    with pytest.raises(UserError, match=f"^workdir: {tmp_path} is in use by process {os.getppid()} on "):
        run(page, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
    if "transport" in page:
        page.transport = "cancel"
        run(page, str(tmp_path))
    (tmp_path / "lock.json").unlink()
    with pytest.raises(UserError):  # for want of its inputs
        run(tiny_farm.settings(job, tmp_path, **changes), str(tmp_path))
    assert (tmp_path / "config.json").exists() and not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("job", [job for job in programs.names() if job not in HOST])
def test_every_other_job_gives_its_workdir_back(job):
    assert program(job).run.__wrapped__


def test_the_second_of_two_equal_runs_is_refused(farm, tmp_path, capsys):
    """One in a process of its own, the other in this one, which needs no time to start."""
    run = tmp_path / "run"
    first = tiny_farm.start(["-m", "rlhf_jax.main", *tiny_farm.arguments("sft", farm, run)])
    until = time.monotonic() + 200
    while not (run / "lock.json").exists():
        assert time.monotonic() < until and first.poll() is None, "it never took its workdir"
        time.sleep(0.05)
    with pytest.raises(UserError, match=f"^workdir: {run} is in use by process {first.pid} on "):
        sft.run(tiny_farm.settings("sft", farm), str(run))
    tiny_farm.finish(first)
    assert (run / "export" / "config.json").exists() and not (run / "lock.json").exists()
    sft.run(tiny_farm.settings("sft", farm), str(run))
    assert "continuing" in capsys.readouterr().out
