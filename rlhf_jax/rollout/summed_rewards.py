"""A weighted sum of several sources of scores, each of which is logged by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rlhf_jax.rollout.rewards import Rewards, Scored
from rlhf_jax.sampling.decode import Generation


class Component(NamedTuple):
    """One source and the weight of its scores in the sum."""

    rewards: Rewards
    weight: float


class SummedRewards:
    """The sum over components of weight times score; a response has one where all of them could score it."""

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = dict(components)
        self._sum = sum_program(tuple((name, part.weight) for name, part in components.items()))

    def __call__(
        self,
        rows: list[dict],
        prompts_BP: Int[Array, "B P"],
        prompt_lengths_B: Int[Array, " B"],
        sampled: Generation,
    ) -> Callable[[], Scored]:
        given = (rows, prompts_BP, prompt_lengths_B, sampled)
        # All first parts before any second one: each fetches what it needs before the devices get other work.
        return partial(self._add, {name: part.rewards(*given) for name, part in self._components.items()})

    def _add(self, called: dict[str, Callable[[], Scored]]) -> Scored:
        return self._sum({name: call() for name, call in called.items()})


@lru_cache
def sum_program(weights: tuple[tuple[str, float], ...]) -> Any:
    """Returns `summed` for these (name, weight) as a compiled function, one for all runs of this process."""
    return jax.jit(partial(summed, weights=weights))


def summed(found: dict[str, Scored], *, weights: tuple[tuple[str, float], ...]) -> Scored:
    """Adds what several sources found, in float32 and in the order of `weights`.

    Its components are each source's unweighted scores by its name, and what the source logs of itself as NAME/PART.
    """
    first = found[weights[0][0]]
    scores_B = jnp.zeros_like(first.scores_B, jnp.float32)
    readable_B = jnp.ones_like(first.readable_B)
    components: dict[str, Array] = {}
    for name, weight in weights:
        one = found[name]
        # Selected before it is weighted: what stands at an unreadable response may be anything, NaN too.
        score_B = jnp.where(one.readable_B, one.scores_B, 0.0).astype(jnp.float32)
        scores_B += weight * score_B
        readable_B &= one.readable_B
        components |= {name: score_B} | {f"{name}/{part}": x for part, x in one.components.items()}
    return Scored(jnp.where(readable_B, scores_B, 0.0), readable_B, components)
