"""Chance-corrected agreement of annotators: Cohen's and Fleiss' kappa, Krippendorff's alpha.

Labels are numbers; NaN and None are missing. Every coefficient comes with the items and labels it is over, and
is NaN where chance alone gives full agreement (all labels equal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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
    one, two = one[both], two[both]
    values = np.unique(np.concatenate([one, two]))
    joint = np.zeros((len(values), len(values)))
    np.add.at(joint, (np.searchsorted(values, one), np.searchsorted(values, two)), 1.0 / len(one))
    distance = _rank_or_value_distance(values, level)
    chance = float((distance * np.outer(joint.sum(1), joint.sum(0))).sum())
    observed = float((distance * joint).sum())
    return Reliability(1 - observed / chance if chance > 0 else math.nan, len(one), 2 * len(one))


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
    values, n = np.unique(x[~np.isnan(x)]), int(counts[0])
    table = np.stack([(x == value).sum(axis=0) for value in values], axis=1)  # [N, values]
    share = table.sum(axis=0) / table.sum()
    observed = float(((table * (table - 1)).sum(axis=1) / (n * (n - 1))).mean())
    chance = float((share**2).sum())
    value = (observed - chance) / (1 - chance) if chance < 1 else math.nan
    return Reliability(value, len(table), int(table.sum()))


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
    values = np.unique(x[~np.isnan(x)])
    table = np.stack([(x == value).sum(axis=0) for value in values], axis=1).astype(float)  # [N, values]
    per_item = table.sum(axis=1)
    pairs = np.einsum("nc,nk,n->ck", table, table, 1 / (per_item - 1))
    pairs -= np.diag((table / (per_item - 1)[:, None]).sum(axis=0))
    totals = pairs.sum(axis=1)
    distance = _ALPHA_DISTANCES[_known(level)](values, totals)
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


def _known(level: str) -> str:
    if level not in LEVELS:
        raise UserError(f"level: found {level!r}; use one of {', '.join(LEVELS)}")
    return level


def _nominal(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return (values[:, None] != values[None, :]).astype(float)


def _interval(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return (values[:, None] - values[None, :]) ** 2


def _ordinal(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """(sum of the totals from one value to the other, minus half of both ends) squared."""
    middle = np.cumsum(totals) - totals / 2
    return (middle[:, None] - middle[None, :]) ** 2


_ALPHA_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def _rank_or_value_distance(values: np.ndarray, level: str) -> np.ndarray:
    at = np.arange(len(values), dtype=float) if _known(level) == "ordinal" else values
    return _nominal(at, at) if level == "nominal" else _interval(at, at)
