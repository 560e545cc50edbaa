"""Which positions are trained, and the negative log-likelihood over them."""

import jax
import jax.numpy as jnp
import numpy as np
from objectives_oracles import number, split_and_add

from rlhf_jax.objectives.logprobs import next_token_targets, token_logprobs
from rlhf_jax.objectives.supervised import sft_loss, target_mask


def ints(values):
    return jnp.array(values, jnp.int32)


def test_targets_are_the_tokens_shifted_left_once():
    np.testing.assert_array_equal(next_token_targets(ints([[5, 6, 7, 8]])), [[6, 7, 8, 0]])


def test_mask_counts_exactly_the_response_tokens_for_every_length_and_prompt():
    T = 7
    lengths, prompts = np.meshgrid(np.arange(T + 1), np.arange(T + 1), indexing="ij")
    mask = np.asarray(target_mask(ints(lengths.ravel()), ints(prompts.ravel()), T))
    for row, length, prompt in zip(mask, lengths.ravel(), prompts.ravel(), strict=True):
        trained = {t + 1 for t in range(T) if row[t]}
        assert trained == set(range(max(prompt, 1), length)), (length, prompt)


def test_eos_is_trained_even_where_pad_equals_eos():
    eos = pad = 0
    tokens = ints([[3, 4, 5, eos, pad, pad]])
    mask = target_mask(ints([4]), ints([2]), 6)
    np.testing.assert_array_equal(next_token_targets(tokens)[mask], [5, eos])


def test_loss_is_the_token_mean_over_the_whole_batch_not_a_mean_of_rows():
    rng = np.random.default_rng(1)
    logprobs, entropy = -rng.exponential(size=(3, 8)), rng.random((3, 8))
    mask = np.arange(8)[None, :] < np.array([8, 1, 4])[:, None]
    metrics = sft_loss(jnp.asarray(logprobs), jnp.asarray(entropy), jnp.asarray(mask))
    np.testing.assert_allclose(number(metrics["loss"]), -logprobs[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(number(metrics["entropy"]), entropy[mask].mean(), rtol=1e-6)
    by_row = -np.mean([logprobs[i][mask[i]].mean() for i in range(3)])
    assert abs(number(metrics["loss"]) - by_row) > 1e-2
    parts = split_and_add(sft_loss, tuple(jnp.asarray(a) for a in (logprobs, entropy, mask)), cut=1)
    for name, mean in metrics.items():
        np.testing.assert_allclose((mean.sum, mean.weight), parts[name], rtol=1e-6)


def test_only_the_position_before_a_one_token_response_gets_gradient():
    rng = np.random.default_rng(2)
    B, T, D, V = 2, 6, 4, 11
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    tokens = ints(rng.integers(0, V, (B, T)))
    mask = target_mask(ints([4, 6]), ints([3, 5]), T)

    def loss(hidden):
        return sft_loss(*token_logprobs(hidden, head, next_token_targets(tokens)), mask)["loss"].sum

    moved = np.abs(np.asarray(jax.jit(jax.grad(loss))(hidden))).sum(-1) > 0
    np.testing.assert_array_equal(np.argwhere(moved), [[0, 2], [1, 4]])
