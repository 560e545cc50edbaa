"""The one train step: loss_fn and optimizer in, a compiled (state, batch) -> (state, metrics) out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import Mean, value
from rlhf_jax.training.optimizer import learning_rates
from rlhf_jax.training.state import TrainState, joined, shardings
from rlhf_jax.training.vetoing import VetoingOptimizer, vetoing

Metrics = dict[str, Float[Array, ""] | Mean]
LossFn = Callable[[PyTree, PyTree], dict[str, Mean]]


class TrainStep:
    """A compiled train step: `state, metrics = step(state, batch)`. It donates params and opt_state.

    Compiled ahead (`use`), or at the first call, when the shardings of the state are known: the new state must
    have the very same ones, or the second call would compile again. `key` and `extra` are passed by and not donated;
    nor is `frozen`, a nested dict of what the loss reads and nobody trains.
    """

    def __init__(self, function: Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]) -> None:
        self._function = function
        self._jitted: Any = None
        self._ahead: jax.stages.Compiled | None = None

    def __call__(
        self, state: TrainState, batch: PyTree, frozen: PyTree | None = None
    ) -> tuple[TrainState, Metrics]:
        moving = _without_bystanders(state)
        program = self._compiled_for(moving) if self._ahead is None else self._ahead
        new, metrics = program(moving, batch, {} if frozen is None else frozen)
        return new.replace(key=state.key, extra=state.extra), metrics

    def trace(self, state: TrainState, batch: PyTree, frozen: PyTree | None = None) -> jax.stages.Traced:
        """For its jaxpr, and for `.lower().compile()`. Shapes with shardings will do for all arguments."""
        moving = _without_bystanders(state)
        return self._compiled_for(moving).trace(moving, batch, {} if frozen is None else frozen)

    def use(self, compiled: jax.stages.Compiled) -> None:
        """From here on a call runs this program, which was compiled from `trace`; no call compiles."""
        self._ahead = compiled

    def cache_size(self) -> int:
        """Programs compiled so far: 1 after the first call, and it should stay 1."""
        return (self._ahead is not None) + (0 if self._jitted is None else self._jitted._cache_size())

    def _compiled_for(self, state: TrainState) -> Any:
        if self._jitted is None:
            self._jitted = jax.jit(self._function, donate_argnums=0, out_shardings=(shardings(state), None))
        return self._jitted


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, microbatches: int = 1, divided: bool = True
) -> TrainStep:
    """Builds the train step of a method.

    loss_fn(params, batch) -> {"loss": Mean(sum, weight), name: Mean, ...}. The gradient is that of the total
        loss sum divided by the total weight. So neither padding, nor how rows fall into micro-batches, nor
        the mesh changes it. Weights must not depend on params.
    batch: tree of arrays [B, ...]; zero-dimensional leaves go whole to every micro-batch.
    microbatches: the batch is worked through in this many parts, to save memory; see `check_microbatches`.
    divided: without, Means come back as Means, for who adds those of several steps.

    Called as step(state, batch, frozen), the loss gets the state's params laid over `frozen`; neither gradients nor
    optimizer state exist for what is frozen.

    The step returns every Mean as one number, and grad_norm (before clipping), param_norm (after the step),
    learning_rate and nonfinite. When the loss or the gradient is not finite, nonfinite is 1 and params,
    optimizer state (the schedule's count too) and state.step stay as they were.
    """
    return TrainStep(partial(_train_step, loss_fn, vetoing(optimizer), microbatches, divided))


def check_microbatches(
    batch_size: int, microbatches: int, mesh: Mesh, *, field: str = "microbatches"
) -> None:
    """Raises UserError unless `microbatches` divides the rows that each device holds of a batch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * microbatches):
        fits = [m for m in range(1, batch_size // ways + 1) if batch_size % (ways * m) == 0]
        raise UserError(
            f"{field}: {microbatches} does not divide the {batch_size / ways:g} rows per device "
            f"(batch of {batch_size} on {ways}); use one of {', '.join(map(str, fits))}"
        )


def _without_bystanders(state: TrainState) -> TrainState:
    return state.replace(key=None, extra=None)


def _train_step(
    loss_fn: LossFn,
    optimizer: VetoingOptimizer,
    microbatches: int,
    divided: bool,
    state: TrainState,
    batch: PyTree,
    frozen: PyTree,
) -> tuple[TrainState, Metrics]:
    grad_fn = _whole if microbatches == 1 else partial(_accumulated, microbatches)
    grads, means = grad_fn(lambda params, part: loss_fn(joined(frozen, params), part), state.params, batch)
    metrics: dict[str, Any] = {name: value(mean) if divided else mean for name, mean in means.items()}
    # Infinite and NaN entries survive a sum of squares, so the norm tells whether all gradients are finite.
    # The clipping inside the optimizer computes the same norm; XLA finds that out and does it once.
    grad_norm = optax.tree.norm(grads)
    ok = jnp.isfinite(value(means["loss"])) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, ok=ok)
    moved = optax.apply_updates(state.params, updates)
    params = jax.tree.map(lambda new, old: jnp.where(ok, new, old), moved, state.params)
    metrics |= {
        "grad_norm": grad_norm,
        # Of the new parameters: the old ones can then be overwritten in place.
        "param_norm": optax.tree.norm(_float32(params)),
        "nonfinite": 1.0 - ok.astype(jnp.float32),
        **learning_rates(opt_state),
    }
    state = state.replace(step=state.step + ok, params=params, opt_state=opt_state)
    return state, metrics


def _whole(loss_fn: LossFn, params: PyTree, batch: PyTree) -> tuple[PyTree, dict[str, Mean]]:
    """(gradient of loss.sum / loss.weight in float32, means).

    Dividing the loss instead of the gradient spares a pass over the gradient.
    """

    def mean_loss(params: PyTree) -> tuple[Float[Array, ""], dict[str, Mean]]:
        means = loss_fn(params, batch)
        return means["loss"].sum / _divisor(means["loss"]), means

    grads, means = jax.grad(mean_loss, has_aux=True)(params)
    return _float32(grads), means


def _accumulated(
    microbatches: int, loss_fn: LossFn, params: PyTree, batch: PyTree
) -> tuple[PyTree, dict[str, Mean]]:
    """As `_whole`, one micro-batch at a time: sums are added in float32 and divided once, at the end."""
    arrays, rebuild = _split(batch, microbatches)

    def sum_loss(params: PyTree, part: list[Array]) -> tuple[Float[Array, ""], dict[str, Mean]]:
        means = loss_fn(params, rebuild(part))
        return means["loss"].sum, means

    def add(total: PyTree, part: list[Array]) -> tuple[PyTree, dict[str, Mean]]:
        grads, means = jax.grad(sum_loss, has_aux=True)(params, part)
        return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads), means

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    total, means = jax.lax.scan(add, zeros, arrays)
    means = jax.tree.map(lambda x: x.sum(0), means)
    divisor = _divisor(means["loss"])
    return jax.tree.map(lambda t: t / divisor, total), means


def _split(batch: PyTree, microbatches: int) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """([m, B/m, ...] arrays, function from one part of them back to a batch).

    Micro-batch j takes rows j, j + m, j + 2m, ... A device holds neighbouring rows of the batch; so each
    micro-batch takes its share of every device's rows and no row moves between devices. Neighbouring rows
    would all lie on a few devices and leave the others idle, or be sent around.
    """
    leaves, tree = jax.tree.flatten(batch)

    def split(x: Array) -> Array:
        if x.shape[0] % microbatches:
            raise UserError(f"microbatches: {microbatches} does not divide a batch of {x.shape[0]} rows")
        return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

    def rebuild(part: list[Array]) -> PyTree:
        rows = iter(part)
        return jax.tree.unflatten(tree, [next(rows) if x.ndim else x for x in leaves])

    return [split(x) for x in leaves if x.ndim], rebuild


def _divisor(mean: Mean) -> Float[Array, ""]:
    weight = jax.lax.stop_gradient(mean.weight)
    return jnp.where(weight > 0, weight, 1.0)  # A batch without any weight has loss 0 and gradient 0.


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
