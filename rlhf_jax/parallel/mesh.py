"""The one device mesh ("data", "fsdp", "tensor"): making it, sharding rules by logical axis, rows onto it and back."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rlhf_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# The rows of a batch are split over both: devices that share parameters still see different rows.
BATCH_AXES = ("data", "fsdp")
AUTO = "auto"  # The word for mesh.fsdp by which the memory plan of training decides.

# A device of every kind that a mesh was made of: a trace knows the kind alone, and it may be that of an absent one.
_KINDS: dict[str, jax.Device] = {}
# The devices that meshes are made of where `compiling_for` names others than this process has.
_ABSENT: list[jax.Device] = []


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Builds the mesh over all devices (or over `devices`) and makes it current with `jax.set_mesh`.

    data:   copies of the model that see different rows.
    fsdp:   devices that share the parameters and also split the rows.
    tensor: devices that split heads, feed-forward width and vocabulary.
    At most one of the three may be -1: it then takes the devices that remain.

    Axis types are Auto, so models say where arrays live by sharding constraints, not in their types.
    Raises UserError naming `mesh.<axis>` when the numbers do not fit the device count.
    """
    devices = present_devices() if devices is None else list(devices)
    sizes = _resolve({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    mesh = arranged(tuple(sizes.values()), devices)
    jax.set_mesh(mesh)
    _KINDS[devices[0].device_kind] = devices[0]
    return mesh


def arranged(sizes: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
    """The mesh of these sizes, in the order in which neighbours on it are neighbours among the devices."""
    if (slices := len({getattr(device, "slice_index", 0) for device in devices})) > 1:
        raise UserError(f"mesh: the {len(devices)} devices are of {slices} slices; use those of one")
    # Not jax.make_mesh, on most kinds of chips of which two axes cannot share one side of a pod's torus, such as
    # 32 x 8 on 16 x 16. Its default is Explicit axes, with which flax.linen and sharding constraints do not work.
    order = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(order, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def present_devices() -> list[jax.Device]:
    """What meshes are made of: the devices of all processes, or those that `compiling_for` names."""
    return _ABSENT or jax.devices()


@contextmanager
def compiling_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """A context in which meshes are made of these devices, which need not be there: programs are compiled, not run."""
    before = list(_ABSENT)
    _ABSENT[:] = devices
    try:
        yield
    finally:
        _ABSENT[:] = before


def mesh_device(mesh: Mesh | AbstractMesh | None = None) -> jax.Device:
    """A device like those of the mesh, or of the current one, in a trace too: a local one where it is of that kind.

    It may be one that a program is compiled for and that is not there; without a mesh it is this process's first.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    local = jax.local_devices()[0]
    found = getattr(mesh, "abstract_mesh", mesh).abstract_device
    return (
        local
        if found is None or found.device_kind == local.device_kind
        else _KINDS.get(found.device_kind, local)
    )


def _resolve(sizes: dict[str, int], n_devices: int) -> dict[str, int]:
    """Fills in the one -1 and checks that the product is the device count."""
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(
            f"mesh.{free[1]}: -1, and mesh.{free[0]} is -1 too; only one axis can take the remaining devices"
        )
    product = 1
    for size in sizes.values():
        product *= max(size, 1)
    shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != -1)
    widest = max(sizes, key=lambda name: sizes[name])
    if free:
        if n_devices % product:
            raise UserError(
                f"mesh.{widest}: {shown} does not divide {_devices(n_devices)}; "
                f"choose sizes whose product divides {n_devices}"
            )
        return sizes | {free[0]: n_devices // product}
    if product != n_devices:
        raise UserError(
            f"mesh.{widest}: {shown} needs {_devices(product)}, {n_devices} present; "
            f"set mesh.{widest}=-1 to take the devices that remain"
        )
    return sizes


def _devices(n: int) -> str:
    return f"{n} device" + ("" if n == 1 else "s")


# Host rows to global arrays and back. Each process holds only the rows its own devices will read.

_ROWS = PartitionSpec(BATCH_AXES)
_REPLICATED = PartitionSpec()


def check_batch(global_batch: int, mesh: Mesh, *, field: str = "batch_size") -> None:
    """Raises UserError naming `field` when the mesh cannot split that many rows evenly."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if global_batch < 1 or global_batch % ways:
        raise UserError(
            f"{field}: {global_batch} rows do not split evenly over mesh.data x mesh.fsdp = {ways} devices; "
            f"use a multiple of {ways}"
        )


def host_rows(global_batch: int, mesh: Mesh | None = None) -> slice | np.ndarray:
    """The rows of a global batch that this process must provide: an index for numpy arrays of B rows.

    Nearly always a slice. Where the physical layout of a TPU slice gives one host's devices rows that do not
    follow each other, it is an ascending index array. Processes joined by the tensor axis get the same rows.
    mesh: the current one unless given.
    """
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    check_batch(global_batch, mesh)
    if jax.process_count() == 1:
        return slice(0, global_batch)
    # Asked of jax and not computed from process numbers: the order of devices in a mesh follows the hardware.
    index_map = NamedSharding(mesh, _ROWS).addressable_devices_indices_map((global_batch,))
    pieces = sorted({slice_.indices(global_batch)[:2] for (slice_,) in index_map.values()})
    if all(stop == start for (_, stop), (start, _) in pairwise(pieces)):
        return slice(pieces[0][0], pieces[-1][1])
    return np.concatenate([np.arange(start, stop) for start, stop in pieces])


def to_global(host_batch: Any, mesh: Mesh | None = None) -> Any:
    """Makes global arrays of this process's rows of every array in a tree, split on axis 0 over ("data", "fsdp").

    host_batch: tree of numpy arrays [rows of this process, ...], the rows `host_rows` names, in that order.
        Zero-dimensional leaves are copied to every device and must be equal on all processes.
    Returns arrays [B, ...] that compiled functions take as they are.
    """
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    rows, everywhere = NamedSharding(mesh, _ROWS), NamedSharding(mesh, _REPLICATED)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(rows if x.ndim else everywhere, x)

    return jax.tree.map(put, host_batch)


def replicate(tree: Any, mesh: Mesh | None = None) -> Any:
    """Copies every leaf (numpy, jax array or typed PRNG key) to all devices of the mesh.

    Values must be equal on all processes; nothing checks it here (`startup.agree` does).
    """
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    everywhere = NamedSharding(mesh, _REPLICATED)

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array):
            # A typed key has no NumPy form; its bits have one.
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
            if not x.is_fully_addressable:
                return jax.device_put(x, everywhere)
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(everywhere, x, x.shape)

    return jax.tree.map(put, tree)


def gather(tree: Any) -> Any:
    """Fetches every leaf as a full numpy array, on every process.

    A collective where an array is spread over processes: all processes must call it, in the same order.
    Leaves a process holds alone (numpy, local arrays) come back as they are.
    """

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if not x.is_fully_replicated:
            # An identity whose result lies on every device is an all-gather.
            x = jax.jit(_identity, out_shardings=NamedSharding(x.sharding.mesh, _REPLICATED))(x)
        return np.asarray(x.addressable_data(0))

    return jax.tree.map(fetch, tree)


def _identity(x: jax.Array) -> jax.Array:
    return x


# Which mesh axis each logical axis of a parameter or a batch is split over.
#
# Models name the axes of their arrays ("embed", "heads", ...); this table alone says where they live.

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters and optimizer state are split over fsdp (ZeRO-3) and tensor; rows over data and fsdp.
TRAIN_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
}

# Decoding reads every weight once per token: gathering them over fsdp each time would cost more than the
# memory saved, so the rollout copy is split over tensor only.
ROLLOUT_RULES: Rules = {**TRAIN_RULES, "embed": None}

# Grouped-query attention may have fewer key-value heads than tensor devices: those are then copied.
_MAY_REPLICATE = ("kv_heads",)
# Vocabularies are often odd (50257, or 32000 and a pad token): a table that cannot be split is copied.
_MAY_BE_ODD = ("vocab",)


def partition_spec(names: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Logical axis names of one array -> its PartitionSpec. Raises KeyError for a name the rules lack."""
    return PartitionSpec(*(None if name is None else rules[name] for name in names))


def shardings(
    logical_specs: Any, mesh: Mesh | AbstractMesh, rules: Rules, shapes: Any = None, section: str = "mesh"
) -> Any:
    """Turns a tree of logical axis names into the same tree of NamedShardings.

    logical_specs: each leaf a tuple of logical names (None: not split) or a PartitionSpec of them, as
        `flax.linen.get_partition_spec` returns for boxed parameters; scalars have an empty one.
    mesh: an AbstractMesh plans for devices that are not here.
    shapes: optional tree of the same structure whose leaves have `.shape` (arrays or ShapeDtypeStructs).
        With it, every split dimension is checked: a mesh axis that does not divide it raises UserError,
        except that fewer kv_heads than devices, and a vocabulary that does not divide, are copied to all of them.
    section: of the page, where the sizes of the mesh stand; for errors.
    """
    if shapes is None:
        return jax.tree.map(
            lambda names: NamedSharding(mesh, partition_spec(tuple(names), rules)),
            logical_specs,
            is_leaf=_is_spec,
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, names, leaf: _checked(path, tuple(names), leaf.shape, mesh, rules, section),
        logical_specs,
        shapes,
        is_leaf=_is_spec,
    )


def _is_spec(x: Any) -> bool:
    # Optimizer states are tuples and named tuples of trees; only a plain tuple of names is a leaf.
    if isinstance(x, PartitionSpec):
        return True
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def _checked(
    path: tuple,
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    section: str,
) -> NamedSharding:
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    if len(names) > len(shape):
        raise ValueError(f"{where}: {len(names)} axis names {names} for shape {shape}")
    spec = []
    for name, size in zip(names, shape, strict=False):
        axes = None if name is None else rules[name]
        ways = _ways(axes, mesh)
        if ways == 1 or size % ways == 0:
            spec.append(axes)
        elif name in _MAY_BE_ODD or (name in _MAY_REPLICATE and size < ways):
            spec.append(None)
        else:
            field = f"{section}.{axes if isinstance(axes, str) else '/'.join(axes)}"
            raise UserError(
                f"{field}: {ways} devices cannot split {name}={size} of {where} evenly; "
                f"use a {field} that divides {size}, or another {name} size"
            )
    return NamedSharding(mesh, PartitionSpec(*spec))


def _ways(axes: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    if axes is None:
        return 1
    ways = 1
    for axis in (axes,) if isinstance(axes, str) else axes:
        ways *= mesh.shape[axis]
    return ways


# Where activations live on the mesh: constraints by logical name at a handful of points.

ACTIVATION_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


def constrain(x: Array, *names: str) -> Array:
    """Pins `x` to the mesh by the logical name of each dimension.

    A name outside ACTIVATION_AXES, and a dimension its mesh axes do not divide, stays replicated; without a
    mesh, or on one device, `x` is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for size, name in zip(x.shape, names, strict=True):
        axes = ACTIVATION_AXES.get(name, ())
        ways = math.prod(mesh.shape[axis] for axis in axes)
        spec.append(axes if axes and size % ways == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def row_ways(B: int) -> int:
    """In how many equal runs `constrain` lays B rows on devices; 1 where they cannot be split, and without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else _ways(BATCH_AXES, mesh)
    return ways if B % ways == 0 else 1


def ways_together(x_WDV: Array) -> Array:
    """Sums what the devices of each run of rows hold, [W, D, V] for W `row_ways`, to [D, V] cut as parameters are."""
    mesh = jax.sharding.get_abstract_mesh()
    _, D, V = x_WDV.shape
    cut = D % mesh.shape["fsdp"] == 0
    tensor = "tensor" if V % mesh.shape["tensor"] == 0 else None

    # Written out, because a sum that XLA divides between devices is an all-reduce on some of them: twice the bytes.
    def sum_here(x_1DV: Array) -> Array:
        if not cut:
            return jax.lax.psum(x_1DV[0], BATCH_AXES)
        return jax.lax.psum(jax.lax.psum_scatter(x_1DV[0], "fsdp", tiled=True), "data")

    specs = PartitionSpec(BATCH_AXES, None, tensor), PartitionSpec("fsdp" if cut else None, tensor)
    together_DV = jax.shard_map(sum_here, mesh=mesh, in_specs=specs[0], out_specs=specs[1])(x_WDV)
    # The compiler for TPU fails where it would move a bfloat16 sum out of the loop over micro-batches.
    return jax.lax.optimization_barrier(together_DV)


def gathered(x: Array, *names: str) -> Array:
    """A parameter with these logical axes, whole over fsdp on every device; its gradient is cut as the parameter is.

    For what a loop reads: cut over fsdp, it would be gathered again every time. Without a mesh, or on one device,
    `x` is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else _gathered(names, x)


# Autodiff would pin the gradient as it pins the parameter, whole on every device: an all-reduce of what a
# reduce-scatter of half the bytes gives.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(names: tuple[str, ...], x: Array) -> Array:
    return constrain(x, *("embed_act" if name == "embed" else name for name in names))


def _gathered_backward(names: tuple[str, ...], _: None, dx: Array) -> tuple[Array]:
    mesh = jax.sharding.get_abstract_mesh()
    axes = [TRAIN_RULES[name] for name in names]
    spec = [a if n % _ways(a, mesh) == 0 else None for a, n in zip(axes, dx.shape, strict=True)]
    return (jax.lax.with_sharding_constraint(dx, PartitionSpec(*spec)),)


_gathered.defvjp(lambda names, x: (_gathered(names, x), None), _gathered_backward)
