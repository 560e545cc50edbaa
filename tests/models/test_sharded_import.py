"""Import onto a mesh, and what it takes of the host's memory. Each check needs a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from quick import EIGHT

HERE = Path(__file__).parent


def run(check, folder, **environment):
    """The output of one check of sharded_import.py."""
    paths = os.pathsep.join((str(HERE.parents[1]), str(HERE)))
    done = subprocess.run(
        [sys.executable, str(HERE / "sharded_import.py"), check, str(folder)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_parameters_are_cut_as_they_are_read_on_eight_devices(tmp_path):
    run("families", tmp_path, XLA_FLAGS=EIGHT)


def test_an_export_from_eight_devices_is_that_of_the_host(tmp_path):
    run("export", tmp_path, XLA_FLAGS=EIGHT)


def test_an_attention_kernel_on_eight_devices(tmp_path):
    run("attention", tmp_path, XLA_FLAGS=EIGHT)


def test_an_import_takes_the_parameters_own_memory_and_little_more(tmp_path):
    run("write_half", tmp_path)
    assert "peak" in run("memory", tmp_path, XLA_FLAGS="")
