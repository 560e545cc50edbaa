"""Makes batches: which rows step i trains on, and arrays of fixed size from sequences of any length.

The rows of step i are a pure function of (seed, i), so a run resumes from one integer. Every function that
makes arrays takes `rows`, the part of the batch this process holds (`parallel.mesh.host_rows`), and
makes only those. Several documents may share a row (packing, in the second part).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Shaped

from rlhf_jax.errors import UserError

Rows = slice | np.ndarray
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Prompts:
    """n ragged prompts: prompt i is tokens[offsets[i]:offsets[i+1]], so there are n + 1 offsets."""

    # One flat array and not a list of arrays: a million prompts would be a million small objects. The offsets
    # are int64, since a file may hold more than 2^31 tokens.
    tokens: Int32[np.ndarray, "N"]
    offsets: Int64[np.ndarray, "M"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int | np.integer) -> Int32[np.ndarray, "T"]:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> Int32[np.ndarray, "n"]:
        """The number of tokens of each prompt (or sequence)."""
        return np.diff(self.offsets).astype(np.int32)


@dataclass(frozen=True)
class Sequences(Prompts):
    """Ragged prompt + response sequences; the first prompt_lengths[i] tokens of sequence i are its prompt.

    trained: which tokens are, where those after the prompt are not all trained (conversations of several turns,
        whose prompt ends where the assistant's first turn begins); None: all after the prompt.
    """

    prompt_lengths: Int32[np.ndarray, "n"]
    trained: Bool[np.ndarray, "N"] | None = None

    def select(self, rows: Int64[np.ndarray, "k"]) -> "Sequences":
        """Returns these rows alone, in this order."""
        tokens, offsets = flattened([self[i] for i in rows])
        trained = self.trained
        if trained is not None:
            trained = np.concatenate([trained[self.offsets[i] : self.offsets[i + 1]] for i in rows])
        return Sequences(tokens, offsets, self.prompt_lengths[rows], trained)


class Pairs(NamedTuple):
    """Preference pairs: row i of both are answers to the same prompt."""

    chosen: Sequences
    rejected: Sequences

    def __len__(self) -> int:
        return len(self.chosen)


def flattened(rows: Sequence[np.ndarray]) -> tuple[Int32[np.ndarray, "N"], Int64[np.ndarray, "M"]]:
    """Puts rows end to end: (all their tokens, the offset at which each begins and one for the end)."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate(rows), offsets


def row_indices(step: int, batch_size: int, n: int, seed: int) -> Int64[np.ndarray, "B"]:
    """Returns the data rows of batch number `step`: entries step*B .. (step+1)*B - 1 of an endless stream.

    The stream is one permutation of 0..n-1 per epoch, put end to end, so every row comes once per epoch and
    no row is dropped at an epoch's end. With fewer rows than the batch, a batch holds rows several times.
    Raises UserError when there is no row.
    """
    if n < 1:
        raise UserError("data: there are no rows to train on")
    # A batch may reach over the end of an epoch, and one that is larger than the data over several epochs.
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // n, (last - 1) // n + 1)
    stream = np.concatenate([permutation(epoch, n, seed) for epoch in epochs])
    start = first - epochs.start * n
    return stream[start : start + batch_size]


# Every step of an epoch asks for the same order. Callers only read it: the concatenation above copies it.
@lru_cache(maxsize=8)
def permutation(epoch: int, n: int, seed: int) -> Int64[np.ndarray, "n"]:
    """Returns the order in which an epoch visits rows 0..n-1."""
    # Sorting raw Philox words rests on the cipher alone; Generator.permutation may change between numpy
    # versions, and with it the data order of a resumed run.
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def pad(
    sequences: Sequences, indices: Integer[np.ndarray, "B"], length: int, pad_id: int, rows: Rows = ALL_ROWS
) -> dict[str, np.ndarray]:
    """Makes right-padded training arrays of the chosen sequences.

    indices: rows of the global batch; `rows` picks this process's part of them.
    length:  T of every array; fixed over a run so that the step compiles once.
    Returns tokens [B, T], lengths [B] (prompt and response) and prompt_lengths [B], all int32. Masks are made
    from the lengths, so the pad id is free to be any id. Where not all tokens after the prompts are trained there
    is also trained [B, T], bool. Raises ValueError when a sequence is longer than T.
    """
    chosen = np.asarray(indices)[rows]
    lengths = sequences.lengths[chosen]
    _check_fits(lengths, length)
    column = np.arange(length)
    inside = column < lengths[:, None]
    starts = sequences.offsets[chosen]
    arrays = {
        "tokens": _take(sequences.tokens, starts, column, inside, pad_id),
        "lengths": lengths,
        "prompt_lengths": sequences.prompt_lengths[chosen],
    }
    if sequences.trained is not None:
        arrays["trained"] = _take(sequences.trained, starts, column, inside, False)
    return arrays


def pad_prompts(
    prompts: Prompts, indices: Integer[np.ndarray, "B"], length: int, pad_id: int, rows: Rows = ALL_ROWS
) -> dict[str, np.ndarray]:
    """Makes left-padded prompts for generation: tokens [B, P] and lengths [B], int32. P is `length`.

    Raises ValueError when a prompt is longer than P.
    """
    chosen = np.asarray(indices)[rows]
    lengths = prompts.lengths[chosen]
    _check_fits(lengths, length)
    # Padding goes to the left, so that all prompts end in the last column and the first sampled tokens share
    # one. There `column` is negative; it counts from each prompt's own beginning.
    column = np.arange(length) - (length - lengths[:, None])
    return {
        "tokens": _take(prompts.tokens, prompts.offsets[chosen], column, column >= 0, pad_id),
        "lengths": lengths,
    }


def bucket(max_length: int | np.integer, multiple: int = 16) -> int:
    """Rounds a length up to a multiple of `multiple`, an array size that fits the tiles of TPUs and GPUs."""
    # Rounded up; rows without any token still need a column.
    return max(1, -(-int(max_length) // multiple)) * multiple


def eval_batches(
    n: int, batch_size: int, rows: Rows = ALL_ROWS
) -> Iterator[tuple[Int64[np.ndarray, "B"], Float32[np.ndarray, "B"]]]:
    """Goes once over rows 0..n-1 in order: yields (indices, weight) of this process's part of each batch.

    The last batch is filled up with row n-1 at weight 0, so sums of weight * value over all batches count
    every row exactly once, on any number of devices.
    """
    if n < 1:
        raise UserError("data: there are no rows to evaluate on")
    # All batches have one size, the last one too, so that the evaluation step compiles once.
    for first in range(0, n, batch_size):
        indices = np.arange(first, first + batch_size)
        yield np.minimum(indices, n - 1)[rows], (indices < n).astype(np.float32)[rows]


def batches_by_length(
    lengths: Integer[np.ndarray, "n"], batch_size: int, multiple: int = 8, *, every: int = 8, most: int = 4
) -> Iterator[tuple[Int64[np.ndarray, "B"], int, int]]:
    """Goes once over all rows, the longest first: yields (rows of a batch, how many of them count, T of its arrays).

    T is a multiple of `multiple` and one of few numbers, each a program to compile: one for `every` so many batches,
    `most` at most. The last batch is filled up with copies of its last row.
    """
    # Stable, and the longest first: what does not fit into memory ends a job at its beginning.
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches = list(eval_batches(len(order), batch_size))
    longest = np.array([bucket(lengths[order[index_B[0]]], multiple) for index_B, _ in batches])
    sizes = few_sizes(longest, min(most, 1 + len(batches) // every))
    for (index_B, weight_B), needed in zip(batches, longest, strict=True):
        yield order[index_B], int(weight_B.sum()), next(size for size in sizes if size >= needed)


def _take(
    values: Shaped[np.ndarray, "N"],
    starts: Int64[np.ndarray, "B"],
    column: np.ndarray,
    inside: np.ndarray,
    fill: int | bool,
) -> Shaped[np.ndarray, "B T"]:
    """values[starts + column] where inside, else `fill`."""
    # One gather for the whole batch. Places outside a row read token 0, which is replaced below.
    positions = np.where(inside, starts[:, None] + column, 0)
    # Without any token to take, `values` itself may be empty, and even position 0 would be out of range.
    if not inside.any():
        return np.full(inside.shape, fill, values.dtype)
    return np.where(inside, values[positions], values.dtype.type(fill))


def _check_fits(lengths: np.ndarray, length: int) -> None:
    # No UserError: the encoder has cut or left out too long rows, so this is the caller's mistake.
    if lengths.size and lengths.max() > length:
        raise ValueError(f"a sequence of {lengths.max()} tokens does not fit arrays of length {length}")


# Packing: several documents in one row of T tokens, so that little of a batch is padding.
#
# The assignment of documents to rows is computed once, before training, from their lengths and a seed alone,
# so that row i always holds the same documents; `row_indices` then orders rows as it does without packing. A
# document never attends to another: `segments` numbers the documents of a row from 1 (0 is padding), and
# positions start at 0 in each.


@dataclass(frozen=True)
class Packs:
    """Documents packed into rows of one length.

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
        """The number of real tokens of each row."""
        lengths = self.documents.lengths[self.members].astype(np.int64)
        # reduceat needs that no row is empty: of an empty one it would return the next row's first number.
        return np.add.reduceat(lengths, self.offsets[:-1])

    @property
    def most_documents(self) -> int:
        """The number of documents in the row that has most."""
        return int(np.diff(self.offsets).max())

    @property
    def most_targets(self) -> int:
        """The number of trained tokens in the row that has most."""
        return int(np.add.reduceat(target_counts(self.documents)[self.members], self.offsets[:-1]).max())

    @property
    def filled(self) -> float:
        """The share of all places that hold a token."""
        return float(self.tokens.sum() / (len(self) * self.length))


def first_fit(lengths: Sequence[int] | Integer[np.ndarray, "n"], capacity: int) -> Int64[np.ndarray, "n"]:
    """Assigns every item to the first row that has room for it, in the order given (first-fit bin packing).

    O(n log n): a tree over rows holds the largest room below each node. Raises ValueError for an item that is
    longer than a row.
    """
    n = len(lengths)
    if n and max(lengths) > capacity:
        raise ValueError(f"an item of {max(lengths)} tokens does not fit rows of {capacity}")
    # The tree lies in one list: the children of node i are 2i and 2i + 1, and the leaves are the rows. A
    # plain list, since single elements of a NumPy array are slow to read and write.
    leaves = 1 << max(0, n - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows = np.zeros(n, np.int64)
    for i, length in enumerate(lengths):
        node = 1
        # To the left wherever a row there has room: that leads to the first such row.
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[i] = node - leaves
        room[node] -= int(length)
        # The room of this row has changed, and so may the maximum of every node above it.
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def best_fit(
    lengths_SB: Integer[np.ndarray, "S B"], capacity: int
) -> tuple[Int64[np.ndarray, "S B"], Int64[np.ndarray, "S"]]:
    """Assigns the items of every batch to few rows: the longest first, each to the fullest row that has room for it.

    Returns (the row of each item, how many rows each batch takes); those of a batch do not depend on the others.
    """
    (S, B), batches_S = lengths_SB.shape, np.arange(len(lengths_SB))
    room_SB, rows_SB = np.full((S, B), capacity, np.int64), np.zeros((S, B), np.int64)
    # All batches at a time, item by item: a run may have a hundred thousand of them.
    for item_S in np.argsort(-lengths_SB, axis=1, kind="stable").T:
        length_S = lengths_SB[batches_S, item_S]
        # Rows without an item have most room: one is opened where no other has enough, and so without gaps.
        row_S = np.where(room_SB >= length_S[:, None], room_SB, capacity + 1).argmin(axis=1)
        room_SB[batches_S, row_S] -= length_S
        rows_SB[batches_S, item_S] = row_S
    return rows_SB, rows_SB.max(axis=1) + 1


def few_sizes(needed_S: Int64[np.ndarray, "S"], most: int) -> tuple[int, ...]:
    """The sizes, `most` at most and the smallest first, that waste least where each batch takes the next larger one."""
    sizes, counts = np.unique(needed_S, return_counts=True)
    smaller = (x for k in range(min(most, len(sizes))) for x in combinations(sizes[:-1], k))
    choices = [np.array([*x, sizes[-1]]) for x in smaller]
    return tuple(min(choices, key=lambda x: (x[np.searchsorted(x, sizes)] * counts).sum()).tolist())


def pack(found: Sequences | Pairs, length: int, seed: int) -> Packs:
    """Packs documents into rows of `length` tokens, by first fit in an order drawn with the seed.

    Both sides of a pair share a row, next to each other.
    """
    together = 2 if isinstance(found, Pairs) else 1
    documents = alternating(found) if isinstance(found, Pairs) else found
    # A pair is placed as one item, since its loss needs the log-probabilities of both sides on one device.
    units = documents.lengths.reshape(-1, together).sum(1)
    # In the order of the file neighbours, which are often alike, would share rows.
    order = permutation(0, len(units), seed)
    rows = first_fit(units[order].tolist(), length)
    # Stable, so that the documents of a row stay in the order in which they were placed.
    by_row = np.argsort(rows, kind="stable")
    members = order[by_row][:, None] * together + np.arange(together)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows))]) * together
    return Packs(documents, members.reshape(-1), offsets.astype(np.int64), length)


def pad_packs(
    packs: Packs, indices: Integer[np.ndarray, "B"], R: int, S: int, pad_id: int, rows: Rows = ALL_ROWS
) -> dict[str, np.ndarray]:
    """Makes training arrays of the chosen packed rows.

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
            # Columns and not a mask [B, T]: the loss computes logits,
            # the largest array of all, only for these R columns.
            arrays["targets"][b, there] = column + targets
            arrays["owners"][b, there] = segment
            column, filled = here.stop, there.stop
            arrays["lasts"][b, segment - 1] = column - 1
    return arrays


def target_counts(documents: Sequences) -> Int64[np.ndarray, "n"]:
    """How many tokens of each document are trained in a packed row."""
    begins = np.minimum(np.maximum(documents.prompt_lengths, 1), documents.lengths)
    trained = np.ones(len(documents.tokens), bool) if documents.trained is None else documents.trained
    before = np.concatenate([[0], np.cumsum(trained)])
    return before[documents.offsets[1:]] - before[documents.offsets[:-1] + begins]


def _targets(documents: Sequences, i: int) -> np.ndarray:
    """The places of the trained tokens within a document."""
    start, stop = documents.offsets[i : i + 2]
    # Never the first token: what stands before it in a packed row is the end of another document.
    first = max(1, int(documents.prompt_lengths[i]))
    at = np.arange(first, stop - start)
    return at if documents.trained is None else at[documents.trained[start:stop][first:]]


def alternating(pairs: Pairs) -> Sequences:
    """Pairs as documents in the order chosen 0, rejected 0, chosen 1, ..."""
    # The mask `trained` is left out: of a pair's sides all tokens after the prompt are trained.
    rows = [side[i] for i in range(len(pairs)) for side in pairs]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    prompt_lengths = np.stack([side.prompt_lengths for side in pairs], 1).reshape(-1)
    return Sequences(np.concatenate(rows), offsets.astype(np.int64), prompt_lengths)
