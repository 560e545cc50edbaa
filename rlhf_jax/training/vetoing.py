"""Optimizers that can be told that a step did not count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

Veto = Bool[Array, ""] | bool


class VetoingOptimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation whose `update` also takes ok=: if that is False, the state stays as it was.

    The updates are then worthless, and the caller must not apply them.
    """


def vetoing(optimizer: optax.GradientTransformation) -> VetoingOptimizer:
    """Teaches any optax transformation to obey ok=."""
    if isinstance(optimizer, VetoingOptimizer):
        return optimizer
    inner = optax.with_extra_args_support(optimizer)

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, *, ok: Veto = True, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        updates, new = inner.update(grads, state, params, **extra)
        return updates, jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, state)

    return VetoingOptimizer(optimizer.init, update)
