"""Batches addressed by a step number: which rows, and ragged tokens -> fixed arrays.

The rows of step i are a pure function of (seed, i), so a run resumes from one integer. Every function that
makes arrays takes `rows`, the part of the batch this process holds (`parallel.arrays.host_rows`), and
makes only those.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped

from rlhf_jax.data.tokenization import Prompts, Sequences
from rlhf_jax.errors import UserError

Rows = slice | np.ndarray
ALL_ROWS = slice(None)


def row_indices(step: int, batch_size: int, n: int, seed: int) -> Int64[np.ndarray, "B"]:
    """The data rows of batch number `step`: entries step*B .. (step+1)*B - 1 of an endless stream.

    The stream is one permutation of 0..n-1 per epoch, put end to end, so every row comes once per epoch and
    no row is dropped at an epoch's end. With fewer rows than the batch, a batch holds rows several times.
    Raises UserError when there is no row.
    """
    if n < 1:
        raise UserError("data: there are no rows to train on")
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // n, (last - 1) // n + 1)
    stream = np.concatenate([permutation(epoch, n, seed) for epoch in epochs])
    start = first - epochs.start * n
    return stream[start : start + batch_size]


@lru_cache(maxsize=8)
def permutation(epoch: int, n: int, seed: int) -> Int64[np.ndarray, "n"]:
    """The order of rows 0..n-1 in an epoch."""
    # Sorting raw Philox words rests on the cipher alone; Generator.permutation may change between numpy
    # versions, and with it the data order of a resumed run.
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def pad(
    sequences: Sequences, indices: Integer[np.ndarray, "B"], length: int, pad_id: int, rows: Rows = ALL_ROWS
) -> dict[str, np.ndarray]:
    """Right-padded training arrays of the chosen sequences.

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
    """Left-padded prompts for generation: tokens [B, P] and lengths [B], int32. P is `length`.

    Raises ValueError when a prompt is longer than P.
    """
    chosen = np.asarray(indices)[rows]
    lengths = prompts.lengths[chosen]
    _check_fits(lengths, length)
    column = np.arange(length) - (length - lengths[:, None])
    return {
        "tokens": _take(prompts.tokens, prompts.offsets[chosen], column, column >= 0, pad_id),
        "lengths": lengths,
    }


def bucket(max_length: int | np.integer, multiple: int = 16) -> int:
    """The smallest multiple of `multiple` that holds `max_length` tokens: array lengths XLA likes."""
    return max(1, -(-int(max_length) // multiple)) * multiple


def eval_batches(
    n: int, batch_size: int, rows: Rows = ALL_ROWS
) -> Iterator[tuple[Int64[np.ndarray, "B"], Float32[np.ndarray, "B"]]]:
    """Goes once over 0..n-1 in order: yields (indices, weight) of this process's part of each batch.

    The last batch is filled up with row n-1 at weight 0, so sums of weight * value over all batches count
    every row exactly once, on any number of devices.
    """
    if n < 1:
        raise UserError("data: there are no rows to evaluate on")
    for first in range(0, n, batch_size):
        indices = np.arange(first, first + batch_size)
        yield np.minimum(indices, n - 1)[rows], (indices < n).astype(np.float32)[rows]


def _take(
    values: Shaped[np.ndarray, "N"],
    starts: Int64[np.ndarray, "B"],
    column: np.ndarray,
    inside: np.ndarray,
    fill: int | bool,
) -> Shaped[np.ndarray, "B T"]:
    """values[starts + column] where inside, else `fill`."""
    positions = np.where(inside, starts[:, None] + column, 0)
    if not inside.any():
        return np.full(inside.shape, fill, values.dtype)
    return np.where(inside, values[positions], values.dtype.type(fill))


def _check_fits(lengths: np.ndarray, length: int) -> None:
    if lengths.size and lengths.max() > length:
        raise ValueError(f"a sequence of {lengths.max()} tokens does not fit arrays of length {length}")
