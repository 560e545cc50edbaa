"""Reads what a file says about its labels: who gave one, how sure, how strong a preference is, a rating."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_jax.data.records.left_out import LeftOut, RowError, UsedColumns
from rlhf_jax.data.records.records import USABLE_STATUS, Row, Source, read_instructions
from rlhf_jax.data.records.row_parts import missing

# Columns with a place between two outputs, of which the distance from the middle is the strength.
_PLACES = {"preference": 1.5, "p_2": 0.5}


def about_label(row: UsedColumns) -> Row:
    """Who gave a pair's label, `annotator` ("" where the row does not say), and how sure: `confidence`, NaN likewise.

    Confidence is the judge's probability of the side it took, in [0.5, 1]: of `p_2` where the file has it, else of a
    preference between 1 and 2. A label of noise is no annotator's, and gets the name "label noise".
    """
    if row.get("status") == "noise":
        return {"annotator": "label noise", "confidence": math.nan}
    who = row.get("annotator")
    sure = [
        0.5 + abs(row[name] - middle)
        for name, middle in (("p_2", _PLACES["p_2"]), ("preference", _PLACES["preference"]))
        if _is_number(row.get(name)) and abs(row[name] - middle) <= 0.5
    ]
    # A whole preference, 1 or 2, does not say how sure the annotator was.
    known = bool(sure) and (_is_number(row.get("p_2")) or sure[0] < 1)
    return {"annotator": who if isinstance(who, str) else "", "confidence": sure[0] if known else math.nan}


def with_margin(column: str) -> Callable[[UsedColumns], Row]:
    """Reads what `about_label` reads and the `margin` of a pair from `column`, a number of at least 0.

    Of `preference` and `p_2` it is the strength of the label: 0 for a tie, 1 for a label without doubt.
    """
    return partial(_labelled, column)


def _labelled(column: str, row: UsedColumns) -> Row:
    value = row.get(column)
    if not _is_number(value):
        raise RowError(f"{column} is {'missing' if missing(value) else 'not a number'}")
    margin = 2 * abs(value - _PLACES[column]) if column in _PLACES else value
    if margin < 0:
        raise RowError(f"{column} is below 0")
    return about_label(row) | {"margin": float(margin)}


def read_rated(
    source: Source, *, low: float, high: float, whole: bool, made_by: str = "", chat: bool = False
) -> tuple[list[Row], LeftOut]:
    """Reads rated responses: rows of `read_instructions`, each with its `rating` in `beside`.

    Left out and counted: rows without a rating, with one off the scale from `low` to `high` or (whole) between two of
    its levels, and those whose status is not a usable label. Several ratings of one response are several rows.
    """

    def rating(row: UsedColumns) -> Row:
        if "status" in row and row.get("status") not in USABLE_STATUS:
            raise RowError(f"status={row.get('status') or 'missing'}")
        value = row.get("rating")
        if not _is_number(value):
            raise RowError(f"rating is {'missing' if missing(value) else 'not a number'}")
        if not low <= value <= high:
            raise RowError(f"rating out of [{low:g}, {high:g}]")
        if whole and (value - low) % 1:
            raise RowError("rating between two levels")
        who = row.get("annotator")
        return {"rating": float(value), "annotator": who if isinstance(who, str) else ""}

    return read_instructions(source, made_by=made_by, chat=chat, beside=rating)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
