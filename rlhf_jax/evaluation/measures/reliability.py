"""Chance-corrected agreement of annotators: Cohen's and Fleiss' kappa, by statsmodels, and Krippendorff's alpha.

Alpha is ours: the package `krippendorff` is under the GPL, and no other library has it with missing labels. Labels
are numbers; NaN and None are missing. Every coefficient comes with the items and labels it is over, and
is NaN where chance alone gives full agreement (all labels equal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.stats import inter_rater

from rlhf_jax.errors import UserError

LEVELS = ("nominal", "ordinal", "interval")


@dataclass(frozen=True)
class Reliability:
    """A coefficient, at most 1; the items with at least two labels, and the labels of those items."""

    value: float
    n_items: int
    n_labels: int


def cohen_kappa(a: Sequence[object], b: Sequence[object], *, level: str = "nominal") -> Reliability:
    """Cohen's kappa (1960) of two annotators' labels [N], over the items both labelled.

    level: nominal counts any difference alike, interval weighs it by its square, ordinal by the square of the
    difference in rank among the values seen (Cohen 1968).
    """
    one, two = _labels([a])[0], _labels([b])[0]
    if len(one) != len(two):
        raise UserError(f"labels: {len(one)} rows against {len(two)}; both must label the same items")
    both = ~(np.isnan(one) | np.isnan(two))
    if not both.any():
        raise UserError(f"labels: none of the {len(one)} items is labelled by both; join them first")
    labels = np.stack([one, two], axis=1)[both]
    values = np.unique(labels)
    distance = _distance(values, np.arange(len(values)), level)
    kappa = math.nan
    if len(values) > 1:
        joint, _ = inter_rater.to_table(labels)
        kappa = float(inter_rater.cohens_kappa(joint, weights=distance, return_results=False))
    return Reliability(kappa, len(labels), labels.size)


def fleiss_kappa(labels_RN: Sequence[Sequence[object]]) -> Reliability:
    """Fleiss' kappa (1971) of R annotators' labels of N items; every item needs the same number of labels.

    Which annotators labelled an item does not matter. Items without a label are left out. Raises UserError
    when items have different numbers of labels, or one label only: Krippendorff's alpha takes those.
    """
    x = _labels(labels_RN)
    counts = (~np.isnan(x)).sum(axis=0)
    x, counts = x[:, counts > 0], counts[counts > 0]
    if not len(counts) or counts.min() != counts.max() or counts[0] < 2:
        found = ", ".join(map(str, np.unique(counts))) or "no"
        raise UserError(
            f"labels: items have {found} labels each; Fleiss' kappa needs the same number, two or more, for "
            "every item: use Krippendorff's alpha"
        )
    values, table = _table(x)
    kappa = float(inter_rater.fleiss_kappa(table)) if len(values) > 1 else math.nan
    return Reliability(kappa, len(table), int(table.sum()))


def krippendorff_alpha(labels_RN: Sequence[Sequence[object]], *, level: str = "nominal") -> Reliability:
    """Krippendorff's alpha (2004, ch. 11) of R annotators' labels of N items, any of them missing.

    1 - D_observed / D_expected over the coincidences of labels within items; items with fewer than two labels
    do not count. level: the distance of two labels is 1 (nominal), the square of their difference (interval)
    or of the labels ranked between them (ordinal). Raises UserError when no item has two labels.
    """
    x = _labels(labels_RN)
    x = x[:, (~np.isnan(x)).sum(axis=0) >= 2]
    if not x.size:
        raise UserError("labels: no item has two labels; annotators must share items")
    values, table = _table(x)
    per_item = table.sum(axis=1)
    pairs = np.einsum("nc,nk,n->ck", table, table, 1 / (per_item - 1))
    pairs -= np.diag((table / (per_item - 1)[:, None]).sum(axis=0))
    totals = pairs.sum(axis=1)
    # The rank of a value is in the middle of the labels that have it.
    distance = _distance(values, np.cumsum(totals) - totals / 2, level)
    n = totals.sum()
    expected = float((distance * np.outer(totals, totals)).sum()) / (n - 1)
    observed = float((distance * pairs).sum())
    value = 1 - observed / expected if expected > 0 else math.nan
    return Reliability(value, len(table), int(per_item.sum()))


def _labels(rows: Sequence[Sequence[object]]) -> np.ndarray:
    """Labels as float64 [R, N], None as NaN."""
    try:
        lists = [[math.nan if value is None else float(value) for value in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise UserError(f"labels: {error}; give numbers, or null where a label is missing") from None
    if not lists or len({len(row) for row in lists}) != 1:
        lengths = ", ".join(str(len(row)) for row in lists) or "no"
        raise UserError(f"labels: annotators with {lengths} labels; give each a label or null for every item")
    return np.array(lists, np.float64)


def _table(x_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values V that labels have, and how many labels of each item have them [N, V]."""
    values = np.unique(x_RN[~np.isnan(x_RN)])
    return values, np.stack([(x_RN == value).sum(axis=0) for value in values], axis=1)


def _distance(values_V: np.ndarray, ranks_V: np.ndarray, level: str) -> np.ndarray:
    """The distance of every two values [V, V]: 1, or the square of how far they, or their ranks, are apart."""
    if level not in LEVELS:
        raise UserError(f"level: found {level!r}; use one of {', '.join(LEVELS)}")
    if level == "nominal":
        return 1.0 - np.eye(len(values_V))
    at = ranks_V if level == "ordinal" else values_V
    return (at[:, None] - at[None, :]) ** 2
