"""Choosing the next token: temperature, top-k, top-p and greedy, all traced so that one program serves them all."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """How to sample; plain scalars that enter the compiled program as values.

    Attributes:
      temperature: logits are divided by it; 0 means greedy.
      top_p: keep the smallest set of tokens whose probability reaches it; 1 keeps all.
      top_k: keep the k likeliest tokens; 0 keeps all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def choose(
    logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], sampling: Sampling
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Samples one token per row.

    Returns:
      (tokens, log-probs under the distribution that was sampled: after temperature and truncation,
      renormalised over the kept tokens; under greedy, of the plain softmax).
    """
    # In bfloat16 neighbouring logits would tie, and dividing by the temperature would round them once more.
    logits_BV = logits_BV.astype(jnp.float32)
    greedy = sampling.temperature == 0
    # Temperature 0 divides by 1 instead, so greedy tokens are scored under the plain softmax.
    scaled_BV = logits_BV / jnp.where(greedy, 1.0, sampling.temperature)
    truncates = (sampling.temperature != 0) & ((sampling.top_p < 1) | (sampling.top_k > 0))
    # The sort costs more than the rest of the sampler, so it runs only when a truncation is asked for.
    kept_BV = jax.lax.cond(truncates, lambda x: truncate(x, sampling), lambda x: x, scaled_BV)
    # One key per row: a single draw for the batch would make a row's sample depend on the rows beside it.
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, kept_BV)
    tokens_B = jnp.where(greedy, jnp.argmax(logits_BV, -1), drawn_B)
    # Renormalised over the kept tokens, because those are what was sampled from: under the whole softmax the
    # log-probability of a truncated sample would be too low.
    chosen_B = jnp.take_along_axis(kept_BV, tokens_B[:, None], -1)[:, 0]
    return tokens_B.astype(jnp.int32), chosen_B - jax.nn.logsumexp(kept_BV, -1)


def truncate(logits_BV: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Sets to -inf every logit outside the top-k and outside the top-p nucleus (Holtzman et al. 2020).

    The likeliest token always stays. Tokens that tie with the last kept one stay too.
    """
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    rank_V = jnp.arange(logits_BV.shape[-1])
    k = jnp.where(sampling.top_k > 0, sampling.top_k, logits_BV.shape[-1])
    in_k_BV = jnp.broadcast_to(rank_V < k, sorted_BV.shape)
    # As in the usual implementations, the nucleus is measured on what top-k has left.
    probability_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, -jnp.inf), axis=-1)
    # A token is kept while the mass before it is below top_p, so the token that crosses the border stays.
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    kept_BV = in_k_BV & ((before_BV < sampling.top_p) | (rank_V == 0))
    # Cutting by value needs no scatter back to the order of the vocabulary, at the price that ties stay.
    cutoff_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= cutoff_B1, logits_BV, -jnp.inf)
