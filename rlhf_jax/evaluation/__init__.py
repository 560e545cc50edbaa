"""Win rates, agreement, leaderboard, report. Never imports jax."""
