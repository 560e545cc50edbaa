"""Batches of rows that are about as long as each other, where the order of rows is no matter: scoring and sampling."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, Integer, Shaped

from rlhf_jax.data.batches import bucket, eval_batches, few_sizes

MANY = 4  # different lengths of arrays


def batches_by_length(
    lengths: Integer[np.ndarray, "n"], batch_size: int, multiple: int = 8, *, every: int = 8, most: int = MANY
) -> Iterator[tuple[Int64[np.ndarray, "B"], int, int]]:
    """Goes once over all rows, the longest first: yields (rows of a batch, how many of them count, T of its arrays).

    T is a multiple of `multiple`, and one of few numbers, each of which is a program to compile: one for `every` so
    many batches, and `most` at most. The last batch is filled up with copies of its last row.
    """
    n = len(lengths)
    # Stable, and the longest first: what does not fit into memory ends a job at its beginning.
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    longest = [bucket(lengths[i], multiple) for i in order[::batch_size]]
    sizes = few_sizes(np.array(longest), min(most, 1 + len(longest) // every))
    for (index_B, weight_B), needed in zip(eval_batches(n, batch_size), longest, strict=True):
        yield order[index_B], int(weight_B.sum()), next(size for size in sizes if size >= needed)


def in_order(
    parts: list[tuple[np.ndarray, Shaped[np.ndarray, "b *x"]]],
) -> Shaped[np.ndarray, "n *x"]:
    """Puts what was found of each batch, given with its rows' numbers, back into the order of the rows."""
    numbers = np.concatenate([index for index, _ in parts])
    return np.concatenate([found for _, found in parts])[np.argsort(numbers, kind="stable")]
