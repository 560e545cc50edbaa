"""A batch worked through in parts, one after the other: what is made on the way exists of one part at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rlhf_jax.errors import UserError


def split(batch: PyTree, microbatches: int) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """([m, B/m, ...] arrays, function from one part of them back to a batch).

    Micro-batch j takes rows j, j + m, j + 2m, ... A device holds neighbouring rows of the batch; so each
    micro-batch takes its share of every device's rows and no row moves between devices. Neighbouring rows
    would all lie on a few devices and leave the others idle, or be sent around. Zero-dimensional leaves go whole
    to every micro-batch.
    """
    leaves, tree = jax.tree.flatten(batch)

    def parts(x: Array) -> Array:
        if x.shape[0] % microbatches:
            raise UserError(f"microbatches: {microbatches} does not divide a batch of {x.shape[0]} rows")
        return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

    def rebuild(part: list[Array]) -> PyTree:
        rows = iter(part)
        return jax.tree.unflatten(tree, [next(rows) if x.ndim else x for x in leaves])

    return [parts(x) for x in leaves if x.ndim], rebuild


def in_parts(function: Callable[[PyTree], PyTree], batch: PyTree, microbatches: int) -> PyTree:
    """`function(batch)`, one micro-batch at a time; for what is computed of every row by itself.

    Arrays of the result have as many rows for each row of the batch as for any other, next to each other. Numbers of
    it are added up.
    """
    if microbatches == 1:
        return function(batch)
    arrays, rebuild = split(batch, microbatches)
    found = jax.lax.map(lambda part: function(rebuild(part)), arrays)
    return jax.tree.map(partial(_in_order, arrays[0].shape[1]), found)


def _in_order(rows: int, x: Array) -> Array:
    """From the results of all parts [m, rows * n, ...] the batch's [m * rows * n, ...]; from numbers [m] their sum."""
    if x.ndim == 1:
        return x.sum()
    m, results, *rest = x.shape
    return jnp.moveaxis(x.reshape(m, rows, results // rows, *rest), 0, 1).reshape(m * results, *rest)
