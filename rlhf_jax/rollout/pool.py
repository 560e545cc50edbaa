"""A pool of sampled responses with their scores: the last rollouts, in arrays of fixed shapes that a checkpoint holds.

It is a ring of rollouts, [S, B, ...] for S of them with B responses each. B is cut over the devices as a rollout is,
and S is whole: so a device writes its own rows of a rollout into its own part of the ring, and nothing is sent around.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.objectives.quantiles import ranked
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


def drawn(key: Array, kept: Int[Array, ""], count: int, *, most: int, fewest: int) -> Int[Array, " count"]:
    """Draws `count` of the numbers below `kept`: each comes once before any comes twice, every time in a fresh order.

    most: the largest `kept` can be. fewest: what it usually is at least; below that, orders come again. Shapes do not
    depend on `kept`, so a pool that is still filling compiles nothing new.
    """
    passes = -(-count // fewest)
    # Numbers that are not there are sorted behind those that are.
    noise = jnp.where(jnp.arange(most) < kept, jax.random.uniform(key, (passes, most)), jnp.inf)
    orders, place, kept = jnp.argsort(noise, axis=1), jnp.arange(count), jnp.maximum(kept, 1)
    return orders[place // kept % passes, place % kept]


class PoolRows(NamedTuple):
    """Responses of a pool to learn from, behind the tokens of their quantiles where there are such."""

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]


class Ranked(NamedTuple):
    """A pool of N responses, with their numbers from best to worst, and how many of the best are learned from."""

    pool: Pool
    order_N: Int[Array, " N"]
    quantile_N: Int[Array, " N"]
    kept: Int[Array, ""]


def ranked_pool(pool: Pool, quantiles: int, *, only_best: bool) -> Ranked:
    """Cuts the whole pool into quantiles by score. only_best: whether the others are left out of what is learned."""
    usable_N = pool.usable_SB.reshape(-1)
    order_N, quantile_N = ranked(pool.scores_SB.reshape(-1), usable_N, quantiles)
    return Ranked(pool, order_N, quantile_N, jnp.sum(quantile_N == 0 if only_best else usable_N))


class Drawing(NamedTuple):
    """How minibatches are drawn.

    Attributes:
      parts: into how many the pool is cut of which one is learned from; 1 where it is learned from as a whole.
      marker, markers: the column of the quantiles' tokens, and their ids; none where rows stay as they were sampled.
    """

    updates: int
    size: int
    R: int
    parts: int
    marker: int = -1
    markers: tuple[int, ...] = ()


def draw(key: jax.Array, found: Ranked, how: Drawing) -> list[PoolRows]:
    """Draws minibatches of those that are learned from, see `drawn`."""
    S, B = found.pool.scores_SB.shape
    sizes = {"most": -(-S * B // how.parts), "fewest": max(1, B // how.parts)}
    chosen = found.order_N[drawn(key, found.kept, how.updates * how.size, **sizes)]
    return [_rows(found, chosen[u * how.size :][: how.size], how) for u in range(how.updates)]


def _rows(found: Ranked, chosen_B: Int[Array, " B"], how: Drawing) -> PoolRows:
    pool, at = found.pool, jnp.divmod(chosen_B, found.pool.scores_SB.shape[1])
    tokens_BT = pool.tokens_SBT[at]
    if how.markers:
        # Sampled behind the best one's token, and learned behind its own; the pool's ranks may have changed since.
        own_B = jnp.asarray(how.markers, jnp.int32)[found.quantile_N[chosen_B]]
        tokens_BT = tokens_BT.at[:, how.marker].set(own_B)
    # Where no response at all could be scored there is nothing to learn: weights of 0, and a gradient of 0.
    mask_BR = (jnp.arange(how.R) < pool.response_lengths_SB[at][:, None]) & (found.kept > 0)
    return PoolRows(tokens_BT, pool.prompt_lengths_SB[at], mask_BR)
