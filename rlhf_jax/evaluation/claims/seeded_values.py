"""Values that were measured for several seeds on the same items: their mean, and how sure it is.

An array `values_SN` holds one value for each of S seeds and N items, such as instructions; NaN where there is none. A
number that is known of a seed as a whole is an array with N = 1.

Two things make the mean uncertain: which seeds were run and which items were asked. Both are counted. With m_s the mean
of seed s and d_n that of item n over the seeds,

    error^2 = var(m_s) / S + var(d_n) / N

where a term that cannot be estimated (one seed, one item) is left out. The interval takes Student's quantile of each
term by the term's share of the whole (Cochran 1964, "Approximate significance levels of the Behrens-Fisher test"): two
or three seeds that differ make it as wide as it should be. The degrees of freedom of Welch and Satterthwaite would be
too many where one term has one or two: their intervals hold the mean in 87 to 93 % of cases then, these in 95 or more.
The items' share of the spread of the seeds is counted in both terms, so the error is rather too large than too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items, its standard error and interval at 95 % (NaN where neither can be estimated)."""

    mean: float
    error: float
    interval: tuple[float, float]
    seeds: int
    items: int

    @property
    def sign(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, 0 where it holds 0 or is not known."""
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0


def estimate(values_SN: np.ndarray) -> Estimate:
    """The mean over seeds of the means over items. Seeds and items without any value are left out."""
    known = ~np.isnan(values_SN)
    values_SN = values_SN[known.any(1)][:, known.any(0)]
    seeds, items = values_SN.shape
    if not values_SN.size:
        return Estimate(math.nan, math.nan, (math.nan, math.nan), 0, 0)
    mean_S = np.nanmean(values_SN, 1)
    mean = float(mean_S.mean())
    terms = []  # (squared error, degrees of freedom)
    if seeds > 1:
        terms.append((float(mean_S.var(ddof=1)) / seeds, seeds - 1))
    if items > 1:
        # Where an item lacks a seed the others stand for it; their level is taken out first.
        of_item_N = np.nanmean(values_SN - mean_S[:, None], 0)
        # One value for all items, such as the KL of a run, is a number of the seed as a whole: the items say nothing.
        if np.ptp(of_item_N) > 0:
            terms.append((float(of_item_N.var(ddof=1)) / items, items - 1))
    error, interval = _interval(mean, terms)
    return Estimate(mean, error, interval, seeds, items)


def difference(a_SN: np.ndarray, b_SN: np.ndarray) -> Estimate:
    """How far a is above b, pairwise: on the seeds and items that both have."""
    return estimate(a_SN - b_SN)


def as_percentage(found: Estimate) -> Estimate:
    """The same mean of numbers from 0 to 100, with an interval that stays there too.

    That of log(p / (100 - p)), whose error is error / (p (1 - p / 100)) to first order (the delta method), carried
    back: the same for a small error, and for a large one longer on the side of 50 % than on the other.
    """
    low, high = found.interval
    if not (0 < found.mean < 100 and high > low):
        return found
    from scipy.special import expit, logit

    # Half the interval is the quantile times the error.
    centre, half = logit(found.mean / 100), (high - low) / 2 / (found.mean * (1 - found.mean / 100))
    return replace(found, interval=tuple(100 * float(expit(x)) for x in (centre - half, centre + half)))


def _interval(mean: float, terms: list[tuple[float, int]]) -> tuple[float, tuple[float, float]]:
    """(standard error, interval) of a mean whose squared error is the sum of these terms."""
    if not terms:
        return math.nan, (math.nan, math.nan)
    square = sum(term for term, _ in terms)
    if square == 0:
        return 0.0, (mean, mean)
    from scipy.special import stdtrit

    # Term by term, never a term squared: the square of a tiny one is 0.
    quantile = sum(term / square * float(stdtrit(df, (1 + LEVEL) / 2)) for term, df in terms)
    half = quantile * math.sqrt(square)
    return math.sqrt(square), (mean - half, mean + half)
