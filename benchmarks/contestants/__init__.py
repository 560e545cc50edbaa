"""The contestants: each module has `run(job, session)` and lives in its own environment."""
