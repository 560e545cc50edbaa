"""Rollouts that an update reads by itself: where one minibatch is all of a rollout, no network runs twice on its rows.

Before the first update of an iteration, policy and value model are what they were when a reading would have run them.
So their log-probs and values, of which rewards, advantages and ratios are made, are what that update's own forward pass
gives, taken as constants. Later updates on the same rollout are given them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.rollout.experience import Readings
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation

# Among what a loss returns: the readings of the policy that acted, for metrics and for later updates.
READ = "read"


class Unread(NamedTuple):
    """A rollout that its updates read. Every array has the batch first.

    Attributes:
      read: before the first update, zeros stand for what the trained networks say.
      sampled: without its tokens, which `read` has, and without the number of decode steps, which is no row's.
      kl_coef_B: the same in all rows.
      first_B: whether this is the first update.
    """

    read: Readings
    sampled: Generation
    scored: Scored
    kl_coef_B: Float[Array, " B"]
    first_B: Bool[Array, " B"]

    @property
    def tokens_BT(self) -> Int[Array, "B T"]:
        return self.read.tokens_BT

    @property
    def prompt_lengths_B(self) -> Int[Array, " B"]:
        return self.read.prompt_lengths_B

    @property
    def mask_BR(self) -> Bool[Array, "B R"]:
        return self.read.mask_BR


def unread(
    read: Readings,
    sampled: Generation,
    scored: Scored,
    extra: Mapping[str, Any],
    scalar: tuple[str, ...] = (),
) -> Unread:
    """A rollout before its first update.

    read: by what is not trained. extra: what the method carries, its `kl_coef`. scalar: the trained models with values.
    """
    zeros_BR = jnp.zeros(read.mask_BR.shape, jnp.float32)
    rows = sampled.lengths_B.shape
    return Unread(
        read._replace(
            logprobs=read.logprobs | {"policy": zeros_BR},
            entropy_BR=zeros_BR,
            values=dict.fromkeys(scalar, zeros_BR),
        ),
        sampled._replace(tokens_BR=None, steps=None),
        # What else a source tells is for metrics only.
        Scored(scored.scores_B, scored.readable_B),
        jnp.broadcast_to(jnp.asarray(extra["kl_coef"], jnp.float32), rows),
        jnp.ones(rows, bool),
    )


def for_later(rollout: Unread, read: Readings) -> Unread:
    """The rollout for updates behind the first one, which has found these readings."""
    return rollout._replace(read=read, first_B=jnp.zeros_like(rollout.first_B))


def read_by_update(
    experience_of: Callable[[Readings, Generation, Scored, Array], tuple[Any, dict]] | None,
    rollout: Any,
    logprobs_BR: Float[Array, "B R"],
    entropy_BR: Float[Array, "B R"],
    values: Mapping[str, Float[Array, "B R"]],
) -> tuple[Any, dict[str, Readings]]:
    """(experience, what the loss returns beside its means) of an update whose forward pass gave these numbers.

    experience_of: (readings, sampled, scored, kl_coef) -> (experience, metrics), as it is made of a rollout that was
      read beforehand; None where `rollout` is such an experience, not an Unread.
    """
    if experience_of is None:
        return rollout, {}
    own = rollout.read._replace(
        logprobs=rollout.read.logprobs | {"policy": logprobs_BR}, entropy_BR=entropy_BR, values=dict(values)
    )

    def one(now: Array, before: Array) -> Array:
        return jnp.where(rollout.first_B.reshape(-1, *[1] * (now.ndim - 1)), now, before)

    # Constants, as all losses take them: so that no backward pass through rewards and advantages is even traced.
    read = jax.tree.map(one, jax.lax.stop_gradient(own), rollout.read)
    kl_coef = jnp.max(rollout.kl_coef_B)
    return experience_of(read, rollout.sampled, rollout.scored, kl_coef)[0], {READ: read}


def unread_shapes(P: int, R: int, scalar: tuple[str, ...] = ()) -> Unread:
    """The shapes of one row. scalar: the trained models with values, by name."""
    integers, numbers, flags = (
        partial(jax.ShapeDtypeStruct, dtype=t) for t in (jnp.int32, jnp.float32, bool)
    )
    of_tokens, one = numbers((1, R)), integers((1,))
    return Unread(
        Readings(
            integers((1, P + R)),
            one,
            flags((1, R)),
            dict.fromkeys(("policy", "reference"), of_tokens),
            of_tokens,
            dict.fromkeys(scalar, of_tokens),
        ),
        Generation(None, of_tokens, flags((1, R)), one, flags((1,)), None),
        Scored(numbers((1,)), flags((1,))),
        numbers((1,)),
        flags((1,)),
    )
