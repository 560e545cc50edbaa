"""A pool of sampled responses with their scores: the last rollouts, in arrays of fixed shapes that a checkpoint holds.

It is a ring of rollouts, [S, B, ...] for S of them with B responses each. B is cut over the devices as a rollout is, and
S is whole: so a device writes its own rows of a rollout into its own part of the ring, and nothing is sent around.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.rollout.experience import Readings
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation


class Pool(NamedTuple):
    """Responses of the last S rollouts. The number of a response is slot * B + row.

    Attributes:
      tokens_SBT: prompts and responses, right-padded, with the end token of those that ended.
      prompt_lengths_SB, response_lengths_SB: in tokens.
      scores_SB: final ones, as training uses them.
      usable_SB: whether there is a response that could be scored.
      added: rollouts so far, those that are gone too.
    """

    tokens_SBT: Int[Array, "S B T"]
    prompt_lengths_SB: Int[Array, "S B"]
    response_lengths_SB: Int[Array, "S B"]
    scores_SB: Float[Array, "S B"]
    usable_SB: Bool[Array, "S B"]
    added: Int[Array, ""]


def pool_shapes(S: int, B: int, T: int, mesh: Mesh) -> Pool:
    """The shapes of a pool, with shardings; zeros of these shapes are a pool without a response."""
    rows, one = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, BATCH_AXES), ()))

    def shape(dtype: type, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((S, B, *more), dtype, sharding=rows)

    return Pool(
        shape(jnp.int32, T),
        shape(jnp.int32),
        shape(jnp.int32),
        shape(jnp.float32),
        shape(jnp.bool_),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=one),
    )


def with_rollout(
    pool: Pool, read: Readings, sampled: Generation, scored: Scored, scores_B: Float[Array, " B"]
) -> Pool:
    """The pool with one more rollout, in the place of its oldest. scores_B: the final ones."""
    slot = pool.added % pool.scores_SB.shape[0]
    # A response without a score teaches nothing; dropped in silence it was a defect of the reference code, so
    # `completions/unscored` counts it.
    rows = (read.tokens_BT, read.prompt_lengths_B, sampled.lengths_B, scores_B, scored.readable_B)
    return Pool(*(x.at[slot].set(row) for x, row in zip(pool, rows, strict=False)), pool.added + 1)
