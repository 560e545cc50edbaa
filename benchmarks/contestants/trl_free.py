"""TRL's trainers with padding_free: the rows of a batch lie behind one another in one row without padding."""

from __future__ import annotations

from session import Job, Session

from contestants import trl_trainers


def run(job: Job, session: Session) -> None:
    # It refuses a length that it would have to cut to; no row is longer than that.
    trl_trainers.run(job, session, padding_free=True, max_length=None)
