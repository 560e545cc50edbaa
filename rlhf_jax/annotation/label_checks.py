"""Whether a row's label is one: rows also come from files, where a status may stand beside a number that is none."""

from collections.abc import Mapping

from rlhf_jax.annotation.answers import LABELLED
from rlhf_jax.annotation.contracts import PAIRWISE, RANKING, RATING, is_number
from rlhf_jax.errors import UserError


class NothingToWriteError(UserError):
    """No row has what a format needs. What was labelled is kept; there is just no such file to make of it."""


def is_labelled(row: Mapping) -> bool:
    """Whether the row carries a label that can be counted on: a preference in [1, 2], a rating, or all ranks."""
    if row["status"] not in LABELLED:
        return False
    if row["kind"] == PAIRWISE:
        return is_number(row["preference"]) and 1 <= row["preference"] <= 2
    if row["kind"] == RATING:
        return is_number(row["rating"])
    if row["kind"] == RANKING:
        return all(is_number(one["rank"]) for one in row["completions"])
    return True
