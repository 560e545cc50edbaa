"""Reads the rows of label files of any origin: checks them, counts what cannot be used, joins labels of one pair."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.annotation.answers.answers import LABELLED
from rlhf_jax.annotation.parsing.contracts import PAIRWISE
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.pair_order import OneWay, Pair, one_way_round, pair_of
from rlhf_jax.evaluation.measures.win_rate import read_preferences

OUTPUTS = ("output_1", "output_2")


class Usable(NamedTuple):
    """The usable rows of a label file.

    rows: with text where text belongs and a preference in [1, 2] or None. left_out: reason -> rows.

    unread: rows whose preference stands beside a status that is none of a label, and counts as missing.
    """

    rows: list[dict]
    left_out: dict[str, int]
    unread: int = 0

    def line(self, source: str) -> str:
        """Says how many rows can be used, and why others cannot; "" when all can."""
        reasons = ", ".join(f"{n} {why}" for why, n in self.left_out.items())
        said = f"left out: {reasons}" if reasons else ""
        if self.unread:
            beside = f"{self.unread} preferences beside a status that is no label's count as missing"
            said = f"{said}; {beside}" if said else beside
        return f"{source}: {len(self.rows)} rows used; {said}" if said else ""


def usable_labels(rows: Iterable[Mapping], source: str, texts: Sequence[str] = OUTPUTS) -> Usable:
    """Returns the pairwise rows of a label file whose `instruction` and `texts` are text.

    A preference that is null, NaN or -1, or beside a status that is none of a label, is None; 0 is a draw, as in
    AlpacaEval's old files.
    Errors: UserError for a preference outside [1, 2], for 0 and 1 as the names of the sides, or when nothing is left.
    """
    kept: list[dict] = []
    left_out: Counter = Counter()
    unread = 0
    for i, row in enumerate(rows):
        reason = _unusable(row, texts)
        if reason:
            left_out[reason] += 1
            continue
        given = row.get("preference")
        # A judge that failed may have left a value; only a status
        # of success makes it a label. NaN is not equal to itself.
        if row.get("status", LABELLED[0]) not in LABELLED:
            unread += given is not None and given == given
            given = None
        label = read_preferences([given], f"{source}: row {i + 1}: preference")[0]
        input_text = row.get("input") if isinstance(row.get("input"), str) else ""
        kept.append({**row, "input": input_text, "preference": None if math.isnan(label) else float(label)})
        # Kept beside the row until all are read: `read_preferences` has turned 0 into 1.5, and whether 0 is a
        # draw is decided by the whole column.
        kept[-1]["_given"] = given
    _check_sides([row.pop("_given") for row in kept], source)
    if not kept:
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "it has no rows"
        raise UserError(f"{source}: no row is a labelled pair ({reasons}); give a file of pairwise labels")
    return Usable(kept, dict(left_out), unread)


def _unusable(row: Mapping, texts: Sequence[str]) -> str:
    if row.get("kind", PAIRWISE) != PAIRWISE:
        return "that are no pairs"
    for name in ("instruction", *texts):
        if not isinstance(row.get(name), str):
            found = "missing" if row.get(name) is None else f"{type(row[name]).__name__}, no text"
            return f"with {name} {found}"
    if (extra := wrong_input(row)) is not None:
        return extra
    preference = row.get("preference")
    if isinstance(preference, bool | str) or not isinstance(preference, int | float | None):
        return f"with a preference that is {type(preference).__name__}, no number"
    return ""


def wrong_input(row: Mapping) -> str | None:
    """Why a row's `input` cannot be used; None where it is text, or not there."""
    value = row.get("input")
    if value is None or isinstance(value, str) or value != value:
        return None
    return f"with input {type(value).__name__}, no text"


def _check_sides(given: Sequence[object], source: str) -> None:
    """0 is a draw in old files; where only 0 and 1 occur, both often, it is the first of two sides instead."""
    # -1 is how AlpacaEval marks a missing label.
    values = Counter(value for value in given if value is not None and value == value and value != -1)
    if len(given) > 1 and set(values) == {0, 1}:
        raise UserError(
            f"{source}: preference: only 0 and 1 occur ({values[0]} and {values[1]} times); 1 means that output_1 is "
            "better and 2 that output_2 is: add 1 if 0 stands for output_1, or write draws as 1.5"
        )


class Joined(NamedTuple):
    """A row for each pair; how many rows label a pair of another row; which of them stood the other way round."""

    rows: list[dict]
    n_joined: int
    one_way: OneWay

    def lines(self, source: str) -> list[str]:
        """Says how rows were joined; [] where every row is a pair of its own."""
        said = self.one_way.lines(source)
        # Which of two outputs is the model's is a matter of places, then.
        if self.one_way.n_turned and not any(row.get("generator_2") for row in self.rows):
            said.append(
                f"{source}: no generator_2 is named; output_2 is the model's as in the first row of a pair"
            )
        if self.n_joined:
            said.append(
                f"{source}: {self.n_joined} rows label a pair that another row labels, too; the mean is taken"
            )
        return said


def one_per_pair(rows: Sequence[Mapping]) -> Joined:
    """Joins the labels of each pair to their mean: of several judges, or of both orders, as two rows or as one."""
    one_way = one_way_round(rows, of_models=True)
    groups: dict[Pair, list[Mapping]] = defaultdict(list)
    for row in one_way.rows:
        groups[pair_of(row)].append(row)
    made = []
    for same in groups.values():
        labelled = [row for row in same if row["preference"] is not None]
        known = [row["preference"] for row in labelled]
        # fsum is exact, so the mean does not depend on the order of the rows.
        mean = math.fsum(known) / len(known) if known else None
        # What else is said of the pair, such as its status, is that of a label rather than of a failure before it.
        made.append({**(labelled or same)[0], "preference": mean})
    return Joined(made, len(rows) - len(made), one_way)
