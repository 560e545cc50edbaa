"""How well a benchmark tells models apart, and whether it agrees with another one (Li et al. 2024, section 3, A.1).

Separability: the share of pairs of models whose intervals do not overlap. Agreement with confidence, of two benchmarks:
the mean over pairs of +1 where both separate the pair in the same order, -1 in opposite orders, and 0 where either does
not. Pair rank Brier score: the mean over pairs of (P - O)^2, with P the probability that a model scores below another
by the resampled scores, normal as in the paper, and O whether it does so in the reference; 0 is best, a coin earns 1/4.

The paper's P takes the two models' resamples as independent. Where both come of the same resampled prompts the
difference says more than the two alone, so its own mean and variance are used; for independent draws that is the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError

Interval = tuple[float, float]


@dataclass(frozen=True)
class Alignment:
    """A benchmark against a reference, over the n_pairs pairs of the n_models models that both have.

    agreement: with confidence, in percent, from -100 to 100; NaN where the reference has no intervals. spearman,
    kendall: of the scores. brier: NaN without resampled scores. n_even: pairs that the reference ranks alike, which
    have no outcome for the Brier score.
    """

    n_models: int
    n_pairs: int
    agreement: float
    spearman: float
    kendall: float
    brier: float
    n_even: int


def separability(intervals: Mapping[str, Interval]) -> tuple[float, int]:
    """The share of pairs whose intervals do not overlap, in percent, and how many pairs there are; NaN without one."""
    pairs = list(itertools.combinations(intervals.values(), 2))
    if not pairs:
        return math.nan, 0
    return 100 * sum(_order(a, b) != 0 for a, b in pairs) / len(pairs), len(pairs)


def alignment(
    scores: Mapping[str, float],
    reference: Mapping[str, float],
    *,
    intervals: Mapping[str, Interval],
    reference_intervals: Mapping[str, Interval] | None = None,
    draws: Mapping[str, np.ndarray] | None = None,
) -> Alignment:
    """Compares a benchmark's scores with a reference's. Raises UserError for fewer than two models in common."""
    from scipy import stats  # Here, because it takes half a second and most reports need none of it.

    shared = [name for name in scores if name in reference]
    if len(shared) < 2:
        raise UserError(
            f"reference: {len(shared)} of its models are measured here; a ranking needs two: here are "
            f"{', '.join(scores)}, there {', '.join(reference)}"
        )
    pairs = list(itertools.combinations(shared, 2))
    mine, theirs = ([some[name] for name in shared] for some in (scores, reference))
    ranked = min(len(set(mine)), len(set(theirs))) > 1
    agreement = math.nan
    if reference_intervals:
        known = [(a, b) for a, b in pairs if a in reference_intervals and b in reference_intervals]
        agreed = [
            _order(intervals[a], intervals[b]) * _order(reference_intervals[a], reference_intervals[b])
            for a, b in known
        ]
        agreement = 100 * math.fsum(agreed) / len(agreed) if agreed else math.nan
    brier, n_even = _brier(pairs, reference, draws) if draws else (math.nan, 0)
    return Alignment(
        len(shared),
        len(pairs),
        agreement,
        # One score for all is no ranking.
        float(stats.spearmanr(mine, theirs).statistic) if ranked else math.nan,
        float(stats.kendalltau(mine, theirs).statistic) if ranked else math.nan,
        brier,
        n_even,
    )


def _order(a: Interval, b: Interval) -> int:
    """1 where a lies above b, -1 below, 0 where they overlap; ends that touch overlap, and so do unknown ones."""
    return int(a[0] > b[1]) - int(b[0] > a[1])


def _brier(
    pairs: list[tuple[str, str]], reference: Mapping[str, float], draws: Mapping[str, np.ndarray]
) -> tuple[float, int]:
    losses, n_even = [], 0
    for a, b in pairs:
        if reference[a] == reference[b]:
            n_even += 1
            continue
        p = _p_below(draws[a], draws[b])
        losses.append((p - (reference[a] < reference[b])) ** 2)
    known = [loss for loss in losses if not math.isnan(loss)]
    return (math.fsum(known) / len(known) if known else math.nan), n_even


def _p_below(a: np.ndarray, b: np.ndarray) -> float:
    """P(a < b) with a normal difference of its resamples' mean and variance."""
    d = (b - a)[~np.isnan(b - a)]
    if len(d) < 2:
        return math.nan
    mean, std = float(d.mean()), float(d.std(ddof=1))
    if std == 0:
        return 0.5 + 0.5 * float(np.sign(mean))
    return 0.5 * (1 + math.erf(mean / (std * math.sqrt(2))))
