"""How far a curve rises to its peak and falls behind it, without being fooled by the choice of the peak.

The highest of several noisy points is too high: a curve that stays level would seem to rise and to fall. So the peak is
looked for on other values than it is measured on: the items are cut into two halves, and for each half of each seed
the peak is the highest point of the other half of the other seeds. Halves, as the answers at one point may be lucky;
other seeds, as the run itself may be, at a point that means nothing for the next run. With one seed only the first is
ruled out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.seeded_values import Estimate, estimate

_FEWEST_POINTS, _FEWEST_ITEMS = 3, 4


class RiseAndFall(NamedTuple):
    """Attributes:
    start, peak, end: the mean there; the peak's is measured on values that did not choose it.
    rise: the highest point behind the start, minus the start. fall: the highest point before the end, minus the end.
      Both pairwise on the items; below 0 where a curve only falls, or only rises.
    at_X: the places that have values. peak_at: those of the peaks, one for each seed and half.
    """

    start: Estimate
    peak: Estimate
    end: Estimate
    rise: Estimate
    fall: Estimate
    at_X: np.ndarray
    peak_at: tuple[float, ...]


def rise_and_fall(values_SXN: np.ndarray, at_X: np.ndarray) -> RiseAndFall:
    """Reads a curve of X points, each measured on the same N items, for S seeds; NaN where there is no value.

    Seeds, points and items without any value are left out. Raises UserError for fewer than three points, and for one
    seed of fewer than four items, of which no peak can be told.
    """
    known = ~np.isnan(values_SXN)
    seeds, points, items = (known.any(axes) for axes in ((1, 2), (0, 2), (0, 1)))
    values_SXN, at_X = values_SXN[seeds][:, points][:, :, items], at_X[points]
    count_S, count_X, count_N = values_SXN.shape
    if count_X < _FEWEST_POINTS or (count_S < 2 and count_N < _FEWEST_ITEMS):
        raise UserError(
            f"{count_X} points of {count_N} items and {count_S} seeds; a peak can be told from {_FEWEST_POINTS} points "
            f"on, with {_FEWEST_ITEMS} items or two seeds"
        )
    start_SN, end_SN = values_SXN[:, 0], values_SXN[:, -1]
    peak_SN, places = _highest(values_SXN, slice(None))
    behind_SN, _ = _highest(values_SXN, slice(1, None))
    before_SN, _ = _highest(values_SXN, slice(None, -1))
    found = (start_SN, peak_SN, end_SN, behind_SN - start_SN, before_SN - end_SN)
    return RiseAndFall(*map(estimate, found), at_X, tuple(float(at_X[i]) for i in places))


def _highest(values_SXN: np.ndarray, among: slice) -> tuple[np.ndarray, list[int]]:
    """(values [S, N] at the highest of some points, those points, one for each seed and half)."""
    seeds, points, items = values_SXN.shape
    even = np.arange(items) % 2 == 0
    peak_SN, places = np.full((seeds, items), np.nan), []
    for s in range(seeds):
        others = np.arange(seeds) != s if seeds > 1 else np.array([True])
        for half in (even, ~even) if items >= _FEWEST_ITEMS else (np.ones(items, bool),):
            chooses = ~half if items >= _FEWEST_ITEMS else half
            seen_X = np.moveaxis(values_SXN[others][:, :, chooses], 1, 0).reshape(points, -1)[among]
            # A point that this half has no value at could not be measured there.
            there_X = ~np.isnan(seen_X).all(1) & ~np.isnan(values_SXN[s][:, half]).all(1)[among]
            if there_X.any():
                heights_X = np.full(len(seen_X), -np.inf)
                heights_X[there_X] = np.nanmean(seen_X[there_X], 1)
                place = int(np.arange(points)[among][np.argmax(heights_X)])
                peak_SN[s, half] = values_SXN[s, place, half]
                places.append(place)
    return peak_SN, places
