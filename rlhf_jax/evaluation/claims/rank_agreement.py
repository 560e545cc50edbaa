"""Whether two ways to measure rank methods alike: Spearman's and Pearson's correlation over methods, with intervals.

The interval is a percentile bootstrap over what was drawn: seeds, and items such as instructions. The methods are those
that were chosen, so they are not resampled. AlpacaFarm reports the same two numbers of its simulator and of people
(Dubois et al. 2023, figure 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.seeded_values import estimate, spread_means

_RESAMPLES = 2000


@dataclass(frozen=True)
class RankAgreement:
    """spearman, r2 (squared Pearson), each with its interval at 95 %, over so many methods."""

    spearman: float
    spearman_interval: tuple[float, float]
    r2: float
    r2_interval: tuple[float, float]
    methods: int


def rank_agreement(
    x_by_method: Mapping[str, np.ndarray], y_by_method: Mapping[str, np.ndarray], *, seed: int = 0
) -> RankAgreement:
    """Compares two measures [S, N] of each method; both of the same seeds, each with items of its own.

    Raises UserError with fewer than three methods that have both, for which a correlation says nothing.
    """
    methods = [name for name in x_by_method if name in y_by_method]
    if len(methods) < 3:
        raise UserError(
            f"rows: {len(methods)} of them have both measures; a rank correlation needs at least 3"
        )
    x, y = ([found[name] for name in methods] for found in (x_by_method, y_by_method))
    at = _correlations(np.array([[estimate(v).mean for v in side] for side in (x, y)]))
    rng = np.random.default_rng(seed)
    drawn = [_correlations(_resampled(x, y, rng)) for _ in range(_RESAMPLES)]
    # A resample in which all methods are alike has no correlation.
    spearman, r2 = np.nanpercentile(np.array(drawn), [2.5, 97.5], axis=0).T
    return RankAgreement(at[0], tuple(map(float, spearman)), at[1], tuple(map(float, r2)), len(methods))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, smallest first; equal values share the mean of their ranks."""
    less = (values[:, None] > values).sum(1)
    same = (values[:, None] == values).sum(1)
    return less + (same + 1) / 2


def _correlations(means_2M: np.ndarray) -> tuple[float, float]:
    x, y = means_2M
    return _pearson(ranks(x), ranks(y)), _pearson(x, y) ** 2


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def _resampled(x: list[np.ndarray], y: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Means [2, M] of one resample: the same seeds and the same items for all methods, since they share them."""
    weights: dict[int, np.ndarray] = {}
    chosen: dict[int, np.ndarray] = {}

    def mean(values_SN: np.ndarray) -> float:
        seeds, items = values_SN.shape
        if seeds not in chosen:
            chosen[seeds] = rng.integers(seeds, size=seeds)
        if items not in weights:
            weights[items] = rng.multinomial(items, np.full(items, 1 / items)).astype(np.float64)
        return spread_means(values_SN, weights[items], chosen[seeds])

    return np.array([[mean(v) for v in side] for side in (x, y)])
