"""Paired comparison of models measured on the same instructions, by the bootstrap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.win_rate import read_preferences

PAIRED_NAME = "paired percentile bootstrap over instructions, 95 %"
_BATCH = 2_000_000  # resampled rows at a time


@dataclass(frozen=True)
class Difference:
    """How far model `a` is ahead of model `b`, in points of win rate, on the n_total rows both have.

    p_value: two-sided, twice the smaller share of resamples on one side of 0, at least 1 / (resamples + 1);
    1 where no row differs. n_missing: rows that one of them lacks.
    """

    a: str
    b: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    n_total: int
    n_missing: int


def paired_differences(
    preferences: Mapping[str, Sequence[object]],
    *,
    seed: int = 0,
    n_bootstrap: int = 10_000,
    min_coverage: float = 0.8,
) -> list[Difference]:
    """Every pair of models, in the order given, from their preferences [N] on the same instructions.

    Resampling instructions keeps what two models share on an easy or hard one, which separate intervals throw
    away: models can differ surely though their intervals overlap. Raises UserError for unequal lengths, and
    where fewer than `min_coverage` of the rows have both labels.
    """
    labels = {name: read_preferences(values, name) for name, values in preferences.items()}
    lengths = {len(x) for x in labels.values()}
    if len(lengths) > 1:
        raise UserError(
            f"preferences: {sorted(lengths)} rows; give every model a label or null per instruction"
        )
    return [
        _difference(a, b, labels[a], labels[b], seed, n_bootstrap, min_coverage)
        for a, b in itertools.combinations(labels, 2)
    ]


def bootstrap_mean(
    values_N: np.ndarray, *, seed: int, n_bootstrap: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """Means [n_bootstrap] of the values resampled with replacement, and their percentile interval at 95 %."""
    from scipy import stats  # Here, because it takes half a second and every report imports this module.

    # SciPy wants two values; one and its double have the mean of one.
    values = values_N if len(values_N) > 1 else np.repeat(values_N, 2)
    batch = max(1, _BATCH // len(values))
    how = {"n_resamples": n_bootstrap, "batch": batch, "method": "percentile", "rng": seed}
    found = stats.bootstrap((values,), np.mean, **how)
    return found.bootstrap_distribution, tuple(map(float, found.confidence_interval))


def _difference(
    a: str, b: str, x: np.ndarray, y: np.ndarray, seed: int, n_bootstrap: int, min_coverage: float
) -> Difference:
    d = (x - y)[~np.isnan(x - y)]
    if len(d) == 0 or len(d) < min_coverage * len(x):
        raise UserError(
            f"preferences: {a} and {b} share {len(d)} of {len(x)} labelled rows; a comparison needs one and "
            f"{100 * min_coverage:g} %: annotate the missing ones again, or lower min_coverage"
        )
    means, (low, high) = bootstrap_mean(d, seed=seed, n_bootstrap=n_bootstrap)
    one_side = min((means <= 0).mean(), (means >= 0).mean())
    # Resamples never show that something cannot be: with n of them nothing below 1 / (n + 1) is claimed.
    p = min(1.0, max(2 * float(one_side), 1 / (n_bootstrap + 1)))
    interval = (100 * low, 100 * high)
    return Difference(a, b, 100 * math.fsum(d) / len(d), interval, p, len(d), len(x) - len(d))
