"""Quantiles of scores against a sort by hand, and the loss of a quantile against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import number, prefix_mask

from rlhf_jax.objectives.quantiles import quantile_loss, ranked

rank = jax.jit(ranked, static_argnums=2)


def by_hand(scores, counted, K):
    order = sorted(
        np.flatnonzero(counted), key=lambda i: -scores[i]
    )  # Python's sort keeps ties in their order.
    quantile = np.full(len(scores), K)
    for r, i in enumerate(order):
        quantile[i] = r * K // len(order)
    return [*order, *np.flatnonzero(~counted)], quantile


@pytest.mark.parametrize("K", [2, 3, 4])
def test_order_and_quantiles_equal_a_sort_by_hand(K):
    rng = np.random.default_rng(K)
    for share in (0.0, 0.1, 0.6, 1.0):
        scores = np.float32(rng.integers(-2, 3, 13))  # with many ties
        scores[rng.integers(13)] = -np.inf
        counted = rng.random(13) < share
        order, quantile = rank(scores, counted, K)
        wanted = by_hand(scores, counted, K)
        assert order.tolist()[: counted.sum()] == wanted[0][: counted.sum()]
        assert sorted(order.tolist()) == list(range(13))
        assert quantile.tolist() == wanted[1].tolist()


def test_equal_scores_fill_the_quantiles_in_their_order():
    order, quantile = rank(np.zeros(8, np.float32), np.ones(8, bool), 4)
    assert order.tolist() == list(range(8)) and quantile.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_loss_equals_the_formula_and_does_not_see_pads():
    rng = np.random.default_rng(0)
    logp, kl, entropy = -rng.exponential(2, (3, 5)), rng.exponential(1, (3, 5)), rng.exponential(1, (3, 5))
    mask = jnp.asarray(prefix_mask([5, 1, 3], 5))

    def call(logp, kl, entropy):
        return quantile_loss(logp, kl, entropy, mask, kl_coef=0.3, entropy_coef=0.06)

    holes = [jnp.asarray(np.where(mask, x, np.nan), jnp.float32) for x in (logp, kl, entropy)]
    found = call(*holes)
    wanted = (-logp + 0.3 * kl - 0.06 * entropy)[np.asarray(mask)]
    assert number(found["loss"]) == pytest.approx(wanted.mean(), rel=1e-5)
    assert float(found["loss"].weight) == 9
    assert number(found["loss/nll"]) == pytest.approx(-logp[np.asarray(mask)].mean(), rel=1e-5)
    assert number(found["loss/kl"]) == pytest.approx(kl[np.asarray(mask)].mean(), rel=1e-5)
    assert number(found["policy/entropy"]) == pytest.approx(entropy[np.asarray(mask)].mean(), rel=1e-5)
    gradients = jax.grad(lambda *x: call(*x)["loss"].sum, (0, 1, 2))(*holes)
    for got, weight in zip(gradients, (-1, 0.3, -0.06), strict=True):
        np.testing.assert_allclose(got, np.where(mask, weight, 0), rtol=1e-6)
