"""Arrays that wait in the memory of the hosts while no program of the devices reads them.

They keep their sharding: a device's part waits in the memory of its own host, and comes back to that device alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from rlhf_jax.errors import UserError

# Memory that the devices copy from and to by themselves, at the full speed of their link.
HOST = "pinned_host"

Found = TypeVar("Found")


def to_host(tree: PyTree) -> PyTree:
    """The arrays of a tree in the hosts' memory. The devices' own are of no more use when these are ready."""
    return jax.tree.map(partial(_moved, kind=HOST), tree)


def to_devices(tree: PyTree) -> PyTree:
    """The arrays of a tree where their sharding says, on the devices; those that are there already as they are."""
    return jax.tree.map(lambda x: _moved(x, None) if waits(x) else x, tree)


def _moved(x: jax.Array, kind: str | None) -> jax.Array:
    """An array in that memory of each of its devices; None stands for the devices' own."""
    where = x.sharding.with_memory_kind(kind)
    if x.is_fully_addressable:
        return jax.device_put(x, where)
    # Each process moves its own parts. Of the whole array jax would make a program, which not all backends can.
    own = [shard.data for shard in x.addressable_shards]
    parts = [jax.device_put(part, part.sharding.with_memory_kind(kind)) for part in own]
    return jax.make_array_from_single_device_arrays(x.shape, where, parts)


def waits(tree: PyTree) -> bool:
    """Whether any array of a tree is in the hosts' memory."""
    found = (getattr(x, "sharding", None) for x in jax.tree.leaves(tree))
    return any(sharding is not None and sharding.memory_kind == HOST for sharding in found)


def called_alone(program: Callable[[Any], Found], given: Any, behind: PyTree) -> Found:
    """`program(given)`; where `given` waits in the hosts' memory it is on the devices for that call alone.

    behind: what must be there before it comes, such as what the program before has made.
    """
    if not waits(given):
        return program(given)
    # Devices are given work ahead: without waiting, it would come beside the arrays of the programs before and behind.
    jax.block_until_ready(behind)
    return jax.block_until_ready(program(to_devices(given)))


def check_host_memory(mesh: Mesh, field: str, value: str, off: str) -> None:
    """Raises UserError where the devices of a mesh cannot reach such memory; field, value: what asked for it."""
    # The first of this process: it knows nothing of the others'.
    device = [*mesh.local_devices, *mesh.devices.flat][0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if HOST not in kinds:
        raise UserError(
            f"{field}: {value}, but a {device.device_kind} here has no {HOST} memory (it has {', '.join(kinds)}); "
            f"use {field}={off}"
        )
