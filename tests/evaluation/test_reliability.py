"""Coefficients against published worked examples and brute-force definitions."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.agreement import agreement
from rlhf_jax.evaluation.measures.reliability import cohen_kappa, fleiss_kappa, krippendorff_alpha

N = None
# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", example C/D: 4 observers, 12 units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
# Fleiss (1971) as in the literature: 10 items, 14 raters, 5 categories; kappa = 0.210.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_own_example(level, value):
    r = krippendorff_alpha(OBSERVERS, level=level)
    assert r.value == pytest.approx(value, abs=5e-4)
    assert (r.n_items, r.n_labels) == (11, 40)  # unit 12 has one label only


def test_alpha_is_one_minus_observed_over_expected_pairs():
    rng = np.random.default_rng(0)
    x = rng.choice([1.0, 1.5, 2.0, np.nan], (4, 30))
    keep = [i for i in range(30) if (~np.isnan(x[:, i])).sum() > 1]
    observed, weight, everything = 0.0, 0, []
    for i in keep:
        labels = x[~np.isnan(x[:, i]), i]
        everything += list(labels)
        m = len(labels)
        observed += sum((a - b) ** 2 for a, b in itertools.permutations(labels, 2)) / (m - 1)
        weight += m
    expected = np.mean([(a - b) ** 2 for a, b in itertools.permutations(everything, 2)])
    r = krippendorff_alpha(x.tolist(), level="interval")
    assert r.value == pytest.approx(1 - observed / weight / expected)
    assert (r.n_items, r.n_labels) == (len(keep), weight)


def test_fleiss_own_example_in_any_order_of_raters():
    items = [[c for c, k in enumerate(counts) for _ in range(k)] for counts in FLEISS]
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(item) for item in items], axis=1)
    r = fleiss_kappa(labels.tolist())
    assert r.value == pytest.approx(0.210, abs=5e-4)
    assert (r.n_items, r.n_labels) == (10, 140)


def test_cohens_kappa_by_hand():
    # 50 items: 20 both yes, 15 both no, 5 and 10 apart: (0.7 - 0.5) / (1 - 0.5).
    a = [1] * 20 + [2] * 15 + [1] * 5 + [2] * 10 + [None]
    b = [1] * 20 + [2] * 15 + [2] * 5 + [1] * 10 + [1]
    r = cohen_kappa(a, b)
    assert (r.value, r.n_items, r.n_labels) == (pytest.approx(0.4), 50, 100)
    assert agreement(a, b).kappa == pytest.approx(0.4)  # no ties: linear weights are plain kappa


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_weighted_kappa_is_observed_over_chance_distance(level):
    rng = np.random.default_rng(1)
    a, b = rng.choice([1.0, 2.0, 4.0], 40), rng.choice([1.0, 2.0, 4.0], 40)
    rank = {1.0: 0, 2.0: 1, 4.0: 2} if level == "ordinal" else {1.0: 1, 2.0: 2, 4.0: 4}
    observed = np.mean([(rank[x] - rank[y]) ** 2 for x, y in zip(a, b, strict=True)])
    chance = np.mean([(rank[x] - rank[y]) ** 2 for x, y in itertools.product(a, b)])
    assert cohen_kappa(a, b, level=level).value == pytest.approx(1 - observed / chance)


@pytest.mark.filterwarnings("error")
def test_perfect_and_constant_labels():
    a = [1, 2, 1, 2]
    assert cohen_kappa(a, a).value == fleiss_kappa([a, a]).value == krippendorff_alpha([a, a]).value == 1
    same = [1, 1, 1]
    for value in (cohen_kappa(same, same), fleiss_kappa([same, same]), krippendorff_alpha([same, same])):
        assert math.isnan(value.value)


def test_bad_input_is_one_line():
    with pytest.raises(UserError, match="same items"):
        cohen_kappa([1], [1, 2])
    with pytest.raises(UserError, match="labelled by both"):
        cohen_kappa([1, None], [None, 2])
    with pytest.raises(UserError, match="Krippendorff's alpha"):
        fleiss_kappa([[1, 2], [1, None]])
    with pytest.raises(UserError, match="no item has two labels"):
        krippendorff_alpha([[1, None], [None, 2]])
    with pytest.raises(UserError, match="level: found 'ratio'"):
        krippendorff_alpha([[1], [1]], level="ratio")
    with pytest.raises(UserError, match="give numbers"):
        fleiss_kappa([["a"], ["b"]])
    with pytest.raises(UserError, match="2, 1 labels"):
        fleiss_kappa([[1, 2], [1]])
