"""AlpacaEval's leaderboard CSV files, read row by row and checked: some published rows have swapped columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.errors import UserError

_PERCENT = ("win_rate", "standard_error", "discrete_win_rate", "length_controlled_winrate")
_COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length")


@dataclass(frozen=True)
class PublishedRow:
    """One model's published numbers: percent, counts and characters; None where the file has none.

    judge and baseline are "" where the file does not say: AlpacaEval's files carry them in their path only.
    """

    method: str
    win_rate: float
    standard_error: float | None = None
    n_wins: int | None = None
    n_wins_base: int | None = None
    n_draws: int | None = None
    n_total: int | None = None
    discrete_win_rate: float | None = None
    avg_length: int | None = None
    length_controlled_winrate: float | None = None
    judge: str = ""
    baseline: str = ""

    def numbers(self) -> dict[str, float]:
        """Those of a `WinRate`'s fields that were published."""
        names = (*_PERCENT[:3], *_COUNTS[:4])
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def read_published(path: str | Path) -> dict[str, PublishedRow]:
    """Rows by model name, in the order of the file.

    Takes AlpacaEval's files, whose first column has no name, and files with a column `method`; further
    columns are left alone. Raises UserError naming the row when a number is none or out of its range.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            name = "method" if "method" in (reader.fieldnames or ()) else ""
            if not {name, "win_rate"} <= set(reader.fieldnames or ()):
                columns = ", ".join(map(repr, reader.fieldnames or ()))
                raise UserError(f"{path}: no leaderboard: it needs a name and win_rate, it has {columns}")
            rows = [_row(record, record[name], path) for record in reader if record["win_rate"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error}); give a leaderboard's path") from None
    return {row.method: row for row in rows}


def _row(record: Mapping[str, str], name: str, path: str | Path) -> PublishedRow:
    values: dict[str, float | int] = {}
    for column in (*_PERCENT, *_COUNTS):
        text = (record.get(column) or "").strip()
        if text:
            values[column] = _number(text, column, f"{path}: {name}")
    if "win_rate" not in values:
        raise UserError(f"{path}: {name}: win_rate is missing; remove the row or give its number")
    return PublishedRow(
        name, judge=record.get("judge") or "", baseline=record.get("baseline") or "", **values
    )


def _number(text: str, column: str, where: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    high = 100 if column in _PERCENT else math.inf
    if not 0 <= value <= high or (column in _COUNTS and value != int(value)):
        kind = "a percentage in [0, 100]" if column in _PERCENT else "a count"
        raise UserError(f"{where}: {column}: found {text!r}, not {kind}; are its columns swapped?")
    return int(value) if column in _COUNTS else value
