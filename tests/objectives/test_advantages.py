"""Scores to advantages: brute force in float64, and the ways other systems got it wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import prefix_mask

from rlhf_jax.objectives.policy_gradient import gae, score_with_missing_eos, shaped_rewards, whiten

SHAPED = jax.jit(shaped_rewards)
GAE = jax.jit(gae)
WHITEN = jax.jit(whiten, static_argnames="shift_mean")
B, R = 6, 9
LENGTHS = [9, 1, 4, 0, 8, 2]


def array(x, dtype=jnp.float32):
    return jnp.asarray(x, dtype)


def masks():
    """Prefix masks of response windows, and windows that start later in the row or have a hole."""
    prefix = prefix_mask(LENGTHS, R)
    shifted = np.roll(prefix_mask([4] * B, R), 3, axis=1)
    holes = np.random.default_rng(9).random((B, R)) < 0.6
    return {"prefix": prefix, "shifted": shifted, "holes": holes, "full": np.ones((B, R), bool)}


MASKS = masks()

# --- score placement


def brute_shaped(scores, kl, mask, kl_coef):
    rewards = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        real = np.flatnonzero(row)
        rewards[b, real] = -kl_coef * kl[b, real]
        if len(real):
            rewards[b, real[-1]] += scores[b]
    return rewards


@pytest.mark.parametrize("kind", MASKS)
def test_rewards_are_the_kl_penalty_plus_one_score_at_the_last_real_token(kind):
    rng, mask = np.random.default_rng(0), MASKS[kind]
    scores, kl = rng.normal(size=B), rng.normal(size=(B, R))
    poisoned = np.where(mask, kl, np.nan)
    got = np.asarray(SHAPED(array(scores), array(poisoned), array(mask, bool), 0.05))
    np.testing.assert_allclose(got, brute_shaped(scores, kl, mask, 0.05), rtol=1e-5, atol=1e-6)
    filled = mask.any(axis=1)
    totals = np.where(filled, scores - 0.05 * (kl * mask).sum(axis=1), 0.0)
    np.testing.assert_allclose(got.sum(axis=1), totals, rtol=1e-5, atol=1e-6)
    free = np.asarray(SHAPED(array(scores), array(poisoned), array(mask, bool), 0.0))
    np.testing.assert_array_equal((free != 0).sum(axis=1), filled.astype(int))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float32])
def test_scores_are_not_truncated_whatever_the_dtype_of_the_kl(dtype):
    scores = array([0.7, -1.6])
    mask = array([[True, True], [True, False]], bool)
    got = SHAPED(scores, jnp.zeros((2, 2), dtype), mask, 0.1)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.float32([[0, 0.7], [-1.6, 0]]))


def test_integer_scores_and_integer_kl_give_fractional_rewards():
    got = SHAPED(
        array([1, -2], jnp.int32), array([[3, 1], [1, 9]], jnp.int32), array([[1, 1], [1, 0]], bool), 0.25
    )
    np.testing.assert_allclose(got, [[-0.75, 0.75], [-2.25, 0.0]])


def test_a_score_of_zero_is_a_score():
    got = SHAPED(array([0.0]), array([[1.0, 1.0]]), jnp.ones((1, 2), bool), 1.0)
    np.testing.assert_array_equal(got, [[-1.0, -1.0]])


# --- missing EOS

EOS, PAD = 0, 0  # Pythia's <|endoftext|> is id 0, and pad often equals EOS
CASES = {  # what the model would emit -> (real tokens, ended by itself)
    "at 0": ([EOS, 5, 6, 7], 1, True),
    "mid": ([5, 6, EOS, 7], 3, True),
    "last": ([5, 6, 7, EOS], 4, True),
    "none": ([5, 6, 7, 8], 4, False),
    "two": ([5, EOS, EOS, 7], 2, True),
}


@pytest.mark.parametrize("case", CASES)
def test_missing_eos_replaces_the_score_and_the_score_sits_on_the_last_real_token(case):
    emitted, length, ended = CASES[case]
    stops = [i for i, token in enumerate(emitted) if token == EOS]
    assert (stops[0] + 1 if stops else len(emitted), bool(stops)) == (length, ended)  # the table is right
    scores = score_with_missing_eos(array([0.7]), jnp.array([ended]), penalty=-1)
    got = SHAPED(scores, jnp.zeros((1, 4)), array(prefix_mask([length], 4), bool), 0.1)
    want = np.zeros((1, 4), np.float32)
    want[0, length - 1] = 0.7 if ended else -1.0
    np.testing.assert_array_equal(got, want)


def test_penalty_replaces_and_does_not_add_and_integers_become_float32():
    scores = array([5, 5, -3], jnp.int32)
    got = score_with_missing_eos(scores, jnp.array([True, False, False]), penalty=-1.5)
    np.testing.assert_array_equal(got, [5.0, -1.5, -1.5])
    assert got.dtype == jnp.float32


# --- generalised advantage estimation


def brute_gae(rewards, values, mask, gamma, lam):
    """The definition, one double sum per token: A_t = sum_k (gamma lam)^k delta_{t+k}."""
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for b, row in enumerate(mask):
        real = np.flatnonzero(row)
        r, v = rewards[b, real], np.append(values[b, real], 0.0)
        delta = r + gamma * v[1:] - v[:-1]
        for t in range(len(real)):
            advantages[b, real[t]] = sum((gamma * lam) ** k * delta[t + k] for k in range(len(real) - t))
            returns[b, real[t]] = advantages[b, real[t]] + v[t]
    return advantages, returns


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_definition(kind, gamma, lam):
    rng, mask = np.random.default_rng(1), MASKS[kind]
    rewards, values = rng.normal(size=(2, B, R))
    poisoned = (array(np.where(mask, x, junk)) for x, junk in ((rewards, np.nan), (values, 1e30)))
    got = GAE(*poisoned, array(mask, bool), gamma, lam)
    for ours, brute in zip(got, brute_gae(rewards, values, mask, gamma, lam), strict=True):
        np.testing.assert_allclose(ours, brute, rtol=1e-5, atol=1e-5)
        assert not np.asarray(ours)[~mask].any()


def test_with_lambda_and_gamma_one_the_return_is_the_reward_to_go():
    rng, mask = np.random.default_rng(2), MASKS["prefix"]
    rewards, values = rng.normal(size=(2, B, R)) * mask
    _, returns = GAE(array(rewards), array(values), array(mask, bool), 1, 1)
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0.0), rtol=1e-5, atol=1e-5)


def test_pads_and_row_order_do_not_matter():
    rng, mask = np.random.default_rng(3), MASKS["prefix"]
    rewards, values = rng.normal(size=(2, B, R))
    inputs = (array(rewards), array(values), array(mask, bool))
    wide = [
        array(np.pad(np.asarray(x), ((0, 0), (2, 3)), constant_values=c))
        for x, c in zip(inputs, (7, 7, False), strict=True)
    ]
    order = rng.permutation(B)
    mixed = [array(np.asarray(x)[order], x.dtype) for x in inputs]
    narrow = GAE(*inputs, 0.9, 0.95)
    for a, b, c in zip(
        narrow, GAE(wide[0], wide[1], wide[2].astype(bool), 0.9, 0.95), GAE(*mixed, 0.9, 0.95), strict=True
    ):
        np.testing.assert_allclose(np.asarray(b)[:, 2:-3], a, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(c, np.asarray(a)[order], rtol=1e-6, atol=1e-6)


# --- whitening


@pytest.mark.parametrize("kind", MASKS)
def test_whiten_uses_biased_statistics_of_all_real_tokens(kind):
    rng, mask = np.random.default_rng(4), MASKS[kind]
    x = 3.0 + 2.0 * rng.normal(size=(B, R))
    poisoned = array(np.where(mask, x, np.nan))
    mean, std = x[mask].mean(), x[mask].std()
    shifted = np.asarray(WHITEN(poisoned, array(mask, bool)))
    scaled = np.asarray(WHITEN(poisoned, array(mask, bool), shift_mean=False))
    np.testing.assert_allclose(shifted[mask], (x[mask] - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled[mask], (x[mask] - mean) / std + mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled[mask].mean(), mean, rtol=1e-5)
    assert not shifted[~mask].any() and not scaled[~mask].any()


def test_whiten_is_global_and_not_row_by_row():
    x, mask = array([[1.0, 1.0], [5.0, 5.0]]), jnp.ones((2, 2), bool)
    np.testing.assert_allclose(WHITEN(x, mask), [[-1, -1], [1, 1]], atol=1e-6)


def test_whiten_of_one_token_of_equal_tokens_and_of_nothing_is_finite():
    x = array([[4.0, 4.0, 4.0]])
    for mask in ([[True, False, False]], [[True, True, True]], [[False, False, False]]):
        for shift_mean in (True, False):
            got = np.asarray(WHITEN(x, array(mask, bool), shift_mean=shift_mean))
            want = np.where(mask, 0.0 if shift_mean else 4.0, 0.0)
            np.testing.assert_allclose(got, want, atol=1e-5)
