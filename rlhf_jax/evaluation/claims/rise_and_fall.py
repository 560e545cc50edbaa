"""How far a curve rises to its peak and falls behind it, without being fooled by the choice of the peak.

The highest of several noisy points is too high: a curve that stays level would seem to rise and to fall. So the items
are cut into two halves; the peak is looked for on one and measured on the other, then the other way round, and the
two results are averaged. Seeds keep their own peak: runs of different seeds need not turn at the same step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.seeded_values import Estimate, estimate


class RiseAndFall(NamedTuple):
    """Attributes:
    start, peak, end: the mean there; the peak's is measured on items that did not choose it.
    rise: peak minus start. fall: peak minus end. Both pairwise on the items.
    peak_at: the places of the peaks, one for each seed and half.
    """

    start: Estimate
    peak: Estimate
    end: Estimate
    rise: Estimate
    fall: Estimate
    peak_at: tuple[float, ...]


def rise_and_fall(values_SXN: np.ndarray, at_X: np.ndarray) -> RiseAndFall:
    """Reads a curve of X points, each measured on the same N items, for S seeds; NaN where there is no value.

    Raises UserError for fewer than three points or four items, of which no peak can be told.
    """
    _, points, items = values_SXN.shape
    if points < 3 or items < 4:
        raise UserError(f"{points} points of {items} items; a peak can be told from 3 points of 4 items on")
    even = np.arange(items) % 2 == 0
    peak_SN, places = np.full((len(values_SXN), items), np.nan), []
    for s, curve_XN in enumerate(values_SXN):
        # Places that a half has no value at cannot be its peak; nor can they measure that of the other.
        both = [
            i for i, at in enumerate(curve_XN) if not (np.isnan(at[even]).all() or np.isnan(at[~even]).all())
        ]
        for half in (even, ~even) if both else ():
            found = both[int(np.argmax(np.nanmean(curve_XN[both][:, half], 1)))]
            peak_SN[s, ~half] = curve_XN[found, ~half]
            places.append(float(at_X[found]))
    start_SN, end_SN = values_SXN[:, 0], values_SXN[:, -1]
    return RiseAndFall(
        *(estimate(v) for v in (start_SN, peak_SN, end_SN, peak_SN - start_SN, peak_SN - end_SN)),
        tuple(places),
    )
