"""Optimizers: Adam flavours, learning-rate schedules, weight decay on matrices, clipping by global norm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from rlhf_jax.errors import UserError

Number = float | int
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]

# Leaves below a key of this name are stacked over layers: their first axis is the layer.
STACKED = "layers"


def make_optimizer(
    *,
    name: str = "adamw",
    learning_rate: Number,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    total_steps: int,
    weight_decay: Number = 0.0,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    max_grad_norm: Number = 1.0,
    updates_per_step: int = 1,
) -> optax.GradientTransformation:
    """Clip, Adam, decay, learning rate; in that order.

    name: "adamw" (eps beside the bias-corrected second moment, as in PyTorch) or "adamw_tf" (see `_adam_tf`).
    schedule: "constant", "linear" or "cosine"; see `learning_rate_at`. warmup_steps and total_steps count
        iterations.
    updates_per_step: optimizer updates in one iteration (PPO: epochs x minibatches). The schedule advances
        once per iteration, not with every update.
    weight_decay: decoupled (Loshchilov & Hutter 2019); see `decay_mask`.
    max_grad_norm: 0 switches clipping off.
    Raises UserError naming the field that does not fit.
    """
    flavour = _choose("optimizer.name", name, _FLAVOURS)
    _choose("optimizer.schedule", schedule, _SHAPES)
    for field, value, least in (
        ("optimizer.learning_rate", learning_rate, 0),
        ("optimizer.warmup_steps", warmup_steps, 0),
        ("optimizer.total_steps", total_steps, 1),
        ("optimizer.weight_decay", weight_decay, 0),
        ("optimizer.max_grad_norm", max_grad_norm, 0),
        ("optimizer.updates_per_step", updates_per_step, 1),
    ):
        if not value >= least:
            raise UserError(f"{field}: {value}; use a number of at least {least}")

    def rate(count: Int[Array, ""]) -> Float[Array, ""]:
        step = count // updates_per_step
        return learning_rate_at(
            step, learning_rate, schedule=schedule, warmup_steps=warmup_steps, total_steps=total_steps
        )

    parts = [
        *([optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm else []),
        flavour(b1, b2, eps),
        *([optax.add_decayed_weights(weight_decay, mask=decay_mask)] if weight_decay else []),
        _scale_by_rate(rate),
    ]
    return optax.chain(*parts)


def partitioned(optimizers: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """One optimizer per top-level key of the params, e.g. {"policy": ..., "value": ...}.

    Each has its own learning rate, moments and clipping norm, and sees only its own gradients.
    """
    return optax.partition(dict(optimizers), {name: name for name in optimizers})


def learning_rate_at(
    step: Int[Array, ""] | int, peak: Number, *, schedule: str, warmup_steps: int, total_steps: int
) -> Float[Array, ""]:
    """The learning rate of iteration `step`, counted from 0.

    Warm-up rises as (step + 1) / warmup_steps, so the very first step already moves. After it, "constant"
    stays at the peak; "linear" and "cosine" fall to 0 at total_steps and stay there.
    """
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
    progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    return jnp.float32(peak) * jnp.where(step < warmup_steps, rise, _SHAPES[schedule](progress))


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: everything but vectors (norm scales, biases, score heads) and scalars.

    A vector stacked over layers, [L, D], is still a vector.
    """

    def is_matrix(path: tuple, leaf: Array) -> bool:
        stacked = any(getattr(key, "key", None) == STACKED for key in path)
        return leaf.ndim - stacked > 1

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def learning_rates(opt_state: PyTree) -> dict[str, Float[Array, ""]]:
    """Of the last update: {"learning_rate": x}, or {"learning_rate/policy": x, ...} when partitioned."""
    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=lambda x: isinstance(x, RateState))
    for path, leaf in leaves:
        if isinstance(leaf, RateState):
            owner = "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
            found[f"learning_rate/{owner}" if owner else "learning_rate"] = leaf.learning_rate
    return found


class RateState(NamedTuple):
    """count: updates so far. learning_rate: of the last one, kept so that it can be logged."""

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]


def _scale_by_rate(rate: Schedule) -> optax.GradientTransformation:
    def init(params: PyTree) -> RateState:
        del params
        return RateState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32))

    def update(updates: PyTree, state: RateState, params: PyTree | None = None) -> tuple[PyTree, RateState]:
        del params
        now = rate(state.count)
        return jax.tree.map(lambda u: -now * u, updates), RateState(state.count + 1, now)

    return optax.GradientTransformation(init, update)


def _adam_tf(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam as TensorFlow 1 has it: eps beside the second moment before its bias correction.

    The same as dividing by sqrt(v_hat) + eps / sqrt(1 - b2^t): far smaller first steps for a large eps.
    OpenAI's first RLHF code depends on it (Huang et al. 2023, "The N Implementation Details of RLHF with
    PPO").
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        count = state.count + 1
        scale = jnp.sqrt(_one_minus_power(b2, count)) / _one_minus_power(b1, count)
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _one_minus_power(b: float, count: Int[Array, ""]) -> Float[Array, ""]:
    """1 - b^count, without the digits float32 loses when b is close to 1."""
    return -jnp.expm1(count * math.log(b)) if b > 0 else jnp.float32(1)


_FLAVOURS = {
    "adamw": lambda b1, b2, eps: optax.scale_by_adam(b1, b2, eps),
    "adamw_tf": _adam_tf,
}
_SHAPES = {
    "constant": jnp.ones_like,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}


def _choose(field: str, name: str, table: Mapping[str, Any]) -> Any:
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(table)}"
    raise UserError(f"{field}: {name!r} is unknown; {hint}")
