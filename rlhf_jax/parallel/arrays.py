"""Host rows to global arrays and back. Each process holds only the rows its own devices will read."""

from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.mesh import BATCH_AXES

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
    index_map = NamedSharding(mesh, _ROWS).addressable_devices_indices_map((global_batch,))
    pieces = sorted({slice_.indices(global_batch)[:2] for (slice_,) in index_map.values()})
    if all(stop == start for (_, stop), (start, _) in pairwise(pieces)):
        return slice(pieces[0][0], pieces[-1][1])
    return np.concatenate([np.arange(start, stop) for start, stop in pieces])


def to_global(host_batch: Any, mesh: Mesh | None = None) -> Any:
    """This process's rows of every array in a tree -> global arrays, split on axis 0 over ("data", "fsdp").

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
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
            if not x.is_fully_addressable:
                return jax.device_put(x, everywhere)
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(everywhere, x, x.shape)

    return jax.tree.map(put, tree)


def gather(tree: Any) -> Any:
    """Every leaf as a full numpy array, on every process.

    A collective where an array is spread over processes: all processes must call it, in the same order.
    Leaves a process holds alone (numpy, local arrays) come back as they are.
    """

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if not x.is_fully_replicated:
            x = jax.jit(_identity, out_shardings=NamedSharding(x.sharding.mesh, _REPLICATED))(x)
        return np.asarray(x.addressable_data(0))

    return jax.tree.map(fetch, tree)


def _identity(x: jax.Array) -> jax.Array:
    return x
