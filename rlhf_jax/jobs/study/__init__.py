"""A study: stages that a page lists, each a method or a job, run in order in folders below one workdir."""

from rlhf_jax.jobs.study.study_job import NEEDS as NEEDS
from rlhf_jax.jobs.study.study_job import run as run
