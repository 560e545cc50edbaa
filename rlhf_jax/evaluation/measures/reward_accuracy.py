"""How often a reward model takes the labelled side of a pair: by annotator, by the label's confidence, by its margin.

Rates are in percent and travel with their n and a Wilson interval at 95 %; equal scores count half. NumPy alone:
training measures this at its end, and does not wait for libraries of statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError

# A judge's probability of the side it took. Half is a coin flip.
CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_Z = 1.959963984540054  # The normal distribution's quantile of 97.5 %.


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on n pairs: all, those of one annotator, of one range of confidence, or of one range of margins.

    predicted: the mean probability that the reward model itself gives the side it prefers, sigmoid(|margin|).
    """

    name: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    predicted: float


@dataclass(frozen=True)
class RewardAccuracy:
    """A reward model on labelled pairs.

    margins: the reliability table, by quantiles of |r(chosen) - r(rejected)|; a calibrated model has accuracy =
    predicted in each row. calibration_error: sum_k n_k/n |accuracy - predicted| over them (Guo et al. 2017).
    annotators, confidence: groups of the pairs whose labels say it; confidence in rising order.
    """

    overall: GroupAccuracy
    calibration_error: float
    margins: tuple[GroupAccuracy, ...]
    annotators: tuple[GroupAccuracy, ...]
    confidence: tuple[GroupAccuracy, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can write it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Returns what is printed, a line for every group."""
        groups = (("margin", self.margins), ("annotator", self.annotators), ("confidence", self.confidence))
        found = [f"accuracy {_said(self.overall)}; calibration error {self.calibration_error:.1f} %"]
        return found + [f"  {title} {g.name}: {_said(g)}" for title, several in groups for g in several]


def reward_accuracy(
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    annotators: Sequence[str] = (),
    confidence: Sequence[float] = (),
    n_bins: int = 5,
) -> RewardAccuracy:
    """Compares scores of the chosen and the rejected side of pairs [N] with the labels.

    annotators: of each label, "" where it is not known; confidence: the annotator's own probability of its choice in
    [0.5, 1], NaN where it is not known. Either may be left out. Raises UserError for unequal lengths, no pair, scores
    that are not finite, and confidence outside of its range.
    """
    one, two = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    for name, column in (("rejected", two), ("annotators", annotators), ("confidence", confidence)):
        if len(column) not in (len(one), 0):
            raise UserError(f"{name}: {len(column)} rows for {len(one)} pairs; give one a pair")
    if not len(one) or not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise UserError("scores: there are none, or some are not finite; look for a diverged reward model")
    margin = np.abs(one - two)
    pairs = _Pairs((one > two) + 0.5 * (one == two), 1 / (1 + np.exp(-margin)))
    margins = _by_margin(pairs, margin, n_bins)
    return RewardAccuracy(
        pairs.group("all", np.ones(len(one), bool)),
        sum(g.n * abs(g.accuracy - g.predicted) for g in margins) / len(one),
        margins,
        _by_annotator(pairs, np.array([name or "" for name in annotators])),
        _by_confidence(pairs, np.asarray(confidence, np.float64)),
    )


def accuracy_by_label(
    chosen: Sequence[float], rejected: Sequence[float], labels: Sequence[Mapping[str, Any]]
) -> RewardAccuracy:
    """Measures `reward_accuracy` with what is known of each label, its `annotator` and `confidence`."""
    who, sure = ([label[name] for label in labels] for name in ("annotator", "confidence"))
    return reward_accuracy(chosen, rejected, annotators=who, confidence=sure)


@dataclass(frozen=True)
class _Pairs:
    """right: 1 where the labelled side has the higher score, 1/2 where both are equal [N]; predicted: see above [N]."""

    right: np.ndarray
    predicted: np.ndarray

    def group(self, name: str, where: np.ndarray) -> GroupAccuracy:
        n, share = int(where.sum()), float(self.right[where].mean())
        return GroupAccuracy(
            name, n, 100 * share, _wilson(share, n), 100 * float(self.predicted[where].mean())
        )


def _by_margin(pairs: _Pairs, margin: np.ndarray, n_bins: int) -> tuple[GroupAccuracy, ...]:
    # Equal margins make equal edges, such as those of a reward model that says one number: their bins are one.
    edges = np.unique(np.quantile(margin, np.linspace(0, 1, n_bins + 1)))
    which = np.clip(np.searchsorted(edges, margin, side="right") - 1, 0, max(len(edges) - 2, 0))
    found = [which == k for k in np.unique(which)]
    return tuple(pairs.group(f"{margin[mine].min():.2f} to {margin[mine].max():.2f}", mine) for mine in found)


def _by_annotator(pairs: _Pairs, names: np.ndarray) -> tuple[GroupAccuracy, ...]:
    return tuple(pairs.group(str(name), names == name) for name in np.unique(names) if name)


def _by_confidence(pairs: _Pairs, p: np.ndarray) -> tuple[GroupAccuracy, ...]:
    # float32 columns hold 0.6 a little above or below, and must not fall into the next bin for that.
    p = np.round(p, 6)
    known = ~np.isnan(p)
    if not ((p[known] >= 0.5) & (p[known] <= 1)).all():
        raise UserError(
            "confidence: some is outside [0.5, 1]; it is the probability of the side that was taken"
        )
    which = np.minimum(np.searchsorted(CONFIDENCE_EDGES, p, side="right") - 1, len(CONFIDENCE_EDGES) - 2)
    return tuple(
        pairs.group(f"{low:.1f} to {high:.1f}", known & (which == k))
        for k, (low, high) in enumerate(pairwise(CONFIDENCE_EDGES))
        if (known & (which == k)).any()
    )


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The score interval at 95 % of a mean of n values in [0, 1], in percent."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def _said(g: GroupAccuracy) -> str:
    low, high = g.interval
    return f"{g.accuracy:.1f} % [{low:.1f}, {high:.1f}] of {g.n} pairs, {g.predicted:.1f} % predicted"
