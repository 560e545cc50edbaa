"""Labelling and evaluating need only requirements-annotation.txt, which is a part of requirements.txt."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from annotation_helpers import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is not in requirements-annotation.txt")
sys.meta_path.insert(0, Only())
importlib.import_module(f"rlhf_jax.jobs.{sys.argv[2]}")
"""


def names(file):
    lines = (ROOT / file).read_text().splitlines()
    return {re.match(r"[\w.-]+", line)[0]: line for line in lines if line and line[0] != "#"}


def test_it_is_a_part_of_the_requirements():
    part, whole = names("requirements-annotation.txt"), names("requirements.txt")
    assert {name: whole.get(name) for name in part} == part
    assert not {"jax", "flax", "optax", "orbax-checkpoint", "transformers"} & set(part)


@pytest.mark.parametrize("job", ["annotate", "evaluate", "measure"])
def test_the_jobs_import_nothing_else(job):
    absent = set(names("requirements.txt")) - set(names("requirements-annotation.txt"))
    denied = ",".join(sorted({name.replace("-checkpoint", "") for name in absent} | {"torch", "jaxlib"}))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, denied, job],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
