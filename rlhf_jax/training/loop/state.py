"""TrainState: everything that evolves in a run, and therefore everything that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from rlhf_jax.parallel.host_memory import to_devices, to_host, waits
from rlhf_jax.parallel.mesh import replicate
from rlhf_jax.training.optimizers.optimizer import map_moments

Path = tuple[Any, ...]


@flax.struct.dataclass
class TrainState:
    """What a run carries from iteration to iteration.

    step: int32 scalar, optimizer updates made so far.
    params: tree of arrays.
    opt_state: what the optimizer keeps; its moments lie where their parameters lie.
    key: typed PRNG key. Never consumed: iteration i uses `fold_in(state.key, i)`.
    extra: dict tree, what else a method carries, e.g. {"kl_coef": float32 scalar}.
    """

    # Not annotated as arrays: the same class holds their shapes or shardings, see `abstract` and `shardings`.
    step: PyTree
    params: PyTree
    opt_state: PyTree
    key: PyTree
    extra: PyTree


def create(
    params: PyTree, optimizer: optax.GradientTransformation, seed: int, extra: PyTree | None = None
) -> TrainState:
    """Makes the state before the first step.

    params: already where they belong. They are the state's from here on, and the first train step donates
        them: copy what must live longer, a reference model for example.
    optimizer: its moments are float32 whatever the params are, and live where their parameters live.
    extra: numbers or arrays, copied to every device, but for arrays that lie on the mesh already; or shapes with
        shardings, which become zeros.
    """
    home = _home(params)
    # Committed to their devices, as the step returns them; else the second step would compile again.
    params = jax.tree.map(lambda x: jax.device_put(x, x.sharding), params)
    init = _float32_init(optimizer)
    return TrainState(
        step=_place(np.int32(0), home),
        params=params,
        opt_state=jax.jit(init, out_shardings=shardings_of(_planned_opt_state(params, optimizer)))(params),
        key=_place(jax.random.key(seed), home),
        extra=jax.tree.map(lambda x: _placed_extra(x, home), {} if extra is None else extra),
    )


def planned_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes of the state that `create` will make, as far as a train step reads and writes it.

    params: ShapeDtypeStructs with shardings. Key and extra, which no step touches, are None.
    """
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=_home(params))
    return TrainState(step, params, _planned_opt_state(params, optimizer), key=None, extra=None)


def shardings_of(state: PyTree) -> PyTree:
    """The sharding of every array of a tree."""
    return jax.tree.map(lambda x: x.sharding, state)


def abstract(state: PyTree) -> PyTree:
    """Shapes, dtypes and shardings without the data: what a checkpoint is restored onto."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def placed(params: PyTree, planned: PyTree) -> PyTree:
    """Moves parameters to where the compiled step expects them; those that are there already stay as they are.

    A fresh score head, for example, was made on one device. Those that wait in the hosts' memory stay there.
    """

    def put(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        there = waits(x) or x.sharding.is_equivalent_to(like.sharding, x.ndim)
        return x if there else jax.device_put(x, like.sharding)

    return jax.tree.map(put, params, planned)


# Between the updates of two iterations nothing reads an optimizer's moments, so that they may wait on the hosts.


def at_rest(state: TrainState) -> TrainState:
    """The state with its optimizer's moments in the hosts' memory, and nothing of them on the devices any more."""
    return state.replace(opt_state=jax.block_until_ready(map_moments(to_host, state.opt_state)))


def at_work(state: TrainState) -> TrainState:
    """The same with all on the devices, as the train step wants it."""
    return state.replace(opt_state=to_devices(state.opt_state))


def _planned_opt_state(params: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
    shapes = jax.eval_shape(_float32_init(optimizer), params)
    places = _opt_state_shardings(shapes, params, _home(params))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, places
    )


def _float32_init(optimizer: optax.GradientTransformation) -> Any:
    # Moments of bfloat16 parameters would lose most of every small gradient.
    return lambda params: optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))


def _opt_state_shardings(opt_state: PyTree, params: PyTree, home: Sharding) -> PyTree:
    """The shardings of an abstract optimizer state.

    Left to itself XLA would copy the moments to every device: zeros depend on no sharded input. A leaf whose
    path ends in the path of a parameter, and that has its shape, lives where the parameter lives; counts and
    other scalars live everywhere.
    """
    # Optimizers nest trees like the parameters': mu/layers/... ends in the path of a parameter, layers/...
    where = {path: (x.shape, x.sharding) for path, x in jax.tree_util.tree_leaves_with_path(params)}

    def find(path: Path, leaf: jax.ShapeDtypeStruct) -> Sharding:
        for start in range(len(path) + 1):
            shape, sharding = where.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return home

    return jax.tree_util.tree_map_with_path(find, opt_state)


def _home(params: PyTree) -> Sharding:
    """Where scalars live: on every device of the parameters' mesh, or on their one device."""
    sharding = jax.tree.leaves(params)[0].sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def _place(x: Any, home: Sharding) -> jax.Array:
    return replicate(x, home.mesh) if isinstance(home, NamedSharding) else jax.device_put(x, home)


def _placed_extra(x: Any, home: Sharding) -> jax.Array:
    # Made where it lies: a process cannot make an array that is cut over the devices of several.
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.jit(lambda: jnp.zeros(x.shape, x.dtype), out_shardings=x.sharding)()
    # Parameters of an earlier policy are cut as the policy's are.
    if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding):
        return x
    return _place(_strong(x), home)


def _strong(x: Any) -> Any:
    # A Python number would make a weakly typed array, and the second step would compile again.
    if isinstance(x, jax.Array):
        return x
    x = np.asarray(x)
    return (
        x.astype({"f": np.float32, "i": np.int32}.get(x.dtype.kind, x.dtype)) if x.dtype.itemsize == 8 else x
    )
