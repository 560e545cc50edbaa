"""Newton and L1 fits against a general optimiser, and what they refuse."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.logistic import (
    L1_STRENGTHS,
    choose_l1_strength,
    cross_entropy,
    fit_logistic,
    fit_logistic_l1,
)


def problem(n=300, seed=0):
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.tanh(rng.normal(size=n)), rng.normal(size=n), np.ones(n)])
    y = np.clip(1 / (1 + np.exp(-X @ [-1.5, 1.0, -1.0])) + 0.2 * rng.normal(size=n), 0, 1)
    return X, y, rng.uniform(0.1, 2, n)


def plain_loss(w, X, y, s):
    p = 1 / (1 + np.exp(-(X @ w)))
    return -np.sum(s * (y * np.log(p) + (1 - y) * np.log(1 - p)))


def test_newton_finds_what_a_general_optimiser_finds():
    X, y, s = problem()
    w = fit_logistic(X, y, s, ridge=0.3)
    other = minimize(lambda v: plain_loss(v, X, y, s) + 0.15 * v @ v, np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(w, other, atol=1e-6)
    np.testing.assert_allclose(X.T @ (s * (expit(X @ w) - y)) + 0.3 * w, 0, atol=1e-7)


def test_separable_labels_stay_finite():
    X = np.column_stack([np.ones(50), np.repeat([-1.0, 1.0], 25)])
    w = fit_logistic(X, np.repeat([0.0, 1.0], 25))
    assert np.isfinite(w).all() and expit(X @ w)[-1] > 0.999


@pytest.mark.parametrize("strength", [0.003, 0.02, 0.2, 5.0])
def test_l1_is_the_minimum_of_liblinears_objective(strength):
    X, y, s = problem()
    w = fit_logistic_l1(X, y, s, strength=strength)

    def objective(v):
        return np.abs(v).sum() + strength * plain_loss(v, X, y, s)

    # Positive and negative parts make the objective smooth for a bounded optimiser.
    split = minimize(
        lambda u: u.sum() + strength * plain_loss(u[:3] - u[3:], X, y, s),
        np.full(6, 0.1),
        bounds=[(0, None)] * 6,
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000},
    ).x
    assert objective(w) <= objective(split[:3] - split[3:]) + 1e-8
    np.testing.assert_allclose(w, split[:3] - split[3:], atol=2e-4)


def test_a_small_strength_sets_coefficients_to_zero_exactly():
    X, y, s = problem()
    assert (fit_logistic_l1(X, y, s, strength=1e-4) == 0).all()
    assert 0 in fit_logistic_l1(X, y, s, strength=0.02)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_that_are_all_the_same_have_coefficients_of_their_sign(label):
    X, _, s = problem()
    w = fit_logistic_l1(X, np.full(len(X), label), s, strength=1.0)
    assert (w[2] > 0) == (label == 1) and abs(expit(X @ w) - label).max() < 0.05


def test_sparse_features_have_the_coefficients_of_dense_ones():
    X, y, s = problem()
    np.testing.assert_allclose(
        fit_logistic(sparse.csr_array(X), y, s, ridge=0.3), fit_logistic(X, y, s, ridge=0.3), atol=1e-9
    )


def test_the_chosen_strength_is_the_best_of_all_on_held_out_rows():
    X, y, s = problem(80)

    def held_out(strength):
        total = 0.0
        for fold in range(5):
            test = np.arange(80) % 5 == fold
            w = fit_logistic_l1(X[~test], y[~test], s[~test], strength=strength)
            total += plain_loss(w, X[test], y[test], s[test]) / test.sum()
        return total

    losses = [held_out(strength) for strength in L1_STRENGTHS]
    assert choose_l1_strength(X, y, s) == L1_STRENGTHS[int(np.argmin(losses))]


def test_cross_entropy_is_exact_far_out():
    np.testing.assert_allclose(cross_entropy(np.array([1.0, 0.0]), np.array([-800.0, 800.0])), [800, 800])


@pytest.mark.parametrize(
    ("X", "y", "s", "said"),
    [
        (np.ones((2, 1)), [0.0], None, "must match"),
        (np.full((1, 1), np.nan), [0.0], None, "not finite"),
        (np.ones((1, 1)), [0.5], [-1.0], "negative"),
        (np.ones((1, 1)), [1.5], None, "outside"),
    ],
)
def test_bad_input_is_one_line(X, y, s, said):
    with pytest.raises(UserError, match=said):
        fit_logistic(X, np.array(y), s)


def test_bad_strengths():
    X, y, s = problem()
    with pytest.raises(UserError, match="positive"):
        fit_logistic_l1(X, y, s, strength=0)
    with pytest.raises(UserError, match="too few"):
        choose_l1_strength(X[:4], y[:4])
