"""Counts what a reader left out of a file: rows by their reason, columns that nobody read, and further remarks."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any


class RowError(ValueError):
    """A row that cannot be understood; its message is the reason under which the row is counted."""


class LeftOut(Counter[str]):
    """Counts of dropped rows, reason -> rows, as a plain Counter has them.

    columns: column, or field of messages, that has content and was not used -> kept rows.
    notes: a remark on kept rows -> rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.columns: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def count_kept(self, row: "UsedColumns") -> None:
        """Counts what is not used of a row that is kept."""
        self.columns.update(row.unused())


class UsedColumns(Mapping[str, Any]):
    """A row of a file that remembers which of its columns were read. `in` and iterating do not count as reading."""

    def __init__(self, row: Mapping[str, Any], used: frozenset[str] = frozenset()) -> None:
        self._row = row
        self._used = set(used)
        # Fields inside columns that were not used, such as "name of messages".
        self.dropped: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._used.add(name)
        return self._row[name]

    def __contains__(self, name: object) -> bool:
        return name in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def peek(self, name: str) -> Any:
        """The value of a column without reading it: it stays unused."""
        return self._row.get(name)

    def has(self, name: str) -> bool:
        """Whether a column holds anything."""
        return has_content(self._row.get(name))

    def first_with_content(self, *names: str) -> str | None:
        """The first of these columns that holds anything."""
        # A loop, and the null first: most of the names that are asked for are no column of the file.
        for name in names:
            if (value := self._row.get(name)) is not None and has_content(value):
                return name
        return None

    def unused(self) -> Iterator[str]:
        """Columns with content that were not read, then the fields inside columns."""
        yield from (
            name for name, value in self._row.items() if name not in self._used and has_content(value)
        )
        yield from sorted(self.dropped)


def has_content(value: Any) -> bool:
    """Whether a value says anything: not null, NaN, blank text, or an empty list or object."""
    if type(value) is str:
        return value != "" and not value.isspace()
    # pandas writes NaN where a row lacks a column, also among texts. Zero and False do say something.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value) if isinstance(value, list | tuple | Mapping) else True


def is_kept(reason: str) -> bool:
    """Whether a counted reason is of rows that were changed and kept, as it says itself: "response cut (row kept)"."""
    return "(row kept" in reason


def counts_text(skipped: Mapping[str, int], kept: int | None = None) -> str:
    """Writes counted drops in one line, most frequent first: "kept 60; skipped 15: tie 12, duplicate 3".

    What was only changed ("response cut (row kept) 4") stands behind that, in no total. Of a LeftOut also "columns not
    used: source (60 rows)" and its notes.
    """
    gone, there = [], []
    for reason, n in Counter(skipped).most_common():
        (there if is_kept(reason) else gone).append((reason, n))
    total = sum(n for _, n in gone)
    parts = [] if kept is None else [f"kept {kept}"]
    parts.append(f"skipped {total}: {_listed(gone)}" if total else "skipped none")
    if there:
        parts.append(_listed(there))
    if isinstance(skipped, LeftOut):
        if skipped.columns:
            named = (f"{name} ({_rows(n)})" for name, n in skipped.columns.most_common())
            parts.append(f"columns not used: {', '.join(named)}")
        parts += [f"{_rows(n)}: {note}" for note, n in skipped.notes.most_common()]
    return "; ".join(parts)


def _listed(counts: list[tuple[str, int]]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in counts)


def _rows(n: int) -> str:
    return f"{n} row{'s' * (n != 1)}"
