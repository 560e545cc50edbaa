"""Holds a study's results against what others have published of the same experiment."""

from rlhf_jax.jobs.compare.compare_job import NEEDS as NEEDS
from rlhf_jax.jobs.compare.compare_job import run as run
