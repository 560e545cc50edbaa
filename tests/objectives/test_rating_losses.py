"""Losses of ratings, and the margin and centring of pairs, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference, number, split_and_add

from rlhf_jax.models.decoder import increasing
from rlhf_jax.objectives.preference import bradley_terry
from rlhf_jax.objectives.rating_losses import even_thresholds, rating_ordinal, rating_regression

RNG = np.random.default_rng(0)
SCORE = 2 * RNG.normal(size=8)
WEIGHT = np.array([1.0, 1.0, 0.0, 2.0, 0.5, 1.0, 0.0, 1.0])
RATING = np.array([1, 7, 3, 4, 7, 1, 2, 5])
CUTS = np.array([-2.0, -1.0, -0.2, 0.3, 1.1, 2.5])


def array(x):
    return jnp.asarray(x, jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def regression(score):
    return float((WEIGHT * ((RATING - 1) / 6 - sigmoid(score)) ** 2).sum())


def ordinal(score, cuts):
    above = np.concatenate([np.ones((8, 1)), sigmoid(score[:, None] - cuts), np.zeros((8, 1))], axis=1)
    return float(-(WEIGHT * np.log((above[:, :-1] - above[:, 1:])[np.arange(8), RATING - 1])).sum())


def test_regression_and_its_gradient():
    target = array((RATING - 1) / 6)

    def loss(score):
        return rating_regression(score, target, array(WEIGHT))["loss"].sum

    found = rating_regression(array(SCORE), target, array(WEIGHT))
    assert number(found["loss"]) == pytest.approx(regression(SCORE) / WEIGHT.sum(), rel=1e-5)
    error = np.abs((RATING - 1) / 6 - sigmoid(SCORE))
    assert number(found["ratings/error"]) == pytest.approx((WEIGHT * error).sum() / WEIGHT.sum(), rel=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(array(SCORE)), central_difference(regression, SCORE), atol=1e-6)
    # A rating in the middle of the scale and a score of 0 agree: sparse_feedback's 4 of 1 to 7.
    assert number(rating_regression(array([0.0]), array([0.5]), array([1.0]))["loss"]) == 0.0


def test_ordinal_and_its_gradient():
    def loss(score, cuts):
        return rating_ordinal(score, jnp.asarray(RATING - 1), cuts, array(WEIGHT))["loss"].sum

    assert float(loss(array(SCORE), array(CUTS))) == pytest.approx(ordinal(SCORE, CUTS), rel=1e-5)
    got = jax.grad(loss, argnums=(0, 1))(array(SCORE), array(CUTS))
    np.testing.assert_allclose(got[0], central_difference(lambda x: ordinal(x, CUTS), SCORE), atol=1e-5)
    np.testing.assert_allclose(got[1], central_difference(lambda x: ordinal(SCORE, x), CUTS), atol=1e-5)
    # The expected place on the scale is sum_k k P(level k) / K.
    above = np.concatenate([np.ones((8, 1)), sigmoid(SCORE[:, None] - CUTS), np.zeros((8, 1))], axis=1)
    place = (above[:, :-1] - above[:, 1:]) @ np.arange(7) / 6
    found = rating_ordinal(array(SCORE), jnp.asarray(RATING - 1), array(CUTS), array(WEIGHT))
    assert number(found["ratings/predicted"]) == pytest.approx(
        (WEIGHT * place).sum() / WEIGHT.sum(), rel=1e-5
    )


def test_far_scores_have_finite_losses_and_gradients():
    def loss(score):
        level = jnp.array([0, 3, 6])
        return rating_ordinal(score, level, array(CUTS), jnp.ones(3))["loss"].sum

    for far in (-300.0, 300.0):
        value, grads = jax.value_and_grad(loss)(jnp.full(3, far))
        assert np.isfinite(value) and np.isfinite(grads).all()


def test_with_even_thresholds_a_score_of_zero_finds_all_levels_equally_likely():
    cuts = increasing(even_thresholds(6))
    losses = [
        number(rating_ordinal(jnp.zeros(1), jnp.array([k]), cuts, jnp.ones(1))["loss"]) for k in range(7)
    ]
    np.testing.assert_allclose(losses, np.log(7), rtol=1e-5)
    assert (jnp.diff(increasing(array([0.3, -4.0, 2.0]))) > 0).all()


@pytest.mark.parametrize("cut", [3, 5])
def test_rows_that_count_nothing_and_halves_of_a_batch(cut):
    dirty = np.where(WEIGHT == 0, np.nan, SCORE)
    level, target = jnp.asarray(RATING - 1), array((RATING - 1) / 6)
    for function in (
        lambda s, w, lv, _: rating_ordinal(s, lv, array(CUTS), w),
        lambda s, w, _, t: rating_regression(s, t, w),
    ):
        arrays = (array(dirty), array(WEIGHT), level, target)
        whole = function(*arrays)
        grads = jax.grad(lambda s, f=function, a=arrays: f(s, *a[1:])["loss"].sum)(array(dirty))
        assert np.isfinite(grads).all() and (np.asarray(grads)[WEIGHT == 0] == 0).all()
        for name, (total, weight) in split_and_add(function, arrays, cut).items():
            assert total / weight == pytest.approx(number(whole[name]), rel=1e-5), name


def test_bradley_terry_with_a_margin_and_centring():
    chosen, rejected = 3 * RNG.normal(size=(2, 8))
    margin = np.abs(RNG.normal(size=8))

    def loss(chosen, rejected):
        each = np.logaddexp(0, margin - chosen + rejected) + 0.01 * (chosen + rejected) ** 2
        return float((WEIGHT * each).sum())

    def ours(chosen, rejected):
        found = bradley_terry(chosen, rejected, array(WEIGHT), margin_B=array(margin), centre_coef=0.01)
        return found["loss"].sum

    assert float(ours(array(chosen), array(rejected))) == pytest.approx(loss(chosen, rejected), rel=1e-5)
    got = jax.grad(ours, argnums=(0, 1))(array(chosen), array(rejected))
    np.testing.assert_allclose(got[0], central_difference(lambda x: loss(x, rejected), chosen), atol=1e-5)
    np.testing.assert_allclose(got[1], central_difference(lambda x: loss(chosen, x), rejected), atol=1e-5)
    # Llama 2's margin of 3 for "significantly better": at equal scores the loss is softplus(3).
    one = bradley_terry(jnp.zeros(1), jnp.zeros(1), jnp.ones(1), margin_B=jnp.array([3.0]))["loss"]
    assert number(one) == pytest.approx(3.0485873, rel=1e-6)
