"""An exponential moving average of the parameters, kept in the optimizer's state and so in every checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rlhf_jax.training.vetoing import Veto, VetoingOptimizer


class AverageState(NamedTuple):
    """average: tree like the parameters, float32; it lies where they lie. inner: the optimizer's own state."""

    average: PyTree
    inner: PyTree


def averaging(inner: VetoingOptimizer, decay: float) -> VetoingOptimizer:
    """The same optimizer, which also keeps average = decay * average + (1 - decay) * new parameters.

    It starts at the first parameters and moves with every update that is not vetoed.
    """

    def init(params: PyTree) -> AverageState:
        # A copy: the train step donates both, and the same buffer cannot be donated twice.
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return AverageState(average, inner.init(params))

    def update(
        grads: PyTree, state: AverageState, params: PyTree | None = None, *, ok: Veto = True, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        updates, new = inner.update(grads, state.inner, params, ok=ok, **extra)
        average = jax.tree.map(
            lambda a, p, u: jnp.where(ok, a + (1 - decay) * (p + u - a), a), state.average, params, updates
        )
        return updates, AverageState(average, new)

    return VetoingOptimizer(init, update)


def averaged(params: PyTree, opt_state: PyTree) -> PyTree:
    """The parameters to use after training: the average where the optimizer keeps one, else `params` itself.

    An optimizer that is partitioned (`optimizer.partitioned`) has an average in each part.
    """

    def is_average(x: Any) -> bool:
        return isinstance(x, AverageState)

    states = [x for x in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(x)]
    kept = {path: x for s in states for path, x in jax.tree_util.tree_leaves_with_path(s.average)}
    if not kept:
        return params
    return jax.tree_util.tree_map_with_path(lambda path, p: kept.get(path, p).astype(p.dtype), params)
