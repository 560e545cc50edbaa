"""How one Hugging Face tensor holds our parameters: pure re-arrangements of NumPy arrays, and their inverses.

torch linears are [out, in] and heads are folded into one axis; ours are [in, out] with heads apart:
[D, H, K] into heads, [H, K, D] out of them. Some families keep query, key and value in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Parts = tuple[np.ndarray, ...]


class Layout(NamedTuple):
    """A bijection between one tensor of a checkpoint and one or more of our arrays (of one layer).

    Attributes:
      split: (tensor, K) -> our arrays. Views where possible.
      join: (our arrays, K) -> the tensor.
    """

    split: Callable[[np.ndarray, int], Parts]
    join: Callable[[Parts, int], np.ndarray]


def one(split: Callable[[np.ndarray, int], np.ndarray], join: Callable[[np.ndarray], np.ndarray]) -> Layout:
    """A layout of a tensor that holds one of our arrays."""
    return Layout(lambda x, K: (split(x, K),), lambda parts, K: join(parts[0]))


SAME = one(lambda x, K: x, lambda x: x)
ROW = one(lambda x, K: x[0], lambda x: x[None])
MATRIX = one(lambda x, K: x.T, lambda x: x.T)
INTO_HEADS = one(lambda x, K: x.T.reshape(x.shape[1], -1, K), lambda x: x.reshape(len(x), -1).T)
OUT_OF_HEADS = one(lambda x, K: x.T.reshape(-1, K, len(x)), lambda x: x.reshape(-1, x.shape[-1]).T)

# GPT-2 keeps its matrices as [in, out], and [D, 3 H K]: all queries, all keys, all values.
CONV_OUT_OF_HEADS = one(lambda x, K: x.reshape(-1, K, x.shape[1]), lambda x: x.reshape(-1, x.shape[-1]))
CONV_QKV = Layout(
    lambda x, K: tuple(x.reshape(len(x), 3, -1, K).swapaxes(0, 1)),
    lambda parts, K: np.stack(parts, 1).reshape(len(parts[0]), -1),
)
CONV_QKV_BIAS = Layout(lambda x, K: tuple(x.reshape(3, -1)), lambda parts, K: np.concatenate(parts))

# Those whose tensor is [in, out].
IN_FIRST = (SAME, CONV_OUT_OF_HEADS, CONV_QKV)

# GPT-NeoX keeps [H 3 K, D]: each head's query, key and value.
BY_HEAD_QKV = Layout(
    lambda x, K: tuple(x.reshape(-1, 3, K, x.shape[1]).transpose(1, 3, 0, 2)),
    lambda parts, K: np.stack(parts).transpose(2, 0, 3, 1).reshape(-1, len(parts[0])),
)
BY_HEAD_QKV_BIAS = Layout(
    lambda x, K: tuple(x.reshape(-1, 3, K).swapaxes(0, 1).reshape(3, -1)),
    lambda parts, K: np.stack([x.reshape(-1, K) for x in parts], 1).reshape(-1),
)
