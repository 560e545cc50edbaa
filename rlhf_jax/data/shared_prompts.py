"""Rows in which responses to one prompt share it: prompt, response 1, response 2, ...; the prompt is computed once.

A response sees the prompt and itself, and its positions go on from the prompt's end; so it gives what it would give in
a row of its own behind its own prompt. What is shared is the tokens that all prompts of a unit (a pair, or the
candidates of a prompt) begin with. Where one was cut, or a tokenizer joined its last token with a response, the rest of
it stands in the branch of its response: nothing has to be equal, and no row is left out.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from rlhf_jax.data.batches import ALL_ROWS, Rows, Sequences, first_fit, target_counts

# Units whose prompts are compared at one time: enough for NumPy, and few enough for memory.
_AT_ONCE = 8192


class _Layout(NamedTuple):
    """Where everything stands, in the order of the rows.

    Attributes:
      documents, places, columns, root_ends: of each document its number, its place in the row, the column at which its
        own tokens begin, and that of the last shared token before them (-1: none is shared).
      unit_of: of each document the place of its unit in the order of rows.
      units, unit_places, unit_columns: of each unit its number, its place in the row, and the column where it begins.
      first_documents, first_units: row i has those from first[i] on.
    """

    documents: np.ndarray
    places: np.ndarray
    columns: np.ndarray
    root_ends: np.ndarray
    unit_of: np.ndarray
    units: np.ndarray
    unit_places: np.ndarray
    unit_columns: np.ndarray
    first_documents: np.ndarray
    first_units: np.ndarray


@dataclass(frozen=True)
class SharedRows:
    """Documents laid out in rows, those of a unit behind what they share.

    Attributes:
      documents: all of them; unit u has the documents first[u]:first[u + 1].
      shared: how many tokens the prompts of each unit have in common.
      members, offsets: row i holds the units members[offsets[i]:offsets[i + 1]], in that order; it may have none.
    """

    documents: Sequences
    first: Int64[np.ndarray, "M"]
    shared: Int32[np.ndarray, "units"]
    members: Int64[np.ndarray, "units"]
    offsets: Int64[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, "rows"]:
        """The tokens of every row."""
        return _sums(self._unit_lengths, np.diff(self.offsets))

    @property
    def most_documents(self) -> int:
        """The number of documents in the row that has most."""
        return int(np.diff(self._layout.first_documents).max())

    @property
    def most_targets(self) -> int:
        """The number of trained tokens in the row that has most."""
        at, counts = self._layout, target_counts(self.documents)
        return int(_sums(counts[at.documents], np.diff(at.first_documents)).max())

    @cached_property
    def _unit_lengths(self) -> Int64[np.ndarray, "units"]:
        """Tokens of each of `members`, what is shared counted once."""
        sizes, shared = np.diff(self.first)[self.members], self.shared[self.members]
        documents = _ranges(self.first[self.members], sizes)
        tails = self.documents.lengths[documents].astype(np.int64) - np.repeat(shared, sizes)
        return shared + _sums(tails, sizes)

    @cached_property
    def _layout(self) -> _Layout:
        rows, sizes = np.diff(self.offsets), np.diff(self.first)[self.members]
        shared = self.shared[self.members]
        columns = _within(self._unit_lengths, rows)
        documents = _ranges(self.first[self.members], sizes)
        unit_of = np.repeat(np.arange(len(self.members)), sizes)
        tails = self.documents.lengths[documents] - shared[unit_of]
        roots = columns + shared - 1
        per_row = _sums(sizes, rows)
        return _Layout(
            documents,
            _ranges(np.zeros(len(rows), np.int64), per_row),
            roots[unit_of] + 1 + _within(tails, sizes),
            np.where(shared > 0, roots, -1)[unit_of],
            unit_of,
            self.members,
            _ranges(np.zeros(len(rows), np.int64), rows),
            columns,
            _starts(per_row),
            self.offsets,
        )


def shared_rows(
    documents: Sequences,
    first: Int64[np.ndarray, "M"],
    members: Int64[np.ndarray, "units"] | None = None,
    offsets: Int64[np.ndarray, "rows"] | None = None,
) -> SharedRows:
    """Lays out units of documents, unit u those of first[u]:first[u + 1]; without members a row is one unit."""
    if members is None or offsets is None:
        members, offsets = np.arange(len(first) - 1), np.arange(len(first))
    return SharedRows(documents, first, shared_lengths(documents, first), members, offsets)


def fitted(found: SharedRows, length: int) -> SharedRows:
    """The units, of which `found` has one a row, in few rows of `length` tokens: by first fit, the longest first."""
    order = np.argsort(-found.lengths, kind="stable")
    rows = first_fit(found.lengths[order].tolist(), length)
    members = found.members[order[np.argsort(rows, kind="stable")]]
    return replace(found, members=members, offsets=_starts(np.bincount(rows)))


def shared_lengths(documents: Sequences, first: Int64[np.ndarray, "M"]) -> Int32[np.ndarray, "units"]:
    """How many tokens the prompts of each unit have in common, counted from their beginning."""
    sizes = np.diff(first)
    leads = np.repeat(first[:-1], sizes)
    shared = documents.prompt_lengths[first[:-1]].astype(np.int32)
    others = np.flatnonzero(np.arange(len(leads)) != leads)
    unit_of = np.repeat(np.arange(len(sizes)), sizes)
    for start in range(0, len(others), _AT_ONCE):
        other = others[start : start + _AT_ONCE]
        lead = leads[other]
        most = np.minimum(documents.prompt_lengths[lead], documents.prompt_lengths[other]).astype(np.int64)
        one, two = (documents.tokens[_ranges(documents.offsets[x], most)] for x in (lead, other))
        at = np.where(one != two, _ranges(np.zeros(len(most), np.int64), most), np.repeat(most, most))
        common = np.zeros(len(most), np.int64)
        # reduceat would take the next pair's number for one without a token.
        some = most > 0
        if some.any():
            common[some] = np.minimum.reduceat(at, _starts(most)[:-1][some])
        np.minimum.at(shared, unit_of[other], common.astype(np.int32))
    return shared


def pad_shared(
    found: SharedRows,
    indices: Integer[np.ndarray, "B"],
    sizes: tuple[int, int, int],
    pad_id: int,
    rows: Rows = ALL_ROWS,
) -> dict[str, np.ndarray]:
    """Makes training arrays of the chosen rows: those of `batches.pad_packs`, and two more.

    sizes: (T, R, S), at least the longest of `lengths`, `most_targets` and `most_documents`; fixed over a run.
    Also returns, int32: roots [B, T], the segment that a token sees beside its own (what its unit shares; for a shared
    token its own), and before [B, R], the column that predicts each target. For the first token behind the shared ones
    that is the last shared one, which stands right before it only in the first response.
    """
    chosen, at = np.asarray(indices)[rows], found._layout
    (T, R, S), B = sizes, len(chosen)
    arrays = {
        name: np.zeros((B, size), np.int32)
        for name, size in (
            *(("segments", T), ("positions", T), ("roots", T)),
            *(("targets", R), ("before", R), ("owners", R), ("lasts", S)),
        )
    }
    arrays["tokens"] = np.full((B, T), pad_id, np.int32)
    source = found.documents

    def write(b: np.ndarray, column: np.ndarray, **values: np.ndarray) -> None:
        for name, x in values.items():
            arrays[name][b, column] = x

    # What is shared, once a unit. Its segments are numbered behind those of documents.
    b, k = _of_rows(at.first_units, chosen)
    counts = found.shared[at.units[k]].astype(np.int64)
    inner = _ranges(np.zeros(len(k), np.int64), counts)
    leads = source.offsets[found.first[at.units[k]]]
    ids = source.tokens[np.repeat(leads, counts) + inner]
    number = np.repeat(S + 1 + at.unit_places[k], counts)
    column = np.repeat(at.unit_columns[k], counts) + inner
    write(np.repeat(b, counts), column, tokens=ids, positions=inner, segments=number, roots=number)

    # What each document has alone.
    b, k = _of_rows(at.first_documents, chosen)
    arrays["documents"] = np.bincount(b, minlength=B).astype(np.int32)
    document, own, roots = at.documents[k], at.places[k] + 1, at.root_ends[k]
    shared = found.shared[at.units[at.unit_of[k]]].astype(np.int64)
    counts = source.lengths[document] - shared
    inner = _ranges(np.zeros(len(k), np.int64), counts)
    place, from_start = np.repeat(shared, counts) + inner, np.repeat(source.offsets[document], counts)
    column, rows_ = np.repeat(at.columns[k], counts) + inner, np.repeat(b, counts)
    root = np.where(shared > 0, S + 1 + at.unit_places[at.unit_of[k]], own)
    ids, segment = source.tokens[from_start + place], np.repeat(own, counts)
    write(rows_, column, tokens=ids, positions=place, segments=segment, roots=np.repeat(root, counts))
    write(b, at.places[k], lasts=np.where(counts > 0, at.columns[k] + counts - 1, roots))

    # The trained tokens, to the left of a row of their own.
    trained = place >= np.repeat(np.maximum(source.prompt_lengths[document], 1), counts)
    if source.trained is not None:
        trained &= source.trained[from_start + place]
    before = np.where(inner == 0, np.repeat(roots, counts), column - 1)
    b = rows_[trained]
    slot = _ranges(np.zeros(B, np.int64), np.bincount(b, minlength=B))
    write(b, slot, targets=column[trained], before=before[trained], owners=segment[trained])
    return arrays


def _of_rows(first: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in the batch, number) of everything in some rows, where row i has numbers first[i]:first[i + 1]."""
    counts = np.diff(first)[rows]
    return np.repeat(np.arange(len(rows)), counts), _ranges(first[:-1][rows], counts)


def _sums(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The sum of each part, where parts of so many numbers stand end to end; 0 of one without any."""
    return np.diff(_starts(x)[_starts(counts)])


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each part begins if they stand end to end, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... `count` numbers for each, end to end."""
    return np.arange(int(np.sum(counts))) + np.repeat(starts - _starts(counts)[:-1], counts)


def _within(lengths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The sum of the lengths before each within its group; groups: how many belong to each."""
    starts = _starts(lengths)
    return starts[:-1] - np.repeat(starts[_starts(groups)[:-1]], groups)
