"""Whether two ways to measure rank methods alike: Spearman's and Pearson's correlation over methods, with intervals.

The interval is a percentile bootstrap over what was drawn: seeds, and items such as instructions. Of S seeds S - 1 are
drawn, of N items N - 1: with as many as there are, the spread of two seeds would come out half as large as it is (Rao
and Wu 1988). The methods are those that were chosen, so they are not resampled. AlpacaFarm reports the same two numbers
of its simulator and of people (Dubois et al. 2023, figure 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.seeded_values import estimate

_RESAMPLES = 2000
# Of fewer seeds alone, without items, there are not enough resamples to tell the ends of an interval.
_FEWEST_SEEDS = 4


@dataclass(frozen=True)
class RankAgreement:
    """spearman, r2 (squared Pearson), each with its interval at 95 %, over so many methods.

    NaN where it cannot be told: a correlation where one measure has the same value for all methods, an interval where a
    measure has neither items nor four seeds that could be resampled.
    """

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
    at = _correlations(np.array([[[estimate(v).mean for v in side] for side in (x, y)]]))[0]
    ends = np.full((2, 2), np.nan)
    if all(v.shape[1] > 1 or len(v) >= _FEWEST_SEEDS for v in (*x, *y)):
        drawn = _correlations(_resampled(x, y, seed))
        # A resample in which all methods are alike has no correlation, nor one that lacks a method's only seed.
        known = drawn[~np.isnan(drawn).any(1)]
        ends = np.percentile(known, [2.5, 97.5], axis=0).T if len(known) else ends
    spearman, r2 = ((float(low), float(high)) for low, high in ends)
    return RankAgreement(float(at[0]), spearman, float(at[1]), r2, len(methods))


def _correlations(means_R2M: np.ndarray) -> np.ndarray:
    """(Spearman, squared Pearson) of every two rows [R, 2].

    NaN where a method lacks its value, and where all have the same.
    """
    from scipy import stats  # Here, because it takes half a second and every report imports this module.

    ranks_R2M = stats.rankdata(means_R2M, axis=-1)
    return np.stack([_pearson(ranks_R2M), _pearson(means_R2M) ** 2], -1)


def _pearson(values_R2M: np.ndarray) -> np.ndarray:
    away = values_R2M - values_R2M.mean(-1, keepdims=True)
    x, y = away[:, 0], away[:, 1]
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(scale > 0, (x * y).sum(-1) / np.where(scale > 0, scale, 1.0), np.nan)


def _resampled(x: list[np.ndarray], y: list[np.ndarray], seed: int) -> np.ndarray:
    """Means [R, 2, M] of the resamples: the same seeds and the same items for all methods, since they share them."""
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, int], np.ndarray] = {}

    def times(v: np.ndarray, axis: int) -> np.ndarray:
        """How often each of the seeds (axis 0) or items (axis 1) is in each resample [R, S] or [R, N]."""
        size = v.shape[axis]
        if (axis, size) not in drawn:
            whole = rng.multinomial(max(size - 1, 1), np.full(size, 1 / size), _RESAMPLES)
            drawn[axis, size] = whole.astype(np.float64)
        return drawn[axis, size]

    found = [[_means(v, times(v, 0), times(v, 1)) for v in side] for side in (x, y)]
    return np.moveaxis(np.array(found), 2, 0)


def _means(values_SN: np.ndarray, seeds_RS: np.ndarray, items_RN: np.ndarray) -> np.ndarray:
    """The mean over seeds of the means over items of every resample [R]; NaN where it has no value."""
    known_SN = ~np.isnan(values_SN)
    weight_RS = items_RN @ known_SN.T
    total_RS = items_RN @ np.where(known_SN, values_SN, 0.0).T
    seeds_RS = seeds_RS * (weight_RS > 0)
    mean_RS = total_RS / np.where(weight_RS > 0, weight_RS, 1.0)
    count_R = seeds_RS.sum(1)
    return np.where(count_R > 0, (mean_RS * seeds_RS).sum(1) / np.where(count_R > 0, count_R, 1.0), np.nan)
