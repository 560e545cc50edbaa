"""The one train step of all methods, built from a loss and an optimizer; what programs cost in memory and FLOPs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.models.lora import joined
from rlhf_jax.objectives.reduce import Mean, add, value
from rlhf_jax.parallel.mesh import mesh_device
from rlhf_jax.training.loop.state import TrainState, shardings_of
from rlhf_jax.training.optimizers.optimizer import SkippingOptimizer, learning_rates, skip_nonfinite

Metrics = dict[str, Float[Array, ""] | Mean]
LossFn = Callable[[PyTree, PyTree], dict[str, Mean]]
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
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    divided: bool = True,
    around: Callable[[StepFunction], StepFunction] | None = None,
) -> TrainStep:
    """Builds the train step of a method.

    loss_fn(params, batch) -> {"loss": Mean(sum, weight), name: Mean, ...}. The gradient is that of the total
        loss sum divided by the total weight. So neither padding, nor how rows fall into micro-batches, nor
        the mesh changes it. Weights must not depend on params.
    batch: tree of arrays [B, ...]; zero-dimensional leaves go whole to every micro-batch.
    microbatches: the batch is worked through in this many parts, to save memory; see `check_microbatches`.
    divided: if False, Means are returned as Means, for a caller that adds those of several steps.
    around: makes another step of this one, such as that of several models side by side.

    Called as step(state, batch, frozen), the loss gets the state's params laid over `frozen`; neither gradients nor
    optimizer state exist for what is frozen.

    The step returns every Mean as one number, and grad_norm (before clipping), param_norm (after the step),
    learning_rate and nonfinite. When the loss or the gradient is not finite, nonfinite is 1 and params,
    optimizer state (the schedule's count too) and state.step stay as they were.
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
    loss_fn: LossFn,
    optimizer: SkippingOptimizer,
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
    # Decided on the device: asking the host would stop it from preparing the next batch.
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
    # A scan keeps one micro-batch's activations alive at a time, and compiles the loss once.
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


# What a program will take, known before it runs: memory on each device, and floating-point operations.

GIB = 2**30


class Chip(NamedTuple):
    """What an accelerator can do, per jax device of it; chips.yaml says what each number means, and its source."""

    name: str
    kind: str
    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    interconnect: float
    network: float = 0.0
    host: int = 0
    slices: tuple[str, ...] = ()


@lru_cache
def chips() -> dict[str, Chip]:
    """The accelerators that are known, by the name of their family."""
    import yaml  # Here, since most runs ask for no chip.

    rows = yaml.safe_load((Path(__file__).with_name("chips.yaml")).read_text())
    return {name: Chip(name, **row) for name, row in rows.items()}


def chip_of(kind: str) -> Chip | None:
    """The accelerator of a jax device_kind; None of one that is not known, such as a CPU."""
    return next((chip for chip in chips().values() if chip.kind in kind), None)


class MemoryNeeds(NamedTuple):
    """Bytes of one compiled program on each device.

    Attributes:
      arguments: what it is called with.
      outputs: what it returns, without what it writes over its (donated) arguments.
      temporaries: what it holds in between.
      peak: the most that is alive at one time, where the compiler knows it; else 0.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int = 0

    @property
    def total(self) -> int:
        return self.peak or self.arguments + self.outputs + self.temporaries

    def without(self, shared: int) -> MemoryNeeds:
        """The same where so many bytes of the arguments are there only once."""
        return self._replace(arguments=self.arguments - shared, peak=max(0, self.peak - shared))


def needs(compiled: jax.stages.Compiled) -> MemoryNeeds:
    """Memory of a program as the compiler plans it. The peak of a device's allocator may lie a few percent above."""
    found = compiled.memory_analysis()
    # The compiler for CPUs leaves temporaries out of its peak; the others' is below the sum, by a fifth on TPU.
    peak = 0 if mesh_device().platform == "cpu" else getattr(found, "peak_memory_in_bytes", 0)
    # Donated arguments are overwritten by results; those bytes count once, as arguments.
    return MemoryNeeds(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        peak,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes that a tree of arrays, or of shapes with shardings, takes on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available(device: Any = None) -> int:
    """Bytes a device offers programs. CPU devices share the machine's memory, each an equal part.

    device: the current mesh's unless given; of one that is not there, what chips.yaml says.
    """
    device = mesh_device() if device is None else device
    # The allocator's limit, which on GPUs is a share of the memory. CPU devices have no statistics.
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # of a device that programs are compiled for and that is elsewhere
        return int(chip_of(device.device_kind).memory * GIB)
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def peak_flops(device: Any = None) -> float | None:
    """FLOP/s of a device in dense bfloat16; None where that is not known, as of CPUs."""
    chip = chip_of((mesh_device() if device is None else device).device_kind)
    return None if chip is None else chip.flops["bfloat16"]


def matrix_flops(jaxpr: Any) -> int:
    """Floating-point operations of a program's matrix products, over all devices: 2 per multiply and add.

    jaxpr: of `jax.jit(f).trace(...)`. A scan counts as often as it runs, what remat computes again counts again,
    of a `cond` the dearer branch, and a `while` as often as it may run where its condition compares a counter with a
    number, else once. The compiler's own `cost_analysis` counts the body of a scan once, whatever its length.
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            a = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(a[i] for i in contracted)
        inner = [matrix_flops(sub) for sub in programs_inside(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += eqn.params.get("length", _most_runs(eqn)) * sum(inner) if inner else 0
    return total


def _most_runs(eqn: Any) -> int:
    """How often a `while` runs at most: the whole number that its condition compares with; of all else 1."""
    asked = eqn.params["cond_jaxpr"].jaxpr.eqns if eqn.primitive.name == "while" else ()
    most = [x.invars[1].val for x in asked if x.primitive.name == "lt" and hasattr(x.invars[1], "val")]
    return max((int(x) for x in most if jnp.issubdtype(jnp.result_type(x), jnp.integer)), default=1)


def programs_inside(eqn: Any) -> list[Any]:
    """Lists the jaxprs inside an operation of a jaxpr, such as a scan's body, without rules of differentiation."""
    found = []
    for name, inner in eqn.params.items():
        # Rules of differentiation: kept beside the operation, not run by it.
        if name in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun"):
            continue
        several = inner if isinstance(inner, tuple | list) else (inner,)
        found += [x for x in several if hasattr(getattr(x, "jaxpr", x), "eqns")]
    return found
