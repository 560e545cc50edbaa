"""TRL's trainers with padding_free: the rows of a batch lie behind one another in one row without padding."""

from __future__ import annotations

from session import Job, Session

from contestants import trl_trainers


def run(job: Job, session: Session) -> None:
    trl_trainers.run(job, session, padding_free=True)
