"""Helpers of the objectives tests: float64 NumPy only, so that no line under test is its own witness."""

import numpy as np


def central_difference(function, x, step=1e-6):
    """Gradient of a scalar float64 function by central differences."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


def prefix_mask(lengths, R):
    return np.arange(R)[None, :] < np.asarray(lengths)[:, None]


def number(mean):
    """What a Mean stands for, in float64."""
    return float(mean.sum) / float(mean.weight)


def split_and_add(function, arrays, cut):
    """`function` on rows [:cut] and on rows [cut:], its Means added in float64: {name: (sum, weight)}."""
    halves = [function(*(a[piece] for a in arrays)) for piece in (slice(None, cut), slice(cut, None))]
    return {name: tuple(sum(float(half[name][i]) for half in halves) for i in (0, 1)) for name in halves[0]}
