"""Measures of judgments that exist already: agreement, reliability, consistency, rankings of models."""

from rlhf_jax.jobs.measure.measure_job import NEEDS as NEEDS
from rlhf_jax.jobs.measure.measure_job import run as run
