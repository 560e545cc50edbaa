"""Packing: several documents in one row of T tokens, so that little of a batch is padding.

What shares a row is decided once per run, by lengths and a seed alone, so a run resumes as any other: rows are
addressed by their number, and `batches.row_indices` orders them. A document never sees another: `segments` numbers
the documents of a row from 1 (0 is padding), and positions start at 0 in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from rlhf_jax.data.batches import ALL_ROWS, Rows, permutation
from rlhf_jax.data.tokenization import Pairs, Sequences


@dataclass(frozen=True)
class Packs:
    """Rows of documents.

    Attributes:
      documents: all of them; of pairs, chosen and rejected alternate.
      members, offsets: row i holds the documents members[offsets[i]:offsets[i+1]], in that order.
      length: T, tokens of a row.
    """

    documents: Sequences
    members: Int64[np.ndarray, "n"]
    offsets: Int64[np.ndarray, "M"]
    length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> Int64[np.ndarray, "rows"]:
        """Real tokens of each row."""
        lengths = self.documents.lengths[self.members].astype(np.int64)
        return np.add.reduceat(lengths, self.offsets[:-1])

    @property
    def most_documents(self) -> int:
        """Of a row."""
        return int(np.diff(self.offsets).max())

    @property
    def most_targets(self) -> int:
        """Trained tokens of the row that has most."""
        counts = np.array([len(_targets(self.documents, i)) for i in range(len(self.documents))], np.int64)
        return int(np.add.reduceat(counts[self.members], self.offsets[:-1]).max())

    @property
    def filled(self) -> float:
        """The share of all places that hold a token."""
        return float(self.tokens.sum() / (len(self) * self.length))


def first_fit(lengths: Sequence[int] | Integer[np.ndarray, "n"], capacity: int) -> Int64[np.ndarray, "n"]:
    """The row of every item: the first one that has room for it, in the order given.

    O(n log n): a tree over rows holds the largest room below each node. Raises ValueError for an item that is
    longer than a row.
    """
    n = len(lengths)
    if n and max(lengths) > capacity:
        raise ValueError(f"an item of {max(lengths)} tokens does not fit rows of {capacity}")
    leaves = 1 << max(0, n - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows = np.zeros(n, np.int64)
    for i, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[i] = node - leaves
        room[node] -= int(length)
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def pack(found: Sequences | Pairs, length: int, seed: int) -> Packs:
    """Documents into rows of `length` tokens, by first fit in an order drawn with the seed.

    Both sides of a pair share a row, next to each other.
    """
    together = 2 if isinstance(found, Pairs) else 1
    documents = _alternating(found) if isinstance(found, Pairs) else found
    units = documents.lengths.reshape(-1, together).sum(1)
    order = permutation(0, len(units), seed)
    rows = first_fit(units[order].tolist(), length)
    by_row = np.argsort(rows, kind="stable")
    members = order[by_row][:, None] * together + np.arange(together)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows))]) * together
    return Packs(documents, members.reshape(-1), offsets.astype(np.int64), length)


def pad_packs(
    packs: Packs, indices: Integer[np.ndarray, "B"], R: int, S: int, pad_id: int, rows: Rows = ALL_ROWS
) -> dict[str, np.ndarray]:
    """Training arrays of the chosen rows.

    indices: rows of the global batch; `rows` picks this process's part of them.
    R, S: at least `most_targets` and `most_documents`; fixed over a run, so that the step compiles once.
    Returns, all int32: tokens, segments and positions [B, T]; targets [B, R], the columns of trained tokens, and
    owners [B, R], the segments they belong to (0: no token); lasts [B, S], the column where each document ends,
    and documents [B], how many there are. A document's first token is never trained: nothing predicts it.
    """
    chosen = np.asarray(indices)[rows]
    B, T = len(chosen), packs.length
    arrays = {
        name: np.zeros((B, size), np.int32)
        for name, size in (("segments", T), ("positions", T), ("targets", R), ("owners", R), ("lasts", S))
    }
    arrays["tokens"] = np.full((B, T), pad_id, np.int32)
    arrays["documents"] = np.zeros(B, np.int32)
    for b, row in enumerate(chosen):
        members = packs.members[packs.offsets[row] : packs.offsets[row + 1]]
        arrays["documents"][b] = len(members)
        column = filled = 0
        for segment, i in enumerate(members.tolist(), 1):
            ids, targets = packs.documents[i], _targets(packs.documents, i)
            here = slice(column, column + len(ids))
            arrays["tokens"][b, here] = ids
            arrays["segments"][b, here] = segment
            arrays["positions"][b, here] = np.arange(len(ids))
            there = slice(filled, filled + len(targets))
            arrays["targets"][b, there] = column + targets
            arrays["owners"][b, there] = segment
            column, filled = here.stop, there.stop
            arrays["lasts"][b, segment - 1] = column - 1
    return arrays


def _targets(documents: Sequences, i: int) -> np.ndarray:
    """Which tokens of a document are trained."""
    start, stop = documents.offsets[i : i + 2]
    first = max(1, int(documents.prompt_lengths[i]))
    at = np.arange(first, stop - start)
    return at if documents.trained is None else at[documents.trained[start:stop][first:]]


def _alternating(pairs: Pairs) -> Sequences:
    """chosen 0, rejected 0, chosen 1, ..."""
    rows = [side[i] for i in range(len(pairs)) for side in pairs]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    prompt_lengths = np.stack([side.prompt_lengths for side in pairs], 1).reshape(-1)
    return Sequences(np.concatenate(rows), offsets.astype(np.int64), prompt_lengths)
