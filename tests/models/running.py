"""One tiny model through our decoder: logits with left padding, greedy samples, scores."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import decoder
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import generate


def logits(config, params, tokens_BP, lengths_B):
    """[B, P, V] of left-padded rows, as the prefill computes them."""
    P = tokens_BP.shape[1]
    first_B1 = (P - lengths_B)[:, None]
    positions_BP = np.maximum(np.arange(P) - first_B1, 0)
    mask_BPP = np.tril(np.ones((P, P), bool)) & (np.arange(P) >= first_B1)[:, None]

    @jax.jit
    def run(params, tokens, positions, mask):
        hidden = decoder.hidden_states(config, params, tokens, positions, mask)
        return decoder.logits(config, decoder.head(config, params), hidden)

    return np.asarray(run(params, tokens_BP, positions_BP.astype(np.int32), mask_BPP))


def right_padded_logits(config, params, tokens_BT):
    """[B, T, V] without masks, as training computes them."""
    run = jax.jit(
        lambda params, tokens: decoder.logits(
            config, decoder.head(config, params), decoder.hidden_states(config, params, tokens)
        )
    )
    return np.asarray(run(params, tokens_BT))


def greedy(config, params, tokens_BP, lengths_B, R):
    """(tokens [B, R], log-probs [B, R]) of decoding with a cache and without an end."""
    B = len(tokens_BP)
    out = generate(
        config,
        params,
        jnp.asarray(tokens_BP),
        jnp.asarray(lengths_B),
        jnp.arange(B, dtype=jnp.int32),
        jax.random.key(0),
        Sampling(temperature=0.0),
        jnp.array([-1], jnp.int32),
        0,
        max_new_tokens=R,
    )
    return np.asarray(out.tokens_BR), np.asarray(out.logprobs_BR)


def scores(config, params, tokens_BT, lengths_B):
    """[B] rewards at the last real token."""
    run = jax.jit(
        lambda params, tokens, lengths: decoder.last_token_scores(
            decoder.hidden_states(config, params, tokens), params, lengths
        )
    )
    return np.asarray(run(params, tokens_BT, lengths_B))
