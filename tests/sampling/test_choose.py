"""Sampling frequencies and truncation against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.sampling.choose import Sampling, choose, truncate

LOGITS_V = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]))


def numpy_kept(probabilities, top_p, top_k):
    order = np.argsort(-probabilities)
    kept = order[: top_k or len(order)]
    share = probabilities[kept] / probabilities[kept].sum()
    inside = np.concatenate([[True], np.cumsum(share)[:-1] < top_p])
    return sorted(kept[inside])


@pytest.mark.parametrize(
    ("top_p", "top_k"), [(0.5, 0), (0.65, 0), (0.9, 0), (1.0, 3), (0.7, 3), (0.01, 0), (1.0, 1)]
)
def test_truncation_keeps_the_nucleus(top_p, top_k):
    logits_BV = jnp.asarray(np.random.default_rng(0).permutation(LOGITS_V)[None], jnp.float32)
    kept = np.flatnonzero(np.isfinite(np.asarray(truncate(logits_BV, Sampling(1.0, top_p, top_k)))[0]))
    assert kept.tolist() == numpy_kept(np.exp(np.asarray(logits_BV, np.float64)[0]), top_p, top_k)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.5), Sampling(1.0, 0.7), Sampling(2.0, 1.0, 2)]
)
def test_frequencies_and_logprobs_follow_the_truncated_distribution(sampling):
    n = 20_000
    logits_BV = jnp.tile(jnp.asarray(LOGITS_V, jnp.float32), (n, 1))
    tokens_B, logprobs_B = choose(logits_BV, jax.random.split(jax.random.key(0), n), sampling)
    expected = np.exp(LOGITS_V / sampling.temperature)
    keep = numpy_kept(expected / expected.sum(), sampling.top_p, sampling.top_k)
    expected = np.where(np.isin(np.arange(6), keep), expected, 0) / expected[keep].sum()
    frequency = np.bincount(np.asarray(tokens_B), minlength=6) / n
    assert np.abs(frequency - expected).max() < 4 * np.sqrt(0.25 / n)
    np.testing.assert_allclose(np.exp(logprobs_B), expected[np.asarray(tokens_B)], rtol=1e-5)


def test_greedy_takes_the_likeliest_and_scores_it_under_the_plain_softmax():
    tokens_B, logprobs_B = choose(
        jnp.asarray(LOGITS_V[None], jnp.float32), jax.random.split(jax.random.key(0), 1), Sampling(0.0)
    )
    assert tokens_B.tolist() == [0]
    np.testing.assert_allclose(logprobs_B, np.log(0.4), rtol=1e-6)
