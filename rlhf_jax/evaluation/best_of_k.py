"""What the best of k samples is worth, for every k at once, from N samples of each prompt.

Sorted upwards, x_(1) <= ... <= x_(N), the i-th is the largest of k that are drawn of the N without putting back with
probability C(i-1, k-1) / C(N, k). So

    E[max of k] = sum_i C(i-1, k-1) / C(N, k) x_(i)

which is unbiased for k independent samples: it is the mean over all subsets of k, as pass@k is (Chen et al. 2021, eq.
1). Beside it stands how far the policy "best of k" can be from the one that was sampled: KL <= log k - (k-1)/k nats,
an upper bound which is met where no two responses are alike (Beirami et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.errors import UserError


class BestOf(NamedTuple):
    """What the best of k samples is worth.

    Attributes:
      k: samples that are chosen from.
      score: mean over prompts of the expected highest score.
      se: standard error of that mean over prompts; NaN with fewer than two.
      kl: the upper bound of the KL divergence from the sampled policy, in nats.
      prompts: how many have at least k samples with a score; the others are no part of this row.
    """

    k: int
    score: float
    se: float
    kl: float
    prompts: int


def expected_best(scores: Sequence[float]) -> np.ndarray:
    """The expected highest of k of these scores, for k = 1 ... N; UserError for one that is no finite number."""
    found = np.sort(np.asarray(scores, np.float64))
    if not np.isfinite(found).all():
        raise UserError(
            f"scores: {found[~np.isfinite(found)][0]} is no finite number; score these responses again"
        )
    return order_weights(len(found)) @ found


def order_weights(n: int) -> np.ndarray:
    """C(i-1, k-1) / C(n, k) in row k - 1 and column i - 1; each row sums to 1."""
    weights = np.zeros((n, n))
    k = np.arange(1, n + 1)
    if n:
        weights[:, n - 1] = k / n
    # From i + 1 to i, because the binomials themselves overflow from a thousand samples on.
    for i in range(n - 1, 0, -1):
        weights[:, i - 1] = weights[:, i] * np.maximum(i + 1 - k, 0) / i
    return weights


def kl_bound(k: int) -> float:
    """The most that best of k can be away from the sampled policy, KL in nats."""
    return math.log(k) - (k - 1) / k


def best_of_table(scores: Sequence[Sequence[float]]) -> list[BestOf]:
    """A row for every k up to the most samples that a prompt has; scores: of each prompt's samples."""
    found = [expected_best(row) for row in scores]
    rows = []
    for k in range(1, max(map(len, found), default=0) + 1):
        # Independent prompts; the samples of one are not independent given it, so they are averaged first.
        best = np.array([row[k - 1] for row in found if len(row) >= k])
        se = float(best.std(ddof=1) / math.sqrt(len(best))) if len(best) > 1 else math.nan
        rows.append(BestOf(k, float(best.mean()), se, kl_bound(k), len(best)))
    return rows
