"""Tables of several seeds as arrays: every value by row, seed, place on a curve, and item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.published_claims import TableSpec


@dataclass(frozen=True)
class SeededTable:
    """values: (row, column) -> [S, X, N], NaN where a seed, place or item has none. at_X: the places, [0] where the
    table has none. rows: in the order in which they were found."""

    values: Mapping[tuple[str, str], np.ndarray]
    rows: tuple[str, ...]
    seeds: tuple[str, ...]
    at_X: np.ndarray

    def of(self, row: str, column: str) -> np.ndarray:
        """One row's values [S, X, N]; no seeds at all where the row was not measured."""
        return self.values.get((row, column), np.full((0, len(self.at_X), 1), np.nan))


def seeded_table(
    name: str, spec: TableSpec, columns: Sequence[str], by_seed: Mapping[str, Sequence[Mapping[str, Any]]]
) -> SeededTable:
    """Puts the rows of a table's files together, one file of each seed.

    Raises UserError for a file that lacks a column, a value that is no number, an entry without a row's name or place,
    and a row that is there twice.
    """
    for seed, rows in by_seed.items():
        _check_columns(f"{name}@{seed}" if seed else name, spec, columns, rows)
    keyed = [(seed, key, row) for seed, rows in by_seed.items() for key, row in _keyed(rows, name, spec)]
    seeds = {seed: i for i, seed in enumerate(by_seed)}
    found = tuple(dict.fromkeys(key[0] for _, key, _ in keyed))
    at = {place: i for i, place in enumerate(sorted({key[1] for _, key, _ in keyed}))}
    items = {item: i for i, item in enumerate(dict.fromkeys(key[2] for _, key, _ in keyed))}
    shape = (len(seeds), len(at), len(items))
    values = {(row, column): np.full(shape, np.nan) for row in found for column in columns}
    for seed, (row_name, place, item), row in keyed:
        for column in columns:
            number = _number(row.get(column), f"{name}: {row_name}: {column}")
            values[row_name, column][seeds[seed], at[place], items[item]] = number
    return SeededTable(values, found, tuple(by_seed), np.array(list(at) or [0.0]))


def _keyed(
    rows: Sequence[Mapping[str, Any]], name: str, spec: TableSpec
) -> Iterator[tuple[tuple[str, float, tuple], Mapping[str, Any]]]:
    """((row, place, item), entry) of every entry. The n-th of an item that is asked twice meets other rows' n-th."""
    seen: Counter = Counter()
    for row in rows:
        item = tuple("" if row.get(column) is None else str(row[column]) for column in spec.item)
        place = _number(row.get(spec.at), f"{name}: {spec.at}") if spec.at else 0.0
        for column, lacks in ((spec.row, row.get(spec.row) is None), (spec.at, np.isnan(place))):
            if lacks:
                raise UserError(f"results: {name}: an entry without {column!r}; every entry needs one")
        key = (str(row[spec.row]), place, item)
        if seen[key] and not spec.item:
            raise UserError(
                f"results: {name}: {key[0]} is there twice; say in tables.{name}.item of the claims which columns tell "
                "its rows apart"
            )
        yield (key[0], key[1], (*item, seen[key])), row
        seen[key] += 1


def _check_columns(
    name: str, spec: TableSpec, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    there = set().union(*rows) if rows else set()
    for column in (spec.row, *spec.item, *((spec.at,) if spec.at else ()), *columns):
        if column not in there:
            raise UserError(
                f"results: {name}: no column {column!r}; it has {', '.join(sorted(there)) or 'no rows'}"
            )


def _number(value: Any, where: str) -> float:
    if value is None or value == "":
        return np.nan
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or np.isinf(value):
        raise UserError(f"results: {where}: {value!r} is no number")
    return float(value)
