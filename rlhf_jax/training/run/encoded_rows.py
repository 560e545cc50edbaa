"""Reads the rows that trainers train on: records to token arrays, to the rows of batches, packed or not.

Every row that is left out is counted, and the counts are printed with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.allocator import collector_paused
from rlhf_jax.data.batches import (
    Packs,
    Pairs,
    Sequences,
    best_fit,
    bucket,
    few_sizes,
    pack,
    pad,
    pad_packs,
    row_indices,
    target_counts,
)
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.files.splits import draw, hold_out
from rlhf_jax.data.records.records import Beside, counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import SIDES, encode_labelled_pairs, encode_prompts, encode_sft
from rlhf_jax.models.attention import fused
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import host_rows


class Rows(NamedTuple):
    """Rows that steps address by their number.

    Attributes:
      count: how many there are.
      tokens: real tokens of each [count].
      make: (indices of the global batch, rows of this process) -> this process's arrays.
      pairs: how many pairs fit an array's row; 0 where that is one document or pair.
      layout: arrays that say which documents share which row; none where a row is one document or pair.
      batch: rows of an evaluation's batch; 0 for the page's batch_size.
      lengths: columns that each row needs [count], where evaluations are to go by them; else they go in order.
      sizes: where the rows of a step share array rows: (page, mesh) -> how many array rows steps have, the smallest
        number first. `make` then makes this process's part of those, whatever its second argument.
      share: the array rows of a step in the mean, as a share of the largest number.
      place: of such rows: those of a step -> (the array row of each, how many array rows there are).
      room: how many of them an array row has places for.
    """

    count: int
    tokens: np.ndarray
    make: Callable[[np.ndarray, Any], dict[str, np.ndarray]]
    pairs: int = 0
    layout: tuple[np.ndarray, ...] = ()
    batch: int = 0
    lengths: np.ndarray | None = None
    sizes: Callable[[ConfigDict, Mesh], tuple[int, ...]] | None = None
    share: float = 1.0
    place: Callable[[np.ndarray], tuple[np.ndarray, int]] | None = None
    room: int = 0

    def with_columns(self, columns: dict[str, np.ndarray]) -> Rows:
        """The same rows with further columns: arrays [count, ...] by name."""

        def make(index_B: np.ndarray, rows: Any) -> dict[str, np.ndarray]:
            made = self.make(index_B, rows)
            # Columns are kept for all rows on every process; of a batch each takes the rows that it makes.
            if self.place is None:
                return made | {name: x[index_B[rows]] for name, x in columns.items()}
            rows_B, places_B, shape = self.spots(index_B)
            laid_out = {name: np.zeros(shape, x.dtype) for name, x in columns.items()}
            for name, x in columns.items():
                laid_out[name][rows_B, places_B] = x[index_B]
            return made | {name: x[host_rows(len(x))] for name, x in laid_out.items()}

        return self._replace(make=make)

    def spots(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Where the rows of a step lie: (the array row of each, its place there, array rows and places of each)."""
        rows_B, count = self.place(index_B)
        order_B, offsets = in_array_rows(rows_B, count)
        places_B = np.zeros_like(rows_B)
        places_B[order_B] = np.arange(len(rows_B)) - offsets[rows_B[order_B]]
        return rows_B, places_B, (count, self.room)


def rows_of(
    split: Split, data: ConfigDict, pad_id: int, seed: int, auto: tuple[ConfigDict, ModelConfig] | None = None
) -> tuple[Rows, Rows, int]:
    """Makes the rows that steps address: (training rows, evaluation rows, R, the most response tokens of a row).

    auto: the page and the model, by which data.packing=auto is decided.
    """
    if data.packing == "on":
        return _packed(split, data.max_length, pad_id, seed)
    # One row length for both files and both sides of a pair, so that step and evaluation compile once.
    sides = [side for found in (split.train, split.eval) for side in _sides(found)]
    T, R = array_sizes(*sides)
    if auto and data.packing == "auto" and (packed := _packed_by_step(split, T, pad_id, *auto)):
        return (*packed, R)
    return _plain(split.train, T, pad_id), _plain(split.eval, T, pad_id), R


def _plain(found: Sequences | Pairs, T: int, pad_id: int) -> Rows:
    make = pad_pairs if isinstance(found, Pairs) else pad
    tokens = sum(side.lengths for side in _sides(found))
    longest = np.max([side.lengths for side in _sides(found)], axis=0)
    return Rows(
        len(found), tokens, lambda index_B, rows: make(found, index_B, T, pad_id, rows), lengths=longest
    )


def _packed(split: Split, max_length: int, pad_id: int, seed: int) -> tuple[Rows, Rows, int]:
    # Both sides of a pair share a row, so that a pair never lies on two devices. A reward model may read
    # tokens behind the end, which max_length does not count; so the longest pair decides where it is longer.
    most = max(int(sum(side.lengths for side in _sides(found)).max()) for found in (split.train, split.eval))
    longest = bucket(max(most, max_length * len(_sides(split.train))), 8)
    # Documents are assigned to rows once, before training, so that batch i is always the same rows.
    packs = [pack(found, longest, seed) for found in (split.train, split.eval)]
    R, S = (max(sizes) for sizes in zip(*((p.most_targets, p.most_documents) for p in packs), strict=True))
    for name, p in zip(("train", "eval"), packs, strict=True):
        _print(f"data.{name}: {packing_said(p)}")
    pairs = S // 2 if isinstance(split.train, Pairs) else 0
    return *(_packed_rows(p, R, S, pad_id, pairs=pairs) for p in packs), R


def _packed_rows(p: Packs, R: int, S: int, pad_id: int, **more: int) -> Rows:
    def make(index_B: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        return pad_packs(p, index_B, R, S, pad_id, rows)

    return Rows(len(p), p.tokens, make, layout=(p.members, p.offsets, np.array([p.length, S])), **more)


# Packing by step: each step has the same `batch_size` rows as without packing, in as few array rows as hold them.

# Lengths of array rows, in halves of the longest row: longer ones waste less at their ends. Together they must be
# shorter than without packing by a share.
_HALVES, _WORTH = (2, 3, 4), 0.85
# Every number of array rows is a program to compile: one for so many steps, three at most.
_STEPS, _MOST = 200, 3


def packed_steps(
    lengths_n: np.ndarray,
    T: int,
    before: int,
    fits: Callable[[int], bool],
    config: ConfigDict,
    called: str = "rows",
) -> tuple[int, Rows, Callable[[np.ndarray], int]] | None:
    """Packs rows of so many tokens by step; None where that is no use, and a line says why.

    T, before: tokens of the longest row, and of a step's arrays without packing. fits: whether rows may be so long.
    Returns their length, the rows without `make`, and a function: a number of each -> its largest sum in an array row.
    """
    n, mesh, B = len(lengths_n), jax.sharding.get_mesh(), config.batch_size
    trained = max(1, math.ceil(config.epochs * n / B))
    # All of an epoch, if less of it is trained: a reference goes through it before the first step.
    steps = max(trained, math.ceil(n / B))

    @lru_cache
    def planned(length: int, B: int, unit: int) -> tuple[tuple[int, ...], float, np.ndarray, np.ndarray]:
        """(Sizes, the mean one, the rows of every step, the array row of each)."""
        index_SB = row_indices(0, steps * B, n, config.seed).reshape(steps, B)
        places_SB, needed_S = best_fit(lengths_n[index_SB], length)
        needed_S = -(-needed_S // unit) * unit
        sizes = few_sizes(needed_S, min(_MOST, 1 + trained // _STEPS))
        return sizes, float(np.array(sizes)[np.searchsorted(sizes, needed_S)].mean()), index_SB, places_SB

    def plan(length: int, page: ConfigDict, mesh: Mesh) -> tuple:
        return planned(length, page.batch_size, page.microbatches * mesh.shape["data"] * mesh.shape["fsdp"])

    alone = f"rows of one each are {lengths_n.mean() * B / before:.0%} full"
    lengths = [length for x in _HALVES if fits(length := bucket(T * x // 2, 8))]
    costs = [plan(length, config, mesh)[1] * length for length in lengths]
    if not lengths or min(costs) > _WORTH * before:
        why = "would save too little" if lengths else "is not for the attention kernel of these rows"
        _print(f"packing: off, it {why}; {alone}")
        return None
    # Attention costs a little more in longer rows.
    length = min(zip(costs, lengths, strict=True), key=lambda x: x[0] * (1 + 0.03 * (x[1] / T - 1)))[1]
    sizes, mean, index_SB, places_SB = plan(length, config, mesh)
    # Numbered through all steps, so that what lies in each can be counted.
    places_N = (places_SB + np.arange(steps)[:, None] * B).reshape(-1)

    def place(index_B: np.ndarray) -> tuple[np.ndarray, int]:
        (rows_B,), (needed,) = best_fit(lengths_n[index_B][None], length)
        return rows_B, next(size for size in sizes if size >= needed)

    full = lengths_n[index_SB].sum() / (mean * steps * length)
    _print(
        f"packing: {n:,} {called} in {round(mean * n / B):,} rows of {length} tokens, {full:.0%} full; "
        f"each step has its {B} {called} in {' or '.join(map(str, sizes))} of these; {alone}"
    )
    by_step = {"sizes": lambda *x: plan(length, *x)[0], "share": mean / sizes[-1], "place": place}
    rows = Rows(n, lengths_n, lambda *_: {}, **by_step)
    return length, rows, lambda x_n: int(np.bincount(places_N, x_n[index_SB].reshape(-1)).max())


def in_array_rows(rows_B: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the order in which rows lie in their array rows, where in that order each of `count` array rows begins)."""
    ends = np.cumsum(np.bincount(rows_B, minlength=count))
    return np.argsort(rows_B, kind="stable"), np.concatenate([[0], ends])


def _packed_by_step(
    split: Split, T: int, pad_id: int, config: ConfigDict, model: ModelConfig
) -> tuple[Rows, Rows] | None:
    """(Training rows, evaluation rows) of steps that are packed, or None."""
    found, fits = split.train, partial(fused.kernel_packs, model, T)
    packed = packed_steps(found.lengths, T, config.batch_size * T, fits, config)
    if packed is None:
        return None
    length, rows, most = packed
    R, S = most(target_counts(found)), most(np.ones(len(found), np.int64))

    def make(index_B: np.ndarray, _: Any) -> dict[str, np.ndarray]:
        rows_B, count = rows.place(index_B)
        order_B, offsets = in_array_rows(rows_B, count)
        packs = Packs(found, index_B[order_B], offsets, length)
        return pad_packs(packs, np.arange(count), R, S, pad_id, host_rows(count))

    held = pack(split.eval, length, config.seed)
    batch = rows.sizes(config, jax.sharding.get_mesh())[-1]
    held_rows = _packed_rows(held, held.most_targets, held.most_documents, pad_id, batch=batch)
    return rows._replace(make=make, room=S), held_rows


def packing_said(p: Packs) -> str:
    """One line about the packed rows of a file, and how full rows of one document each would be."""
    alone = float(p.tokens.sum() / (len(p.documents) * bucket(int(p.documents.lengths.max()), 8)))
    return (
        f"packing: {len(p)} rows of {p.length} tokens, {p.filled:.1%} filled, "
        f"up to {p.most_documents} documents in one; one document a row would fill {alone:.1%}"
    )


def _sides(found: Sequences | Pairs) -> tuple[Sequences, ...]:
    return tuple(found) if isinstance(found, Pairs) else (found,)


class Split(NamedTuple):
    """Encoded rows for training and for evaluation.

    Attributes:
      eval_rows: the records that `eval` was made of.
      train_rows: those of `train`, for methods that need them.
    """

    train: Any
    eval: Any
    eval_rows: list[dict]
    train_rows: Sequence[dict] = ()


# What keeps rows for later starts (`rows.kept_tokens`, when the front door loads it); and what has been said of rows.
keepers: list[Callable[..., Split]] = []
said: list[str] = []


def kept_or_made(
    make: Callable[[], Split], data: ConfigDict, tokenizers: Sequence[Any], seed: int, *how: Callable
) -> Split:
    """The rows that `make` reads and encodes, or those of an earlier start that are known to be the same.

    how: the functions that it calls; with what is bound to them they decide what comes out.
    """
    with collector_paused():
        return keepers[-1](make, data, tokenizers, seed, how) if keepers else make()


def instructions(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads demonstrations, as Sequences."""
    return kept_split(read_instructions, encode_sft, data, tokenizer, seed, made_by, joined=split_of)


def kept_split(
    read: Any,
    encode: Any,
    data: ConfigDict,
    tokenizer: Any,
    seed: int,
    made_by: str,
    *,
    joined: Callable[..., Split],
) -> Split:
    """Reads both files and encodes their records, where no earlier start has done it; joined: makes a Split of them."""

    def make() -> Split:
        return joined(*two_files(read, data, seed, made_by), encode, tokenizer, data)

    return kept_or_made(make, data, (tokenizer,), seed, read, encode, joined)


def pairs(data: ConfigDict, tokenizer: Any, seed: int, made_by: str, beside: Beside | None = None) -> Split:
    """Reads labelled pairs, as Pairs; rows that are held out share no prompt with training.

    The records beside them are those of the pairs that were kept, in the same order; beside: as `read_pairs` takes it.
    """
    read = partial(read_pairs, beside=beside)
    return kept_split(read, encode_labelled_pairs, data, tokenizer, seed, made_by, joined=aligned_split)


def prompts(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads prompts. The records beside them are those of the prompts that were kept, in the same order."""

    def make() -> Split:
        train, held = two_files(read_prompts, data, seed, made_by)
        encoded = []
        for rows, name in ((train, "train"), (held, "eval")):
            found, dropped, there = encode_prompts(
                rows, tokenizer, data.template, data.max_prompt_length, handling_of(data)
            )
            say(f"data.{name}: {len(found)} prompts", dropped)
            # Aligned with the token rows: a reward model that reads text looks its records up by number.
            encoded.append((found, [rows[i] for i in there]))
        return Split(encoded[0][0], encoded[1][0], encoded[1][1], tuple(encoded[0][1]))

    return kept_or_made(make, data, (tokenizer,), seed, read_prompts, encode_prompts)


def response_lengths(sequences: Sequences) -> np.ndarray:
    """Tokens of each response, its end included [n]."""
    return sequences.lengths - sequences.prompt_lengths


def array_sizes(*sets: Sequences) -> tuple[int, int]:
    """(T, R): one row length and one response length that hold every sequence, so that steps compile once."""
    longest = max(int(s.lengths.max()) for s in sets)
    return bucket(longest, 8), max(int(response_lengths(s).max()) for s in sets)


def pad_pairs(
    found: Pairs, index_B: np.ndarray, T: int, pad_id: int, rows: slice | np.ndarray
) -> dict[str, np.ndarray]:
    """Right-padded arrays of both sides of some pairs: {chosen,rejected}_{tokens,lengths,prompt_lengths}."""
    sides = {side: pad(getattr(found, side), index_B, T, pad_id, rows) for side in SIDES}
    return {f"{side}_{name}": x for side, arrays in sides.items() for name, x in arrays.items()}


def two_files(read: Any, data: ConfigDict, seed: int, made_by: str) -> tuple[list[dict], list[dict]]:
    """Reads the records of data.train and data.eval, or holds some of the former out: (training, evaluation)."""
    chat = data.template == CHAT
    # Each draw has its own generator: what is drawn of one file does not depend on the other's size.
    rows, skipped = read(data.train, made_by=made_by, chat=chat)
    say(f"data.train: {len(rows)} rows read from {data.train}", skipped)
    if data.eval:
        held, skipped = read(data.eval, made_by=made_by, chat=chat)
        say(f"data.eval: {len(held)} rows read from {data.eval}", skipped)
        held = draw(held, data.eval_rows, np.random.default_rng(seed))
    else:
        rows, held, skipped = hold_out(rows, data.eval_rows, seed)
        say(f"data.eval: {len(held)} rows held out", skipped)
    return draw(rows, data.train_rows or len(rows), np.random.default_rng(seed)), held


def split_of(train: list[dict], held: list[dict], encode: Any, tokenizer: Any, data: ConfigDict) -> Split:
    """Encodes the records of both files, and prints what was left out of each."""
    found = []
    for rows, name in ((train, "train"), (held, "eval")):
        encoded, dropped = encode(rows, tokenizer, data.template, data.max_length, handling_of(data))
        say(f"data.{name}: {len(encoded)} rows", dropped)
        found.append(encoded)
    return Split(*found, held)


def aligned_split(
    train: list[dict], held: list[dict], encode: Any, tokenizer: Any, data: ConfigDict
) -> Split:
    """As `split_of`, of an encoder that also says which rows it kept: the records are those of the encoded rows."""
    found, records = [], []
    for rows, name in ((train, "train"), (held, "eval")):
        encoded, dropped, kept = encode(rows, tokenizer, data.template, data.max_length, handling_of(data))
        say(f"data.{name}: {len(encoded)} rows", dropped)
        found.append(encoded)
        records.append([rows[i] for i in kept])
    return Split(*found, records[1], tuple(records[0]))


def say(text: str, skipped: Counter) -> None:
    """Prints, from the main process, what was read, what was left out of it and why."""
    said.append(f"{text}; {counts_text(skipped)}")
    _print(said[-1])


def _print(line: str) -> None:
    if startup.is_main():
        print(line, flush=True)
