"""Logistic regression on soft labels in [0, 1] with row weights, in float64 NumPy.

Two penalties: a ridge, fitted by Newton's method, and the L1 penalty of AlpacaEval's published numbers, fitted
by coordinate descent inside Newton's method, its strength given or chosen by cross-validation. No intercept is
added: a column of ones is one, and is then penalised like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.errors import UserError

L1_STRENGTHS = tuple(np.logspace(-4, 4, 10))  # scikit-learn's LogisticRegressionCV(Cs=10)
_STEPS, _TOLERANCE = 200, 1e-10


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def cross_entropy(labels_N: np.ndarray, logits_N: np.ndarray) -> np.ndarray:
    """-(y log p + (1 - y) log(1 - p)) with p = sigmoid(logit), per row [N]."""
    return np.logaddexp(0.0, logits_N) - labels_N * logits_N


def fit_logistic(
    X_NK: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None, *, ridge: float = 1e-6
) -> np.ndarray:
    """Coefficients [K] that minimise sum_n weight_n CE_n + ridge/2 |w|^2, by Newton's method.

    A ridge above 0 makes the minimum unique and finite, also where a column separates the labels. Raises
    UserError for shapes that do not fit, non-finite values, labels outside [0, 1] or negative weights.
    """
    X, y, s = _checked(X_NK, labels_N, weights_N)

    def loss(w: np.ndarray) -> float:
        return float(s @ cross_entropy(y, X @ w) + 0.5 * ridge * w @ w)

    w = np.zeros(X.shape[1])
    for _ in range(_STEPS):
        p = sigmoid(X @ w)
        gradient = X.T @ (s * (p - y)) + ridge * w
        hessian = (X.T * (s * p * (1 - p))) @ X + ridge * np.eye(len(w))
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        if gradient @ step < _TOLERANCE * 1e-6:
            return w
        w = descend(loss, w, -step)
    return w


def fit_logistic_l1(
    X_NK: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None, *, strength: float
) -> np.ndarray:
    """Coefficients [K] that minimise |w|_1 + strength sum_n weight_n CE_n (liblinear's objective).

    A small strength sets coefficients to exactly 0. Errors as `fit_logistic`.
    """
    X, y, s = _checked(X_NK, labels_N, weights_N)
    if not strength > 0:
        raise UserError(f"l1_strength: found {strength}; give a positive number, such as 1")
    s = strength * s

    def loss(w: np.ndarray) -> float:
        return float(s @ cross_entropy(y, X @ w) + np.abs(w).sum())

    w = np.zeros(X.shape[1])
    for _ in range(_STEPS):
        p = sigmoid(X @ w)
        gradient = X.T @ (s * (p - y))
        hessian = (X.T * (s * p * (1 - p))) @ X
        moved = descend(loss, w, _l1_direction(w, gradient, hessian))
        if np.abs(moved - w).max() < _TOLERANCE:
            return moved
        w = moved
    return w


def choose_l1_strength(
    X_NK: np.ndarray,
    labels_N: np.ndarray,
    weights_N: np.ndarray | None = None,
    *,
    strengths: Sequence[float] = L1_STRENGTHS,
    folds: int = 5,
) -> float:
    """The strength whose fits have the lowest weighted cross-entropy on held-out rows, mean over folds.

    Row n is in fold n mod `folds`. Errors as `fit_logistic`; also when there are fewer rows than folds.
    """
    X, y, s = _checked(X_NK, labels_N, weights_N)
    if len(X) < 2 * folds:
        raise UserError(f"l1_strength: {len(X)} rows are too few for {folds} folds; give a number instead")
    fold_N = np.arange(len(X)) % folds

    def held_out(strength: float) -> float:
        losses = []
        for fold in range(folds):
            fit, test = fold_N != fold, fold_N == fold
            w = fit_logistic_l1(X[fit], y[fit], s[fit], strength=strength)
            losses.append(float(np.mean(s[test] * cross_entropy(y[test], X[test] @ w))))
        return float(np.mean(losses))

    return min(strengths, key=held_out)


def _l1_direction(w: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The step d that minimises gradient d + d' hessian d / 2 + |w + d|_1, by coordinate descent."""
    d = np.zeros_like(w)
    for _ in range(1000):
        largest = 0.0
        for j in range(len(w)):
            curvature = max(hessian[j, j], 1e-12)
            at = w[j] + d[j] - (gradient[j] + hessian[j] @ d) / curvature
            new = np.sign(at) * max(abs(at) - 1.0 / curvature, 0.0) - w[j]
            largest = max(largest, abs(new - d[j]))
            d[j] = new
        if largest < _TOLERANCE * 0.01:
            break
    return d


def descend(loss: Callable[[np.ndarray], float], w: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """w plus the longest of direction, half of it, a quarter ... that does not raise the loss."""
    before = loss(w)
    for halvings in range(60):
        moved = w + direction * 0.5**halvings
        if loss(moved) <= before:
            return moved
    return w


def _checked(
    X_NK: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, y = np.asarray(X_NK, np.float64), np.asarray(labels_N, np.float64)
    s = np.ones(len(y)) if weights_N is None else np.asarray(weights_N, np.float64)
    if X.ndim != 2 or not len(X) or not len(X) == len(y) == len(s):
        raise UserError(f"rows: features {X.shape}, {len(y)} labels and {len(s)} weights; they must match")
    if not (np.isfinite(X).all() and np.isfinite(s).all() and (s >= 0).all()):
        raise UserError("rows: a feature or a weight is not finite or a weight is negative; mend those rows")
    if not ((y >= 0) & (y <= 1)).all():
        raise UserError("labels: some are outside [0, 1]; give preferences minus 1, without missing ones")
    return X, y, s
