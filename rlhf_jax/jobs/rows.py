"""What a step trains on, by number: one document or pair a row, or, with `data.packing`, as many as fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, pad
from rlhf_jax.data.packing import Packs, pack, pad_packs
from rlhf_jax.data.tokenization import Pairs, Sequences
from rlhf_jax.jobs import inputs
from rlhf_jax.parallel import startup


class Rows(NamedTuple):
    """Attributes:
    count: how many.
    tokens: real tokens of each [count].
    make: (indices of the global batch, rows of this process) -> this process's arrays.
    pairs: how many pairs fit a row; 0 where a row is one document or pair.
    layout: arrays that say what shares which row; none where a row is one document or pair.
    """

    count: int
    tokens: np.ndarray
    make: Callable[[np.ndarray, Any], dict[str, np.ndarray]]
    pairs: int = 0
    layout: tuple[np.ndarray, ...] = ()


def rows_of(split: inputs.Split, data: ConfigDict, pad_id: int, seed: int) -> tuple[Rows, Rows, int]:
    """(training rows, evaluation rows, R: the most response tokens of a row)."""
    if data.packing:
        return _packed(split, data.max_length, pad_id, seed)
    sides = [side for found in (split.train, split.eval) for side in _sides(found)]
    T, R = inputs.array_sizes(*sides)
    return _plain(split.train, T, pad_id), _plain(split.eval, T, pad_id), R


def _plain(found: Sequences | Pairs, T: int, pad_id: int) -> Rows:
    make = inputs.pad_pairs if isinstance(found, Pairs) else pad
    tokens = sum(side.lengths for side in _sides(found))
    return Rows(len(found), tokens, lambda index_B, rows: make(found, index_B, T, pad_id, rows))


def _packed(split: inputs.Split, max_length: int, pad_id: int, seed: int) -> tuple[Rows, Rows, int]:
    # Both sides of a pair share a row; a reward model may read tokens behind the end, which max_length does not count.
    most = max(int(sum(side.lengths for side in _sides(found)).max()) for found in (split.train, split.eval))
    longest = bucket(max(most, max_length * len(_sides(split.train))), 8)
    packs = [pack(found, longest, seed) for found in (split.train, split.eval)]
    R, S = (max(sizes) for sizes in zip(*((p.most_targets, p.most_documents) for p in packs), strict=True))
    for name, p in zip(("train", "eval"), packs, strict=True):
        if startup.is_main():
            print(f"data.{name}: {describe(p)}", flush=True)
    pairs = S // 2 if isinstance(split.train, Pairs) else 0

    def rows(p: Packs) -> Rows:
        layout = (p.members, p.offsets, np.array([p.length, S]))
        return Rows(
            len(p), p.tokens, lambda index_B, rows: pad_packs(p, index_B, R, S, pad_id, rows), pairs, layout
        )

    return rows(packs[0]), rows(packs[1]), R


def describe(p: Packs) -> str:
    """What packing made of a file, in one line."""
    alone = float(p.tokens.sum() / (len(p.documents) * bucket(int(p.documents.lengths.max()), 8)))
    return (
        f"packing: {len(p)} rows of {p.length} tokens, {p.filled:.1%} filled, "
        f"up to {p.most_documents} documents in one; one document a row would fill {alone:.1%}"
    )


def _sides(found: Sequences | Pairs) -> tuple[Sequences, ...]:
    return tuple(found) if isinstance(found, Pairs) else (found,)
