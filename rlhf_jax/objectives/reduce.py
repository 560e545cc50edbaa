"""Means that are kept as sum and weight and divided once, at the end: the reduction of every loss and metric.

A loss over a batch that is split over micro-batches, devices and hosts is right only if numerators and
denominators are added apart and divided at the very end. A mean of means weights a short row's tokens
more than a long row's and makes the gradient depend on how the batch was cut.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real, ScalarLike


class Mean(NamedTuple):
    """A mean before the division: the `sum` of weighted values and the total `weight`, float32 scalars."""

    sum: ScalarLike
    weight: ScalarLike


MeanTree = Mean | dict[str, Mean]


def masked_mean(
    x: Bool[Array, "*shape"] | Real[Array, "*shape"], mask: Bool[Array, "*shape"] | Real[Array, "*shape"]
) -> Mean:
    """Weighted sum of `x` and the total weight, in float32.

    `mask` is boolean (True counts 1) or holds non-negative weights. Whatever stands in `x` where the mask
    is 0, inf and NaN too, changes neither the value nor the gradient. (That holds for the gradient with
    respect to `x`; a function that computes `x` must not overflow there, see `policy_gradient`.)
    """
    weights = mask.astype(jnp.float32)
    # Selected and not multiplied by the weight: NaN * 0 is NaN.
    kept = jnp.where(weights != 0, x.astype(jnp.float32), 0.0)
    return Mean(jnp.sum(kept * weights), jnp.sum(weights))


def add(a: MeanTree, b: MeanTree) -> MeanTree:
    """Combines the means of two disjoint parts of a batch, each one `Mean` or a dict of them with equal keys."""
    return jax.tree.map(jnp.add, a, b)


def value(mean: Mean) -> Float[Array, ""]:
    """Divides: `sum / weight`, and 0 where nothing was counted (never NaN, nor in the gradient)."""
    weight = jnp.asarray(mean.weight, jnp.float32)
    counted = weight != 0
    # The inner where is for the gradient: the outer one alone would still differentiate a division by 0.
    return jnp.where(counted, jnp.asarray(mean.sum, jnp.float32) / jnp.where(counted, weight, 1.0), 0.0)
