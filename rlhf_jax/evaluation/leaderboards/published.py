"""Reads leaderboards that others published, AlpacaEval's CSV files and our own, and checks every row.

The check is needed because some published rows have their columns swapped.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.length_control import LengthControlled
from rlhf_jax.evaluation.measures.win_rate import WinRate, wilson_interval

# The one column that our own CSV names differently from AlpacaEval's.
_OURS = {"length_controlled": "length_controlled_winrate"}
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
    judge_id: str = ""
    baseline: str = ""

    def numbers(self) -> dict[str, float]:
        """The published values among the fields of a `WinRate`, by name."""
        names = (*_PERCENT[:3], *_COUNTS[:4])
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def row(self) -> LeaderboardRow:
        """Convert to a row of our leaderboard; what was not published is NaN or None there.

        Raises UserError when the row does not say by how many labels, which judge and which baseline.
        """
        unsaid = [name for name in ("n_total", "judge", "baseline") if not getattr(self, name)]
        if unsaid:
            raise UserError(
                f"{self.method}: {unsaid[0]} is not given; numbers without it do not compare: add the column"
            )
        rate = WinRate(
            win_rate=self.win_rate,
            standard_error=math.nan if self.standard_error is None else self.standard_error,
            # Nobody publishes intervals. Wilson's needs only rate and n, so it can be given as for our own
            # rows.
            interval=wilson_interval(self.win_rate / 100, self.n_total),
            n_wins=self.n_wins,
            n_wins_base=self.n_wins_base,
            n_draws=self.n_draws,
            n_total=self.n_total,
            # How many rows had no label is not published.
            n_missing=0,
            discrete_win_rate=self.discrete_win_rate,
        )
        # Only the rate is published: errors are unknown, and there are no weights of a fit.
        controlled = None
        if (value := self.length_controlled_winrate) is not None:
            controlled = LengthControlled(value, math.nan, math.nan, {}, self.n_total, 0, 0, rate, False)
        return LeaderboardRow(
            self.method,
            self.judge,
            self.baseline,
            rate,
            self.avg_length,
            self.n_total,
            judge_id=self.judge_id,
            length_controlled=controlled,
        )


def read_published(path: str | Path) -> dict[str, PublishedRow]:
    """Read a leaderboard into rows by model name, in the order of the file.

    Takes AlpacaEval's files, whose first column has no name, and our own with a column `method`; further
    columns are left alone. Raises UserError naming the row when a number is none or out of its range.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            name = "method" if "method" in (reader.fieldnames or ()) else ""
            if not {name, "win_rate"} <= set(reader.fieldnames or ()):
                columns = ", ".join(map(repr, reader.fieldnames or ()))
                raise UserError(f"{path}: no leaderboard: it needs a name and win_rate, it has {columns}")
            # Our own files list the baseline and the methods not judged with an empty win rate: skip them.
            rows = [_row(record, record[name], path) for record in reader if record["win_rate"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error}); give a leaderboard's path") from None
    return {row.method: row for row in rows}


def _row(record: Mapping[str, str], name: str, path: str | Path) -> PublishedRow:
    values: dict[str, float | int] = {}
    record = {_OURS.get(name, name): value for name, value in record.items()}
    for column in (*_PERCENT, *_COUNTS):
        text = (record.get(column) or "").strip()
        if text:
            values[column] = _number(text, column, f"{path}: {name}")
    if "win_rate" not in values:
        raise UserError(f"{path}: {name}: win_rate is missing; remove the row or give its number")
    said = {column: record.get(column) or "" for column in ("judge", "judge_id", "baseline")}
    return PublishedRow(name, **said, **values)


def _number(text: str, column: str, where: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # A swapped column shows only in its value: a length where a rate should be, a fraction where a count
    # should be.
    high = 100 if column in _PERCENT else math.inf
    if not 0 <= value <= high or (column in _COUNTS and value != int(value)):
        kind = "a percentage in [0, 100]" if column in _PERCENT else "a count"
        raise UserError(f"{where}: {column}: found {text!r}, not {kind}; are its columns swapped?")
    return int(value) if column in _COUNTS else value
