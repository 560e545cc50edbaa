"""The one train step of all methods, built from a loss and an optimizer; what programs cost in memory and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.models.lora import joined
from rlhf_jax.objectives.reduce import Mean, add, value
from rlhf_jax.parallel.microbatches import split
from rlhf_jax.training.loop.state import TrainState, shardings_of
from rlhf_jax.training.optimizers.optimizer import SkippingOptimizer, learning_rates, skip_nonfinite

Metrics = dict[str, Float[Array, ""] | Mean]
LossFn = Callable[[PyTree, PyTree], dict[str, Mean]]
# One loss of all parameters, or one for each network by the name of its parameters.
Losses = LossFn | Mapping[str, LossFn]
StepFunction = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


class TrainStep:
    """A compiled train step: `state, metrics = step(state, batch)`. It donates params and opt_state.

    It is compiled ahead (see `use`) or at the first call, when the shardings of the state are known. The new state gets
    the same shardings, or the second call would compile again. `key` and `extra` are handed on as they are. `frozen`, a
    nested dict of what the loss reads and nobody trains, is not donated.
    """

    def __init__(self, function: Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]) -> None:
        self._function = function
        self._jitted: Any = None
        self._ahead: dict[tuple, jax.stages.Compiled] = {}

    def __call__(
        self, state: TrainState, batch: PyTree, frozen: PyTree | None = None
    ) -> tuple[TrainState, Metrics]:
        moving = _without_bystanders(state)
        program = self._ahead[_shapes_of(batch)] if self._ahead else self._compiled_for(moving)
        new, metrics = program(moving, batch, {} if frozen is None else frozen)
        return new.replace(key=state.key, extra=state.extra), metrics

    def trace(self, state: TrainState, batch: PyTree, frozen: PyTree | None = None) -> jax.stages.Traced:
        """Traces the step, for its jaxpr and for `.lower().compile()`. All arguments may be shapes with shardings."""
        moving = _without_bystanders(state)
        return self._compiled_for(moving).trace(moving, batch, {} if frozen is None else frozen)

    def use(self, compiled: jax.stages.Compiled, batch: PyTree) -> None:
        """Makes later calls with batches of such shapes run this program, compiled from `trace`; none compiles then."""
        self._ahead[_shapes_of(batch)] = compiled

    def cache_size(self) -> int:
        """Programs compiled so far: 1 after the first call, and it should stay 1."""
        return len(self._ahead) + (0 if self._jitted is None else self._jitted._cache_size())

    def _compiled_for(self, state: TrainState) -> Any:
        if self._jitted is None:
            # Left to itself XLA may choose other shardings for the new state than for the old one.
            self._jitted = jax.jit(
                self._function, donate_argnums=0, out_shardings=(shardings_of(state), None)
            )
        return self._jitted


def make_train_step(
    loss_fn: Losses,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    divided: bool = True,
    around: Callable[[StepFunction], StepFunction] | None = None,
) -> TrainStep:
    """Builds the train step of a method.

    loss_fn(params, batch) -> {"loss": Mean(sum, weight), name: Mean, ...}. The gradient is that of the total
        loss sum divided by the total weight. So neither padding, nor how rows fall into micro-batches, nor
        the mesh changes it. Weights must not depend on params. Networks that share nothing have one each, by the names
        of their params: then they are updated one after the other, and one gradient exists at a time. Their losses
        are added up, with the weight of the first.
    batch: tree of arrays [B, ...]; zero-dimensional leaves go whole to every micro-batch.
    microbatches: the batch is worked through in this many parts, to save memory; see `check_microbatches`.
    divided: if False, Means are returned as Means, for a caller that adds those of several steps.
    around: makes another step of this one, such as that of several models side by side.

    Called as step(state, batch, frozen), the loss gets the state's params laid over `frozen`; neither gradients nor
    optimizer state exist for what is frozen.

    The step returns every Mean as one number, and grad_norm (before clipping), param_norm (after the step),
    learning_rate and nonfinite. When the loss or the gradient is not finite, nonfinite is 1 and params,
    optimizer state (the schedule's count too) and state.step stay as they were; of networks one after the other, those
    of the network in question, and state.step.
    """
    step = partial(_train_step, loss_fn, skip_nonfinite(optimizer), microbatches, divided)
    return TrainStep(step if around is None else around(step))


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


def _shapes_of(batch: PyTree) -> tuple:
    return tuple(x.shape for x in jax.tree.leaves(batch))


def _without_bystanders(state: TrainState) -> TrainState:
    # None is a tree without leaves, so the program has no argument for them and cannot donate them.
    return state.replace(key=None, extra=None)


def _train_step(
    loss_fn: Losses,
    optimizer: SkippingOptimizer,
    microbatches: int,
    divided: bool,
    state: TrainState,
    batch: PyTree,
    frozen: PyTree,
) -> tuple[TrainState, Metrics]:
    in_turn = isinstance(loss_fn, Mapping)
    params, opt_state, updates, zero = state.params, state.opt_state, [], jnp.float32(0)
    for name, own in (loss_fn if in_turn else {"": loss_fn}).items():
        if updates:
            # Left to itself XLA may begin with this network before the one before it has its update. Not all compilers
            # heed the barrier, so rows and the zeros that sums start from depend on a norm, too, which is never -1.
            batch, params, opt_state = jax.lax.optimization_barrier((batch, params, opt_state))
            never = updates[-1].grad_norm == -1
            batch = jax.tree.map(lambda x, never=never: jnp.where(never, jnp.zeros_like(x), x), batch)
            zero = jnp.where(never, 1.0, 0.0)
        found = _update(
            own,
            optimizer,
            microbatches,
            {name: params[name]} if in_turn else params,
            opt_state,
            batch,
            frozen,
            zero,
        )
        params, opt_state = (params | found.params if in_turn else found.params), found.opt_state
        updates.append(found)
    means = {name: mean for found in updates for name, mean in found.means.items()}
    loss = Mean(sum(found.means["loss"].sum for found in updates), updates[0].means["loss"].weight)
    ok = jnp.all(jnp.stack([found.ok for found in updates]))
    metrics = {name: value(mean) if divided else mean for name, mean in (means | {"loss": loss}).items()} | {
        "grad_norm": optax.tree.norm([found.grad_norm for found in updates]),
        # Of the new parameters: the old ones can then be overwritten in place.
        "param_norm": optax.tree.norm(_float32(params)),
        "nonfinite": 1.0 - ok.astype(jnp.float32),
        **learning_rates(opt_state),
    }
    return state.replace(step=state.step + ok, params=params, opt_state=opt_state), metrics


class _Update(NamedTuple):
    """What one gradient has made of parameters and optimizer state, and whether it was finite."""

    params: PyTree
    opt_state: PyTree
    means: dict[str, Mean]
    grad_norm: Float[Array, ""]
    ok: Bool[Array, ""]


def _update(
    loss_fn: LossFn,
    optimizer: SkippingOptimizer,
    microbatches: int,
    params: PyTree,
    opt_state: PyTree,
    batch: PyTree,
    frozen: PyTree,
    zero: Float[Array, ""],
) -> _Update:
    grad_fn = _whole if microbatches == 1 else partial(_accumulated, microbatches, zero)
    grads, means = grad_fn(lambda params, part: loss_fn(joined(frozen, params), part), params, batch)
    # Infinite and NaN entries survive a sum of squares, so the norm tells whether all gradients are finite.
    # The clipping inside the optimizer computes the same norm; XLA finds that out and does it once.
    grad_norm = optax.tree.norm(grads)
    ok = jnp.isfinite(value(means["loss"])) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, opt_state, params, ok=ok)
    moved = optax.apply_updates(params, updates)
    # Decided on the device: asking the host would stop it from preparing the next batch.
    params = jax.tree.map(lambda new, old: jnp.where(ok, new, old), moved, params)
    return _Update(params, opt_state, means, grad_norm, ok)


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
    microbatches: int, zero: Float[Array, ""], loss_fn: LossFn, params: PyTree, batch: PyTree
) -> tuple[PyTree, dict[str, Mean]]:
    """As `_whole`, one micro-batch at a time: sums are added in float32 and divided once, at the end."""
    arrays, rebuild = split(batch, microbatches)

    def sum_loss(params: PyTree, part: list[Array]) -> tuple[Float[Array, ""], dict[str, Mean]]:
        means = loss_fn(params, rebuild(part))
        return means["loss"].sum, means

    def add(total: PyTree, part: list[Array]) -> tuple[PyTree, dict[str, Mean]]:
        grads, means = jax.grad(sum_loss, has_aux=True)(params, part)
        return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads), means

    zeros = jax.tree.map(lambda x: jnp.broadcast_to(zero, x.shape), params)
    # A scan keeps one micro-batch's activations alive at a time, and compiles the loss once.
    total, means = jax.lax.scan(add, zeros, arrays)
    means = jax.tree.map(lambda x: x.sum(0), means)
    divisor = _divisor(means["loss"])
    return jax.tree.map(lambda t: t / divisor, total), means


def _divisor(mean: Mean) -> Float[Array, ""]:
    # Counts of tokens or rows, nothing to differentiate. A batch without any has loss 0 and gradient 0.
    weight = jax.lax.stop_gradient(mean.weight)
    return jnp.where(weight > 0, weight, 1.0)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


# The loss and the other means of a method on held-out batches.


def make_evaluator(
    loss_fn: Callable[[PyTree, PyTree], dict[str, Mean]],
) -> Callable[[PyTree, Iterable[PyTree]], dict[str, float]]:
    """Compiles loss_fn, without gradient, into `evaluate(params, batches) -> {name: mean}`.

    Sums and weights are added over the batches and divided once, so a last batch filled up with rows of
    weight 0 counts as what it holds. Every shape of batches is a program. No batches: an empty dict.
    """

    means_of = jax.jit(loss_fn)

    @jax.jit
    def added(totals: dict[str, Mean], means: dict[str, Mean]) -> dict[str, Mean]:
        return {name: add(totals[name], mean) for name, mean in means.items()}

    def evaluate(params: PyTree, batches: Iterable[PyTree]) -> dict[str, float]:
        # Added on the device: fetching each batch's numbers would make the host wait for every one. And in a program
        # of its own: the first batch, which nothing is added to, would need another program of the whole model.
        totals = None
        for batch in batches:
            means = means_of(params, batch)
            totals = means if totals is None else added(totals, means)
        return {name: float(value(mean)) for name, mean in (totals or {}).items()}

    return evaluate
