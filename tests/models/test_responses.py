"""Response windows: which positions are scored, whatever the pads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import join, response_logprobs, response_mask, window

CONFIG = ModelConfig(vocab_size=17, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
PARAMS = nn.unbox(decoder.init(CONFIG, jax.random.key(0)))


def ints(values):
    return jnp.asarray(values, jnp.int32)


def test_join_moves_tokens_and_changes_none():
    prompts = ints([[9, 9, 3, 4], [9, 5, 6, 7]])  # 9: left padding
    responses = ints([[11, 0, 0], [12, 13, 2]])
    joined = join(prompts, ints([2, 3]), responses, ints([1, 3]), 0)
    np.testing.assert_array_equal(joined, [[3, 4, 11, 0, 0, 0, 0], [5, 6, 7, 12, 13, 2, 0]])


def test_mask_counts_exactly_the_response_tokens_for_every_length():
    lengths, prompts = np.meshgrid(np.arange(8), np.arange(1, 8), indexing="ij")
    mask = np.asarray(response_mask(ints(lengths.ravel()), ints(prompts.ravel()), 7))
    np.testing.assert_array_equal(mask.sum(1), np.maximum(lengths.ravel() - prompts.ravel(), 0))
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # they come first


def test_eos_is_scored_even_where_pad_equals_eos_and_is_zero():
    eos = pad = 0
    tokens = ints([[3, 4, 5, eos, pad, pad]])
    targets, mask = window(tokens, ints([2]), 3, offset=0), response_mask(ints([4]), ints([2]), 3)
    np.testing.assert_array_equal(np.asarray(targets)[np.asarray(mask)], [5, eos])


def test_logprobs_are_those_of_the_full_softmax_at_the_position_before():
    tokens, prompt_lengths = ints([[3, 4, 5, 6, 7, 0], [8, 9, 10, 11, 0, 0]]), ints([3, 2])
    logprobs, entropy = response_logprobs(CONFIG, PARAMS, tokens, prompt_lengths, 2, temperature=0.7, chunk=1)
    hidden = decoder.hidden_states(CONFIG, PARAMS, tokens)
    full = jax.nn.log_softmax(hidden @ decoder.head(CONFIG, PARAMS) / 0.7)
    for b, p in enumerate([3, 2]):
        for r in range(2):
            np.testing.assert_allclose(logprobs[b, r], full[b, p - 1 + r, tokens[b, p + r]], atol=1e-5)
            np.testing.assert_allclose(
                entropy[b, r], -jnp.sum(jnp.exp(full[b, p - 1 + r]) * full[b, p - 1 + r]), atol=1e-5
            )


def test_only_the_position_before_a_one_token_response_gets_gradient():
    tokens = ints(np.random.default_rng(2).integers(0, 17, (2, 6)))

    def loss(hidden):
        chosen = window(hidden, ints([3, 5]), 2, offset=-1)
        return jnp.sum(jnp.where(response_mask(ints([4, 6]), ints([3, 5]), 2)[..., None], chosen, 0.0))

    moved = np.abs(np.asarray(jax.grad(loss)(decoder.hidden_states(CONFIG, PARAMS, tokens)))).sum(-1) > 0
    np.testing.assert_array_equal(np.argwhere(moved), [[0, 2], [1, 4]])
