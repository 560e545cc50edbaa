"""Logistic regression on soft labels in [0, 1] with row weights, by scikit-learn.

Two penalties: a ridge, fitted by Newton's method, and the L1 penalty of AlpacaEval's published numbers, fitted by
liblinear as there, its strength given or chosen by cross-validation. No intercept is added: a column of ones is one,
and is then penalised like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from rlhf_jax.errors import UserError

L1_STRENGTHS = tuple(np.logspace(-4, 4, 10))  # scikit-learn's LogisticRegressionCV(Cs=10)
_TOLERANCE, _NEXT_TO_NOTHING = 1e-12, 1e-100


def cross_entropy(labels_N: np.ndarray, logits_N: np.ndarray) -> np.ndarray:
    """-(y log p + (1 - y) log(1 - p)) with p = sigmoid(logit), per row [N]."""
    return np.logaddexp(0.0, logits_N) - labels_N * logits_N


def fit_logistic(
    X_NK: np.ndarray | sparse.csr_array,
    labels_N: np.ndarray,
    weights_N: np.ndarray | None = None,
    *,
    ridge: float = 1e-6,
) -> np.ndarray:
    """Coefficients [K] that minimise sum_n weight_n CE_n + ridge/2 |w|^2.

    A ridge above 0 makes the minimum unique and finite, also where a column separates the labels. Raises
    UserError for shapes that do not fit, non-finite values, labels outside [0, 1] or negative weights.
    """
    # Features are sparse where there are many: then without the matrix [K, K] of second derivatives.
    solver = "newton-cg" if sparse.issparse(X_NK) else "newton-cholesky"
    strength = 1 / ridge if ridge else np.inf
    return _fit(X_NK, labels_N, weights_N, C=strength, solver=solver, max_iter=200)


def fit_logistic_l1(
    X_NK: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None, *, strength: float
) -> np.ndarray:
    """Coefficients [K] that minimise |w|_1 + strength sum_n weight_n CE_n (liblinear's objective).

    A small strength sets coefficients to exactly 0. Errors as `fit_logistic`.
    """
    if not strength > 0:
        raise UserError(f"l1_strength: found {strength}; give a positive number, such as 1")
    how = {"l1_ratio": 1, "solver": "liblinear", "max_iter": 10_000, "random_state": 0}
    return _fit(X_NK, labels_N, weights_N, C=strength, **how)


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

    # scikit-learn's own search knows no soft labels: both halves of a row must be held out together.
    def held_out(strength: float) -> float:
        losses = []
        for fold in range(folds):
            fit, test = fold_N != fold, fold_N == fold
            w = fit_logistic_l1(X[fit], y[fit], s[fit], strength=strength)
            losses.append(float(np.mean(s[test] * cross_entropy(y[test], X[test] @ w))))
        return float(np.mean(losses))

    return min(strengths, key=held_out)


def _fit(
    X_NK: np.ndarray | sparse.csr_array, labels_N: np.ndarray, weights_N: np.ndarray | None, **how: object
) -> np.ndarray:
    from sklearn.linear_model import (
        LogisticRegression,
    )  # Here, because it takes a second and most reports fit nothing.

    X, y, s = _checked(X_NK, labels_N, weights_N)
    # scikit-learn knows the labels 0 and 1 only: a row stands twice, as 1 with weight s y and as 0 with s (1 - y).
    twice = sparse.vstack([X, X], format="csr") if sparse.issparse(X) else np.concatenate([X, X])
    # liblinear forgets rows of weight 0, and which label is which where then only one is left.
    weights = np.maximum(np.concatenate([s * y, s * (1 - y)]), _NEXT_TO_NOTHING)
    model = LogisticRegression(fit_intercept=False, tol=_TOLERANCE, **how)
    return model.fit(twice, np.repeat([1, 0], len(y)), weights).coef_[0]


def _checked(
    X_NK: np.ndarray | sparse.csr_array, labels_N: np.ndarray, weights_N: np.ndarray | None
) -> tuple[np.ndarray | sparse.csr_array, np.ndarray, np.ndarray]:
    X = X_NK if sparse.issparse(X_NK) else np.asarray(X_NK, np.float64)
    y = np.asarray(labels_N, np.float64)
    s = np.ones(len(y)) if weights_N is None else np.asarray(weights_N, np.float64)
    if X.ndim != 2 or not X.shape[0] or not X.shape[0] == len(y) == len(s):
        raise UserError(f"rows: features {X.shape}, {len(y)} labels and {len(s)} weights; they must match")
    numbers = X.data if sparse.issparse(X) else X
    if not (np.isfinite(numbers).all() and np.isfinite(s).all() and (s >= 0).all()):
        raise UserError("rows: a feature or a weight is not finite or a weight is negative; mend those rows")
    if not ((y >= 0) & (y <= 1)).all():
        raise UserError("labels: some are outside [0, 1]; give preferences minus 1, without missing ones")
    return X, y, s
