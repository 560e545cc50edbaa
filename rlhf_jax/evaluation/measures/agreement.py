"""Agreement of labels, what else drives a judge, and whether a reward model's margins can be trusted.

Everything works on preferences in [1, 2] (see win_rate.py). Rates are in percent and travel with their n; a
rate over no rows is NaN with n = 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.win_rate import read_preferences, wilson_interval

LONGER_MIN_CHARS = 30  # AlpacaEval counts a pair for "prefers longer" only beyond this difference

# A line that starts with a bullet, "1." / "1)" or "a." / "a)". AlpacaEval's patterns are not tied to a line's
# start, so they also find a list in "well-known" and in "the end. The": too many for a bias measure.
_LIST_ITEM = re.compile(r"^[ \t]*(?:[•*-]|\d{1,3}[.)]|[a-zA-Z][.)])[ \t]+\S", re.MULTILINE)


@dataclass(frozen=True)
class Agreement:
    """Agreement of judge labels with human labels, in percent.

    agreement: 100 mean(1 - |judge - human|): a decided label against a tie is half right (AlpacaEval's
    score). interval: Wilson, 95 %. kappa: Cohen's, linear weights (plain Cohen's kappa where there are no
    ties); NaN where chance alone gives full agreement. clear_agreement: over the `n_clear` pairs called
    clear. n_missing: rows where either label is missing.
    """

    agreement: float
    interval: tuple[float, float]
    kappa: float
    n_total: int
    n_missing: int
    clear_agreement: float
    n_clear: int


@dataclass(frozen=True)
class Biases:
    """What else a judge prefers, in percent, each over the n pairs that can tell (50 = indifferent)."""

    prefers_longer: float
    n_longer: int
    prefers_list: float
    n_list: int
    prefers_first: float
    n_first: int


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs whose absolute margin is in [low, high]: mean predicted probability and accuracy, in percent."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """A reward model on labelled pairs: accuracy, expected calibration error (percent), bins by margin."""

    accuracy: float
    interval: tuple[float, float]
    n_total: int
    n_missing: int
    calibration_error: float
    bins: tuple[CalibrationBin, ...]


def labels_from_scores(scores_1: Sequence[float], scores_2: Sequence[float]) -> np.ndarray:
    """Preferences [N] that scores imply: 2 where scores_2 is higher, 1 where lower, 1.5 where equal.

    Turns utilities, rewards or lengths ("longer output wins") into labels for `agreement`. NaN scores give
    NaN.
    """
    difference = np.asarray(scores_2, np.float64) - np.asarray(scores_1, np.float64)
    return 1.5 + 0.5 * np.sign(difference)


def agreement(
    judge: Sequence[object], human: Sequence[object], *, clear: Sequence[bool] | None = None
) -> Agreement:
    """Agreement of two label columns [N] about the same pairs, row by row; `clear` [N] marks the clear pairs.

    Kappa (Cohen 1960, 1968) is 1 - D_observed / D_chance with D = mean |judge - human|, chance pairing every
    judge label with every human label. Raises UserError for unequal lengths or no row labelled by both.
    """
    a, b = read_preferences(judge, "judge"), read_preferences(human, "human")
    both = _labelled_by_both(a, b)
    is_clear = np.zeros(len(a), bool) if clear is None else np.asarray(clear, bool)
    if len(is_clear) != len(a):
        raise UserError(f"clear: {len(is_clear)} rows but there are {len(a)} labels; give one flag per pair")
    disagreement = np.abs(a - b)
    observed = float(disagreement[both].mean())
    # Only of rows with both labels: else chance would be that of other pairs than the observed ones.
    chance = _mean_distance(a[both], b[both])
    n = int(both.sum())
    rate = 1 - observed
    clear_rows = both & is_clear
    return Agreement(
        agreement=100 * rate,
        interval=wilson_interval(rate, n),
        kappa=1 - observed / chance if chance > 0 else math.nan,
        n_total=n,
        n_missing=len(a) - n,
        clear_agreement=_percent(1 - disagreement[clear_rows]),
        n_clear=int(clear_rows.sum()),
    )


def has_list(text: str) -> bool:
    """Whether some line of the text is a list item: a bullet, "1." / "1)" or "a." / "a)"."""
    return _LIST_ITEM.search(text) is not None


def biases(
    preferences: Sequence[object],
    outputs_1: Sequence[str],
    outputs_2: Sequence[str],
    *,
    switched: Sequence[bool] | None = None,
) -> Biases:
    """A judge's taste for length, lists and the first place, from labels [N] and the outputs [N] compared.

    prefers_longer: P(better is longer | lengths differ by more than 30 characters); prefers_list: P(better
    has a list | exactly one has), both without ties; prefers_first: mean preference for the output shown
    first, where `switched` [N] says that output_2 was (AlpacaEval `analyze_evaluators`; its own "prefers 1"
    ignores the switch).
    """
    x = read_preferences(preferences)
    if not len(x) == len(outputs_1) == len(outputs_2):
        raise UserError(
            f"outputs: {len(outputs_1)} and {len(outputs_2)} rows for {len(x)} labels; they must match"
        )
    gap = np.array(
        [len(two) - len(one) for one, two in zip(outputs_1, outputs_2, strict=True)], dtype=np.float64
    )
    lists = np.array(
        [int(has_list(two)) - int(has_list(one)) for one, two in zip(outputs_1, outputs_2, strict=True)],
        np.float64,
    )
    # A tie says nothing of a taste. Counted as half it would pull every judge towards indifference.
    decided = ~np.isnan(x) & (x != 1.5)
    longer = decided & (np.abs(gap) > LONGER_MIN_CHARS)
    listed = decided & (lists != 0)
    better = np.sign(np.where(np.isnan(x), 1.5, x) - 1.5)  # +1: output_2 is better
    first = np.empty(0)
    if switched is not None:
        shown_2_first = np.asarray(switched, bool)
        if len(shown_2_first) != len(x):
            raise UserError(
                f"switched: {len(shown_2_first)} rows for {len(x)} labels; give one flag per label"
            )
        # A tie counts here: a judge that ties whenever it is unsure does not prefer the first place.
        first = np.where(shown_2_first, x - 1, 2 - x)[~np.isnan(x)]
    return Biases(
        prefers_longer=_percent((better == np.sign(gap))[longer]),
        n_longer=int(longer.sum()),
        prefers_list=_percent((better == lists)[listed]),
        n_list=int(listed.sum()),
        prefers_first=_percent(first),
        n_first=len(first),
    )


def calibration(
    scores_1: Sequence[float], scores_2: Sequence[float], labels: Sequence[object], *, n_bins: int = 5
) -> Calibration:
    """Accuracy of a reward model by the size of its margin |scores_2 - scores_1|, in quantile bins.

    Confidence is the Bradley-Terry probability sigmoid(|margin|) of the output it prefers; a calibrated model
    has accuracy = confidence in each bin. Accuracy counts ties half; calibration_error is sum_k n_k/n
    |accuracy - confidence| (Guo et al. 2017). Raises UserError for unequal lengths, non-finite scores or no
    labelled pair.
    """
    one, two = np.asarray(scores_1, np.float64), np.asarray(scores_2, np.float64)
    label = read_preferences(labels, "label")
    if not len(one) == len(two) == len(label):
        raise UserError(f"scores: {len(one)} and {len(two)} rows for {len(label)} labels; they must match")
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise UserError("scores: some are not finite; drop those pairs or look for a diverged reward model")
    used = _labelled_by_both(two - one, label)
    margin = np.abs(two - one)[used]
    correct = 1 - np.abs(labels_from_scores(one, two) - label)[used]
    confidence = 1 / (1 + np.exp(-margin))
    # Equal margins make equal edges, such as those of a reward model that says one number: their bins are one.
    edges = np.unique(np.quantile(margin, np.linspace(0, 1, n_bins + 1)))
    which = np.clip(np.searchsorted(edges, margin, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = [np.flatnonzero(which == k) for k in range(max(len(edges) - 1, 1))]
    bins = tuple(_bin(margin[r], confidence[r], correct[r]) for r in rows if len(r))
    n = len(margin)
    return Calibration(
        accuracy=_percent(correct),
        interval=wilson_interval(float(correct.mean()), n),
        n_total=n,
        n_missing=len(label) - n,
        calibration_error=sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / n,
        bins=bins,
    )


def _bin(margin: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> CalibrationBin:
    return CalibrationBin(
        low=float(margin.min()),
        high=float(margin.max()),
        n=len(margin),
        confidence=_percent(confidence),
        accuracy=_percent(correct),
        interval=wilson_interval(float(correct.mean()), len(margin)),
    )


def _labelled_by_both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if len(a) != len(b):
        raise UserError(
            f"labels: {len(a)} rows against {len(b)}; both must label the same pairs in the same order"
        )
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        raise UserError(
            f"labels: none of the {len(a)} pairs is labelled by both; join them on the same pairs first"
        )
    return both


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean |a_i - b_j| over all (i, j): the integral of F(1-G) + G(1-F), a sort instead of N^2 pairs.

    (statsmodels' kappa takes a table of all values by all values, which graded labels make as large.)
    """
    grid = np.unique(np.concatenate([a, b]))
    F = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    G = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    return float((F * (1 - G) + G * (1 - F))[:-1] @ np.diff(grid))


def _percent(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else math.nan
