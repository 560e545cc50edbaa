"""Where activations live on the mesh: constraints by logical name at a handful of points."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

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
