"""Labels of one pair of outputs that stand in either order: one way round for all of them.

A row is instruction, input, output_1, output_2, preference, and generators where they are known. The label of a pair
the other way round is 3 - preference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.evaluation.measures.win_rate import read_preferences

Pair = tuple[str, str, str, str]

_OTHER_SIDE = {"output_1": "output_2", "output_2": "output_1"}
_OTHER_NAME = {"generator_1": "generator_2", "generator_2": "generator_1"}
_NAMES = ("generator", *_OTHER_NAME)
_OTHER_ORDER = {"12": "21", "21": "12"}


class OneWay(NamedTuple):
    """As many rows as were given, how many of them were turned, and how many were not because of their names."""

    rows: list[Mapping]
    n_turned: int
    n_apart: int

    def lines(self, source: str) -> list[str]:
        """Says how many rows stand the other way round, and what they count as; [] where none does."""
        around = "rows hold the outputs of another row the other way round"
        said = {
            f"{around}; their labels are turned to its order": self.n_turned,
            f"{around}, but name the same model for output_2; they count as pairs of their own": self.n_apart,
        }
        return [f"{source}: {n} {what}" for what, n in said.items() if n]


def pair_of(row: Mapping) -> Pair:
    """What a row labels: instruction, input, output_1 and output_2."""
    return row["instruction"], row.get("input") or "", row["output_1"], row["output_2"]


def one_way_round(
    rows: Sequence[Mapping], before: Sequence[Mapping] = (), *, of_models: bool = False
) -> OneWay:
    """Turns every row whose outputs an earlier row, or one of `before`, has in the other order.

    of_models: a label is of the model that wrote output_2, not of the texts alone; two rows that both name that model
    are then two pairs, in which the models happen to say the same.
    """
    known: dict[Pair, Mapping] = {}
    for row in before:
        known.setdefault(pair_of(row), row)
    found: list[Mapping] = []
    n_turned = n_apart = 0
    for row in rows:
        pair = pair_of(row)
        other = None if pair in known else known.get((*pair[:2], pair[3], pair[2]))
        apart = of_models and other is not None and _same_model(row, other)
        n_apart += apart
        if other is None or apart:
            known.setdefault(pair, row)
        else:
            row = _turned(row, other)
            n_turned += 1
        found.append(row)
    return OneWay(found, n_turned, n_apart)


def _same_model(row: Mapping, other: Mapping) -> bool:
    name = row.get("generator_2")
    return isinstance(name, str) and bool(name.strip()) and name == other.get("generator_2")


def _turned(row: Mapping, like: Mapping) -> dict:
    """The row with its sides exchanged; who wrote them is known from `like`, if that says it."""
    label = read_preferences([row["preference"]])[0]
    named = like if any(like.get(name) is not None for name in _NAMES) else None
    names = {name: named.get(name) for name in _NAMES} if named else _exchanged(row, _OTHER_NAME)
    # Where the labels came in one order, it is the other one, seen from the exchanged sides.
    order = {"order": _OTHER_ORDER[row["order"]]} if row.get("order") in ("12", "21") else {}
    preference = {"preference": None if math.isnan(label) else 3.0 - float(label)}
    return {**row, **_exchanged(row, _OTHER_SIDE), **names, **order, **preference}


def _exchanged(row: Mapping, other: Mapping[str, str]) -> dict:
    return {name: row[source] for name, source in other.items() if source in row}
