"""Rows that have ended leave the batch, so that it is the mean length that decoding takes time for, not the longest.

A batch is decoded in stages, each with half the rows of the one before it. All of them are in one program: nothing is
compiled on the way and the host is never asked. Rows stay on their device.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.parallel.mesh import ACTIVATION_AXES, constrain

# Every further stage is a decode step more to compile: one for so many tokens, or it is not worth it,
# and three at most, since a tail of an eighth of the rows costs an eighth.
_TOKENS = 16
_MOST = 3
# And each compiles all layers once more: together no more of them than this, beyond the first of those stages. A
# model of 30 layers takes 7 s to compile without a further stage on two cores, 10 s with one and 16 s with three.
_LAYERS = 24
# With fewer rows on a device, reading the weights is what a step takes, and not what is done with them.
_FEWEST = 8


def groups_of(B: int) -> int:
    """The number of devices that a batch of B rows is split over; a row stays in its device's group."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
    # `constrain` copies a batch that does not divide to all devices, which then are one group.
    return ways if B % ways == 0 else 1


def stages(B: int, R: int, groups: int, layers: int) -> tuple[int, ...]:
    """The rows of each stage: B, and then half of the one before, as long as every device has some; R: most tokens."""
    sizes = [B]
    for _ in range(min(_MOST, R // _TOKENS, max(1, _LAYERS // layers))):
        if sizes[-1] % (2 * groups) or sizes[-1] // (2 * groups) < _FEWEST:
            break
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def most_alive(done_B: Bool[Array, " B"], groups: int) -> Int[Array, ""]:
    """How many rows have not ended, times `groups`, in the group that has most of them."""
    return groups * jnp.max(jnp.sum(~done_B.reshape(groups, -1), axis=1))


def alive_first(done_B: Bool[Array, " B"], groups: int, size: int) -> Int[Array, "groups b"]:
    """The rows that go on, `size` over all groups, numbered within each group; ended ones where too few are left."""
    return jnp.argsort(done_B.reshape(groups, -1), axis=1, stable=True)[:, : size // groups]


def taken(x_B: Array, places_Gb: Int[Array, "G b"], *names: str) -> Array:
    """The rows of x at these places. names: of its other axes, for `constrain`."""
    G = places_Gb.shape[0]
    rows_Gb = jax.vmap(lambda x, places: x[places])(x_B.reshape(G, -1, *x_B.shape[1:]), places_Gb)
    rest = (*names, *[""] * (x_B.ndim - 1 - len(names)))
    # Left to itself XLA may copy what it has gathered to all devices.
    return constrain(rows_Gb.reshape(-1, *x_B.shape[1:]), "batch", *rest)


def put_back(x_B: Array, part_b: Array, places_Gb: Int[Array, "G b"]) -> Array:
    """x with `part_b` in place of the rows that `taken` took."""
    G = places_Gb.shape[0]
    x_GN, part_Gb = (x.reshape(G, -1, *x.shape[1:]) for x in (x_B, part_b))
    whole_GN = jax.vmap(lambda x, part, places: x.at[places].set(part))(x_GN, part_Gb, places_Gb)
    return constrain(whole_GN.reshape(x_B.shape), "batch", *[""] * (x_B.ndim - 1))
