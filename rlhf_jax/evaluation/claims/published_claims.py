"""Reads what others have published of an experiment, from a YAML file: their numbers, and what they concluded.

    title: Every method from one SFT model
    source: AlpacaFarm (Dubois et al. 2023), table 2
    tables:                                     # files that a study has measured, one of each seed
      ranked: {row: method, item: [instruction, input]}
    columns:                                    # what is shown of every row
      simulated: {label: "win rate, simulated judges, %", table: ranked, column: win, percent: true}
    published: {simulated: "paper, simulated judges"}
    rows:
      ppo: {label: PPO, published: {simulated: 46.8}}
    charts:
      - {kind: bars, title: Win rates, column: simulated}
    claims:
      - {says: "PPO ends above SFT", greater: [ppo, sft], column: simulated, published: "46.8 against 36.7"}

No method is known to the code: rows, columns and claims are what the file says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_jax.data.files.yaml_loader import UniqueKeyLoader
from rlhf_jax.errors import UserError

# What a claim can say, and of how many rows or columns it says it: at least, at most.
KINDS = {
    **{"greater": (2, 2), "close": (2, math.inf), "near": (1, 1), "spearman": (2, 2)},
    **dict.fromkeys(("rises", "falls", "stays"), (1, 1)),
}
# Of these `within` says how much is little.
_WITHIN = ("close", "near", "stays")
# `against` draws curves as well: one column against another of its table, such as a win rate against KL.
CHARTS = {"scatter": ("x", "y"), "curves": ("y", "x_label"), "against": ("x", "y"), "bars": ("column",)}


@dataclass(frozen=True)
class TableSpec:
    """How a table is read. row: the column that names a row. item: columns that together name an item, () for a table
    with one value of each row. at: the column of the places on a curve, "" for none."""

    row: str
    item: tuple[str, ...] = ()
    at: str = ""


@dataclass(frozen=True)
class ColumnSpec:
    """What is measured: the values of `column` of a table; label: with its unit.

    percent: the values are shares from 0 to 1, shown in per cent; no interval of theirs leaves 0 to 100.
    """

    label: str
    table: str
    column: str
    percent: bool = False
    digits: int = 1


@dataclass(frozen=True)
class RowSpec:
    """A row's name for readers, and its published numbers by the keys of `published`."""

    label: str
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ChartSpec:
    """A figure. options: the keys of its kind, such as x and y; rows: those that are drawn, () for all."""

    kind: str
    title: str
    options: Mapping[str, str]
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A sentence that was published, and what would have to be measured for it to show.

    of: rows; with spearman, columns. value: what `near` compares with. within: how much is little, in the column's
    unit: a difference that is surely smaller is close, near, or no fall; 0 asks for no more than errors let one tell.
    why: what is known of why it does not show here, if it does not.
    """

    says: str
    kind: str
    of: tuple[str, ...]
    column: str = ""
    published: str = ""
    value: float = math.nan
    within: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class SampleSpec:
    """Responses that a report shows: the table that has them, their column, and that of a score in [0, 1], or ""."""

    table: str
    text: str
    score: str = ""


@dataclass(frozen=True)
class Publication:
    """All that a file says."""

    title: str
    source: str
    text: str
    tables: Mapping[str, TableSpec]
    columns: Mapping[str, ColumnSpec]
    published: Mapping[str, str]
    rows: Mapping[str, RowSpec]
    charts: tuple[ChartSpec, ...]
    claims: tuple[Claim, ...]
    samples: SampleSpec | None = None


def read_publication(path: str | Path) -> Publication:
    """Reads and checks a file; UserError in one line that names the entry, what is wrong and what would do."""
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"claims: {path}: no such file; configs/studies has those of the papers") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(
            f"claims: {path}: no YAML that can be read ({' '.join(str(error).split())})"
        ) from None
    read = _Reader(str(path))
    top = read.mapping(found, "", ("title", "source", "tables", "columns"), (*_OPTIONAL,))
    tables = {name: read.table(name, value) for name, value in read.mapping(top["tables"], "tables").items()}
    columns = {
        name: read.column(name, x, tables) for name, x in read.mapping(top["columns"], "columns").items()
    }
    if not columns:
        raise read.wrong("columns", "there is none; name what is to be shown of every row")
    published = {
        name: read.text(label, f"published.{name}")
        for name, label in read.mapping(top.get("published", {}), "published").items()
    }
    rows = {
        name: read.row(name, x, published) for name, x in read.mapping(top.get("rows", {}), "rows").items()
    }
    charts = tuple(read.chart(i, x, rows, columns) for i, x in enumerate(read.listed(top, "charts")))
    claims = tuple(read.claim(i, x, rows, columns) for i, x in enumerate(read.listed(top, "claims")))
    shown = read.samples(top["samples"], tables) if "samples" in top else None
    text = {name: read.text(top.get(name, ""), name) for name in ("title", "source", "text")}
    return Publication(
        **text,
        tables=tables,
        columns=columns,
        published=published,
        rows=rows,
        charts=charts,
        claims=claims,
        samples=shown,
    )


_OPTIONAL = ("text", "published", "rows", "charts", "claims", "samples")


class _Reader:
    """Turns the entries of one file into specs. Each method raises UserError for an entry that cannot be."""

    def __init__(self, path: str) -> None:
        self.path = path

    def wrong(self, where: str, what: str) -> UserError:
        return UserError(f"claims: {self.path}: {where}: {what}" if where else f"claims: {self.path}: {what}")

    def mapping(
        self, value: Any, where: str, needed: tuple[str, ...] = (), optional: tuple[str, ...] | None = None
    ) -> Mapping[str, Any]:
        """A mapping with the keys that it needs; optional: the others that it may have, None for any."""
        if not isinstance(value, Mapping):
            raise self.wrong(where, f"{value!r} is no mapping of names to values")
        for name in value:
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise self.wrong(where, f"{name!r} is no name; put it in quotes if it is meant as one")
        for name in needed:
            if name not in value:
                raise self.wrong(where, f"{name} is missing")
        for name in value if optional is not None else ():
            if name not in (*needed, *optional):
                known = ", ".join((*needed, *optional))
                raise self.wrong(
                    where, f"{name!r} is no key here; " + (f"use {known}" if known else "leave it out")
                )
        return {str(name): one for name, one in value.items()}

    def listed(self, top: Mapping[str, Any], name: str) -> list[Any]:
        value = top.get(name, [])
        if not isinstance(value, list):
            raise self.wrong(name, f"{value!r} is no list")
        return value

    def text(self, value: Any, where: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong(where, f"{value!r} is no text; put it in quotes if it is meant as one")
        return str(value).strip()

    def one_of(self, value: Any, known: Iterable[str], where: str) -> str:
        name = self.text(value, where)
        if name not in known:
            raise self.wrong(where, f"{value!r}; there are {', '.join(known) or 'none'}")
        return name

    def number(self, value: Any, where: str, least: float = -math.inf) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(where, f"{value!r} is no number")
        if value < least:
            raise self.wrong(where, f"{value!r}; use {least:g} or more")
        return float(value)

    def names(self, value: Any, where: str, known: Iterable[str] | None = None) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self.wrong(where, f"{value!r} is no list of names")
        found = tuple(
            self.text(one, where) if known is None else self.one_of(one, known, where) for one in value
        )
        for i, name in enumerate(found):
            if name in found[:i]:
                raise self.wrong(where, f"{name} is named twice")
        return found

    def table(self, name: str, value: Any) -> TableSpec:
        entry = self.mapping(value, f"tables.{name}", ("row",), ("item", "at"))
        item = self.names(entry["item"], f"tables.{name}.item") if "item" in entry else ()
        row, at = (self.text(entry.get(k, ""), f"tables.{name}.{k}") for k in ("row", "at"))
        return TableSpec(row, item, at)

    def column(self, name: str, value: Any, tables: Mapping[str, TableSpec]) -> ColumnSpec:
        where = f"columns.{name}"
        entry = self.mapping(value, where, ("label", "table", "column"), ("percent", "digits"))
        table = self.one_of(entry["table"], tables, f"{where}.table")
        label, column = (self.text(entry[k], f"{where}.{k}") for k in ("label", "column"))
        percent, digits = entry.get("percent", False), entry.get("digits", 1)
        if not isinstance(percent, bool):
            raise self.wrong(f"{where}.percent", f"{percent!r}; use true or false")
        if digits not in range(10) or isinstance(digits, bool):
            raise self.wrong(f"{where}.digits", f"{digits!r}; use a whole number from 0 to 9")
        return ColumnSpec(label, table, column, percent, digits)

    def samples(self, value: Any, tables: Mapping[str, TableSpec]) -> SampleSpec:
        entry = self.mapping(value, "samples", ("table", "text"), ("score",))
        table = self.one_of(entry["table"], [name for name, x in tables.items() if x.item], "samples.table")
        text, score = (self.text(entry.get(k, ""), f"samples.{k}") for k in ("text", "score"))
        return SampleSpec(table, text, score)

    def row(self, name: str, value: Any, published: Mapping[str, str]) -> RowSpec:
        entry = self.mapping(value, f"rows.{name}", ("label",), ("published",))
        where = f"rows.{name}.published"
        numbers = self.mapping(entry.get("published", {}), where, (), tuple(published))
        label = self.text(entry["label"], f"rows.{name}.label")
        return RowSpec(label, {k: self.number(v, f"{where}.{k}") for k, v in numbers.items()})

    def chart(
        self, i: int, value: Any, rows: Mapping[str, RowSpec], columns: Mapping[str, ColumnSpec]
    ) -> ChartSpec:
        where = f"charts[{i}]"
        kind = self.one_of(self.mapping(value, where, ("kind",)).get("kind"), CHARTS, f"{where}.kind")
        entry = self.mapping(value, where, ("kind", "title", *CHARTS[kind]), ("rows",))
        options = {
            name: self.text(entry[name], f"{where}.{name}")
            if name == "x_label"
            else self.one_of(entry[name], columns, f"{where}.{name}")
            for name in CHARTS[kind]
        }
        if kind == "against" and columns[options["x"]].table != columns[options["y"]].table:
            raise self.wrong(
                f"{where}.x", f"{options['x']!r} is of another table than {options['y']!r}; take two of one"
            )
        drawn = self.names(entry["rows"], f"{where}.rows", rows) if "rows" in entry else ()
        return ChartSpec(kind, self.text(entry["title"], f"{where}.title"), options, drawn)

    def claim(
        self, i: int, value: Any, rows: Mapping[str, RowSpec], columns: Mapping[str, ColumnSpec]
    ) -> Claim:
        where = f"claims[{i}]"
        kinds = [kind for kind in KINDS if kind in self.mapping(value, where, ("says",))]
        if len(kinds) != 1:
            raise self.wrong(
                where, f"has {', '.join(kinds) or 'none'} of {', '.join(KINDS)}; it takes one of them"
            )
        kind = kinds[0]
        more = {"near": ("column", "value"), "spearman": ()}.get(kind, ("column",))
        may = ("published", "within", "why") if kind in _WITHIN else ("published", "why")
        entry = self.mapping(value, where, ("says", kind, *more), may)
        of = self.names(entry[kind], f"{where}.{kind}", columns if kind == "spearman" else rows)
        least, most = KINDS[kind]
        if not least <= len(of) <= most:
            takes = f"{least}" if least == most else f"{least} or more"
            raise self.wrong(f"{where}.{kind}", f"{len(of)} names; it takes {takes}")
        return Claim(
            self.text(entry["says"], f"{where}.says"),
            kind,
            of,
            "" if kind == "spearman" else self.one_of(entry["column"], columns, f"{where}.column"),
            self.text(entry.get("published", ""), f"{where}.published"),
            self.number(entry["value"], f"{where}.value") if kind == "near" else math.nan,
            self.number(entry.get("within", 0), f"{where}.within", least=0),
            self.text(entry.get("why", ""), f"{where}.why"),
        )
