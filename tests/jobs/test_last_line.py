"""A run that cannot go on says why in one line, and nothing stands before or behind it."""

import os
import subprocess
import sys

import pytest
import tiny_farm

from rlhf_jax import programs
from rlhf_jax.errors import UserError, problem_of_machine
from rlhf_jax.settings import load_page
from rlhf_jax.training.checkpoints import object_stores
from rlhf_jax.training.run import missing_inputs


def errors(command, cache, *, file_kib=0):
    """What a command says on stderr; it must end with status 2."""

    limited = ["bash", "-c", 'ulimit -f "$0" && exec "$@"', str(file_kib)] if file_kib else []
    env = {**os.environ, "PYTHONPATH": str(tiny_farm.ROOT), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [*limited, sys.executable, "-m", "rlhf_jax.main", *command],
        cwd=tiny_farm.ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()


def test_a_checkpoint_that_does_not_fit(farm, tmp_path):
    """Orbax logs the failure of every array, several threads at a time, before it raises it."""
    command = tiny_farm.arguments("sft", farm, tmp_path / "run", epochs=0.04, save_every=1)
    lines = errors(command, tmp_path / "cache", file_kib=24)
    assert len(lines) == 1, lines
    assert lines[0].startswith(
        f"error: {tmp_path}/run/checkpoints: checkpoint 1 could not be written: File too large"
    )


def test_what_is_not_installed_is_said_first(farm, tmp_path, monkeypatch):
    monkeypatch.setattr(missing_inputs, "find_spec", lambda _: None)
    for field, value in (("tensorboard", True), ("wandb_project", "x")):
        config = tiny_farm.settings("sft", farm, **{field: value})
        with pytest.raises(UserError, match=rf"^{field}: \w+ is not installed; run pip install "):
            missing_inputs.check_needs(programs.program(config.job).NEEDS, config, str(tmp_path))
        with pytest.raises(UserError, match=rf"^{field}: it cannot write to gs://a"):
            monkeypatch.setattr(object_stores, "check_reachable", lambda _: None)
            missing_inputs.check_needs(programs.program(config.job).NEEDS, config, "gs://a/b")


def test_what_a_job_reads_is_looked_for_by_the_names_of_its_page():
    for job in programs.names():
        needs = programs.program(job).NEEDS
        rows = needs.reads
        if job == "study":  # Its stages' pages are those of the other jobs.
            continue
        fields = {row.field for row in rows} | set(needs.writes)
        pages = [load_page(f"{tiny_farm.ROOT}/configs/{name}.py") for name in tiny_farm.pages_of(job)]
        assert fields <= {name for page in pages for name in tiny_farm.flat(page)}
        for page in pages:
            named = {
                name for name, value in tiny_farm.flat(page).items() if str(value).startswith("runs/farm/")
            }
            assert named <= fields, job


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "x"), "No space left on device; free space there, then give the same command again"),
        (OSError(28, "x", "a/b"), "a/b: No space left on device; free space there"),
        (PermissionError(13, "x", "a"), "a: Permission denied"),
        (OSError(36, "x", "a"), "a: File name too long"),
        (ValueError("RESOURCE_EXHAUSTED: ... [os_error_code='28']"), "No space left on device; free"),
        (RuntimeError("Io Error: No space left on device (os error 28)"), "No space left on device; free"),
        (RuntimeError("database or disk is full"), "No space left on device; free"),
        (ConnectionRefusedError(111, "x"), None),
        (ValueError("28"), None),
        (KeyError("errno"), None),
    ],
)
def test_what_is_the_machines_and_what_is_not(error, told):
    said = problem_of_machine(error)
    assert (said is None) if told is None else said.startswith(told)
    wrapped = RuntimeError("saving")
    wrapped.__cause__ = error
    assert problem_of_machine(wrapped) == said
