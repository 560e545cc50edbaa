"""RRHF against float64 NumPy written from the paper, the numbers of the released code, and what must count nowhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference, number, split_and_add

from rlhf_jax.objectives.ranking import NORMALISATIONS, Ranked, rrhf

RNG = np.random.default_rng(0)
B, N = 6, 4
SUMS = -8 * RNG.random((B, N))
COUNTS = RNG.integers(1, 7, (B, N))
ROWS = COUNTS + RNG.integers(2, 9, (B, 1))
SCORES = RNG.normal(size=(B, N)).round(1)
SCORES[1, 2] = SCORES[1, 0]  # a tie among others
SCORES[2] = 0.5  # no pair at all
SCORES[3, :2] = 9.0  # two that are best
THERE = RNG.random((B, N)) < 0.8
THERE[:4] = True
THERE[5] = [False, True, False, False]
WEIGHT = np.array([1.0, 1.0, 1.0, 2.0, 1.0, 0.5])
KINDS = {"rank_weight": 0.7, "sft_weight": 0.4, "length_penalty": 0.8}


def ranked(sums=SUMS, scores=SCORES, there=THERE):
    floats = [jnp.asarray(x, jnp.float32) for x in (sums, scores)]
    return Ranked(floats[0], jnp.asarray(COUNTS), jnp.asarray(ROWS), floats[1], jnp.asarray(there))


def by_hand(sums, normalisation, rank_weight=1.0, sft_weight=1.0, length_penalty=1.0):
    """(loss, L_rank, L_ft, accurate pairs, pairs) of every prompt, one pair at a time."""
    found = []
    for b in range(B):
        alive = [i for i in range(N) if THERE[b, i]]
        longest = max(ROWS[b, i] for i in alive)
        size = {i: float(longest if normalisation == "longest_row" else COUNTS[b, i]) for i in alive}
        p = {i: sums[b, i] / size[i] ** length_penalty for i in alive}
        pairs = [(i, j) for i in alive for j in alive if SCORES[b, i] < SCORES[b, j]]
        rank = sum(max(0.0, p[i] - p[j]) for i, j in pairs)
        best = max(alive, key=lambda i: SCORES[b, i])  # the first of equals
        sft = -sums[b, best] / (1.0 if normalisation == "paper" else size[best])
        right = sum(p[i] < p[j] for i, j in pairs)
        found.append((rank_weight * rank + sft_weight * sft, rank, sft, right, len(pairs)))
    return np.array(found).T


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_value_gradient_and_metrics(normalisation):
    kinds = {**KINDS, "normalisation": normalisation}
    found = rrhf(ranked(), jnp.asarray(WEIGHT), **kinds)
    loss, rank, sft, right, pairs = by_hand(SUMS, **kinds)
    for name, each in (("loss", loss), ("loss/rank", rank), ("loss/sft", sft)):
        assert number(found[name]) == pytest.approx((WEIGHT * each).sum() / WEIGHT.sum(), rel=1e-5)
    assert number(found["rank/accuracy"]) == pytest.approx((WEIGHT * right).sum() / (WEIGHT * pairs).sum())

    got = jax.grad(lambda x: rrhf(ranked(x), jnp.asarray(WEIGHT), **kinds)["loss"].sum)(
        jnp.asarray(SUMS, jnp.float32)
    )
    want = central_difference(lambda x: float((WEIGHT * by_hand(x, **kinds)[0]).sum()), SUMS)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want).max() > 0.1 and not want[~THERE].any()


def released(normalisation, **changes):
    found = Ranked(
        jnp.array([[-8.0, -6.0, -9.0, -4.0]]),
        jnp.array([[8, 3, 6, 2]]),
        jnp.array([[12, 7, 10, 6]]),
        jnp.array([[0.9, 0.1, 0.5, -0.2]]),
        jnp.ones((1, 4), bool),
    )
    return rrhf(found, jnp.ones(1), normalisation=normalisation, **changes)


@pytest.mark.parametrize(
    ("normalisation", "rank", "sft"),
    [("paper", 0.0, 8.0), ("token_mean", 0.0, 1.0), ("longest_row", 1.33333, 0.66667)],
)
def test_numbers_of_the_released_code(normalisation, rank, sft):
    """longest_row is what the code computes, the others what the paper says and what the code means to do."""
    found = released(normalisation)
    assert number(found["loss/rank"]) == pytest.approx(rank, abs=1e-5)
    assert number(found["loss/sft"]) == pytest.approx(sft, abs=1e-5)
    assert number(found["loss"]) == pytest.approx(rank + sft, abs=1e-5)
    # p is -1, -2, -1.5 and -2: five pairs in order, and a tie.
    assert number(found["rank/accuracy"]) == pytest.approx({"longest_row": 1 / 6}.get(normalisation, 5 / 6))
    assert number(found["rank/best"]) == (normalisation != "longest_row")
    if normalisation == "paper":
        assert number(found["logps/best"]) == -1.0


def test_equal_scores_make_no_pair_and_keep_the_best_response():
    same = jnp.zeros((B, N))
    found = rrhf(ranked(scores=same), jnp.asarray(WEIGHT))
    assert number(found["loss/rank"]) == 0.0 and float(found["rank/accuracy"].weight) == 0.0
    assert float(found["rank/best"].weight) == 0.0
    first = THERE.argmax(axis=1)
    want = -(WEIGHT * SUMS[np.arange(B), first]).sum() / WEIGHT.sum()
    assert number(found["loss"]) == pytest.approx(want, rel=1e-5)


def test_equally_likely_responses_have_no_gradient_of_rank():
    found = Ranked(
        jnp.full((1, 2), -2.0),
        jnp.full((1, 2), 4),
        jnp.full((1, 2), 6),
        jnp.array([[0.0, 1.0]]),
        jnp.ones((1, 2), bool),
    )
    rank = lambda x: rrhf(found._replace(sums_BN=x), jnp.ones(1), sft_weight=0.0)["loss"].sum  # noqa: E731
    np.testing.assert_array_equal(jax.grad(rank)(found.sums_BN), 0.0)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_what_is_not_there_counts_nowhere(junk, normalisation):
    sums, scores = np.where(THERE, SUMS, junk), np.where(THERE, SCORES, junk)
    weight = WEIGHT * [1, 1, 1, 1, 1, 0]
    sums[5] = scores[5] = junk
    loss = lambda x, y, there: rrhf(  # noqa: E731
        ranked(x, y, there), jnp.asarray(weight), normalisation=normalisation
    )
    without = THERE & (weight > 0)[:, None]
    clean, dirty = loss(SUMS, SCORES, without), loss(sums, scores, THERE)
    for name in clean:
        assert [float(x) for x in dirty[name]] == [float(x) for x in clean[name]], name
    gradient = jax.grad(lambda x: loss(x, scores, THERE)["loss"].sum)(jnp.asarray(sums, jnp.float32))
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~without].any()


def test_parts_of_a_batch_add_up():
    whole = rrhf(ranked(), jnp.asarray(WEIGHT))
    arrays = (*ranked(), jnp.asarray(WEIGHT))
    parts = split_and_add(lambda *x: rrhf(Ranked(*x[:5]), x[5]), arrays, 2)
    for name, (total, weight) in parts.items():
        assert total == pytest.approx(float(whole[name].sum), rel=1e-5, abs=1e-6), name
        assert weight == pytest.approx(float(whole[name].weight)), name
