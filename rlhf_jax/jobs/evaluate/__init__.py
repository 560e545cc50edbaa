"""The leaderboard of several methods' outputs: judged, measured, set beside the truth, and told as a report."""

from rlhf_jax.jobs.evaluate.leaderboard_job import NEEDS as NEEDS
from rlhf_jax.jobs.evaluate.leaderboard_job import run as run
