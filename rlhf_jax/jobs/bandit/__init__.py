"""A bandit: what a weak student reaches by feedback on its own samples, and by imitating a strong teacher's."""

from rlhf_jax.jobs.bandit.bandit_job import NEEDS as NEEDS
from rlhf_jax.jobs.bandit.bandit_job import run as run
