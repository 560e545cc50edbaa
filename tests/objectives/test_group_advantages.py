"""Advantages of groups: brute force in float64, equalities between the papers, groups that say nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import prefix_mask

from rlhf_jax.objectives.group_advantages import (
    BASELINES,
    KL_PLACES,
    SCALES,
    advantages_of_groups,
    group_advantages,
    varied_groups,
)

G, N, R = 3, 4, 6
B = G * N
CHOICES = ("samples", "baseline", "scale", "kl_in")
ADVANTAGES = jax.jit(advantages_of_groups, static_argnames=CHOICES)
MASK = prefix_mask([6, 1, 3, 2, 5, 4, 6, 1, 2, 2, 3, 6], R)


def example(seed=0):
    rng = np.random.default_rng(seed)
    scores, kl = rng.normal(size=B), rng.normal(size=(B, R))
    return scores, np.where(MASK, kl, np.nan)


def by_hand(scores, kl, coef, baseline, scale, kl_in):
    rewards = [scores[b] - (coef * kl[b][MASK[b]].sum() if kl_in == "reward" else 0) for b in range(B)]
    found = np.zeros((B, R))
    for b in range(B):
        group = [rewards[i] for i in range(b // N * N, b // N * N + N)]
        others = [rewards[i] for i in range(b // N * N, b // N * N + N) if i != b]
        A = rewards[b] - {"none": 0, "group": np.mean(group), "leave_one_out": np.mean(others)}[baseline]
        if scale == "group":
            A /= np.std(group, ddof=1) + 1e-6
        for t in np.flatnonzero(MASK[b]):
            later = kl[b, t:][MASK[b, t:]].sum()
            found[b, t] = A - (coef * later if kl_in == "reward_to_go" else 0)
    if scale == "batch":
        found[MASK] = (found[MASK] - found[MASK].mean()) / np.sqrt(found[MASK].var() + 1e-8)
    return found


@pytest.mark.parametrize(
    ("baseline", "scale", "kl_in"), list(itertools.product(BASELINES, SCALES, KL_PLACES))
)
def test_every_combination(baseline, scale, kl_in):
    scores, kl = example()
    choices = {"samples": N, "baseline": baseline, "scale": scale, "kl_in": kl_in}
    arrays = (jnp.asarray(x, jnp.float32) for x in (scores, kl))
    found = ADVANTAGES(*arrays, jnp.asarray(MASK), jnp.float32(0.3), **choices)
    np.testing.assert_allclose(found, by_hand(scores, kl, 0.3, baseline, scale, kl_in), rtol=2e-4, atol=1e-5)


def test_leaving_one_out_is_the_mean_baseline_times_n_over_n_minus_one():
    scores = jnp.asarray(example(1)[0], jnp.float32)
    mean, others = (group_advantages(scores, N, baseline=x, scaled=False) for x in ("group", "leave_one_out"))
    np.testing.assert_allclose(others, mean * N / (N - 1), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(mean).reshape(G, N).sum(1), np.zeros(G), atol=1e-6)


def test_a_score_of_zero_is_a_score():
    found = group_advantages(jnp.asarray([0.0, 2.0]), 2, baseline="group", scaled=False)
    np.testing.assert_array_equal(found, [-1.0, 1.0])


@pytest.mark.parametrize("level", [0.0, 0.1, -3.0, 1e6])
def test_a_group_of_equal_scores_has_advantages_of_exactly_zero(level):
    """Scores that rounding alone makes unequal, too: over a deviation of 1e-8 they would look like the best ones."""
    scores = np.float32([level] * 3 + [np.nextafter(np.float32(level), np.float32(np.inf)) if level else 0.0])
    scores = jnp.asarray(np.concatenate([scores, np.float32([1, 2, 3, 4])]))
    assert varied_groups(scores, 4).tolist() == [False] * 4 + [True] * 4
    for baseline, scaled in itertools.product(("group", "leave_one_out"), (False, True)):
        found = np.asarray(group_advantages(scores, 4, baseline=baseline, scaled=scaled))
        assert not found[:4].any() and found[4:].all()


def test_responses_that_are_left_out_do_not_count_in_a_batch_that_is_whitened():
    scores, kl = example(2)
    left = MASK & (np.arange(B) >= N)[:, None]
    choices = {"samples": N, "baseline": "group", "scale": "batch", "kl_in": "loss"}
    found = ADVANTAGES(jnp.asarray(scores), jnp.asarray(kl), jnp.asarray(left), 0.3, **choices)
    alone = ADVANTAGES(jnp.asarray(scores[N:]), jnp.asarray(kl[N:]), jnp.asarray(MASK[N:]), 0.3, **choices)
    assert not np.asarray(found)[:N].any()
    np.testing.assert_allclose(found[N:], alone, rtol=1e-5)
