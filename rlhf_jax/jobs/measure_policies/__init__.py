"""Policies side by side: what each says, and what others say of it."""

from rlhf_jax.jobs.measure_policies.policies_job import NEEDS as NEEDS
from rlhf_jax.jobs.measure_policies.policies_job import run as run
