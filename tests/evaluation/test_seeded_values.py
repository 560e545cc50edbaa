"""Means over seeds and items: their errors and intervals by hand, and how often the intervals hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluation.claims.seeded_values import Estimate, as_percentage, difference, estimate

NAN = math.nan


def by_hand(values):
    """(mean, error, half of the interval), in plain loops over what is there."""
    rows = [row for row in np.asarray(values, np.float64).tolist() if any(x == x for x in row)]
    known = [[x for x in row if x == x] for row in rows]
    means = [math.fsum(row) / len(row) for row in known]
    mean = math.fsum(means) / len(means)
    of_item = []
    for column in zip(*rows, strict=True):
        left = [x - m for x, m in zip(column, means, strict=True) if x == x]
        of_item += [math.fsum(left) / len(left)] if left else []
    terms = []
    for found in (means, of_item):
        n, centre = len(found), math.fsum(found) / len(found)
        if n > 1:
            terms.append(
                (math.fsum((x - centre) ** 2 for x in found) / (n - 1) / n, stats.t(n - 1).ppf(0.975))
            )
    whole = sum(term for term, _ in terms)
    return mean, math.sqrt(whole), math.sqrt(whole) * sum(term * t for term, t in terms) / whole


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(("seeds", "items"), [(1, 30), (2, 30), (3, 30), (5, 2), (4, 1)])
def test_mean_error_and_interval_are_those_of_an_independent_computation(seeds, items, missing):
    rng = np.random.default_rng(seeds)
    values = 50 + rng.normal(size=(seeds, items)) * 3 + rng.normal(size=(seeds, 1))
    values[rng.random(values.shape) < missing] = NAN
    values[0, 0] = 50.0  # Something is known of every case.
    found, (mean, error, half) = estimate(values), by_hand(values)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.interval == pytest.approx((mean - half, mean + half), rel=1e-9)
    known = ~np.isnan(values)
    assert (found.seeds, found.items) == (known.any(1).sum(), known.any(0).sum())


def test_one_seed_or_one_item_is_the_usual_interval_of_a_mean():
    x = np.random.default_rng(0).normal(size=12)
    usual = stats.t(11, x.mean(), stats.sem(x)).interval(0.95)
    assert estimate(x[None]).interval == pytest.approx(usual, rel=1e-9)
    assert estimate(x[:, None]).interval == pytest.approx(usual, rel=1e-9)


def coverage(rng, *, seeds, items, of_seeds, of_items, missing, trials=250):
    """In what share of draws the interval holds the true mean, 1. of_seeds, of_items: spread of either alone."""
    held = []
    for _ in range(trials):
        values = 1 + of_seeds * rng.normal(size=(seeds, 1)) + of_items * rng.normal(size=(1, items))
        values = values + rng.normal(size=(seeds, items))
        values[rng.random(values.shape) < missing] = NAN
        low, high = estimate(values).interval
        held += [low <= 1 <= high] if low == low else []
    assert len(held) > 0.8 * trials
    return np.mean(held)


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("seeds", "items", "of_seeds", "of_items"),
    [
        (1, 200, 0.0, 1.0),  # Of one seed the spread of the seeds cannot be known.
        (2, 200, 0.0, 1.0),
        (2, 200, 0.3, 1.0),
        (3, 200, 0.1, 1.0),
        (3, 200, 0.3, 1.0),
        (5, 200, 0.3, 1.0),
        (2, 1, 0.5, 0.0),
        (3, 1, 0.5, 0.0),
        (5, 1, 0.5, 0.0),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says_or_a_bit_more(
    seeds, items, of_seeds, of_items, missing
):
    rng = np.random.default_rng(seeds * 1000 + items)
    lack = missing if items > 1 or seeds > 2 else 0.0
    held = coverage(rng, seeds=seeds, items=items, of_seeds=of_seeds, of_items=of_items, missing=lack)
    assert held > 0.92  # 0.95 within two standard errors of 250 trials.


def test_seeds_and_items_without_any_value_are_left_out():
    x = np.random.default_rng(0).normal(size=(3, 7))
    wider = np.full((5, 9), NAN)
    wider[np.ix_([0, 2, 3], range(1, 8))] = x
    assert estimate(wider) == estimate(x)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 3)])
def test_without_a_value_nothing_is_known(shape):
    found = estimate(np.full(shape, NAN))
    assert math.isnan(found.mean) and math.isnan(found.error) and all(map(math.isnan, found.interval))
    assert (found.sign, found.seeds, found.items) == (0, 0, 0)


def test_a_single_value_has_no_interval_and_no_sign():
    found = estimate(np.array([[7.0, NAN], [NAN, NAN]]))
    assert found.mean == 7 and math.isnan(found.error) and found.sign == 0


def test_values_without_spread_are_sure_and_tiny_ones_are_no_error():
    assert estimate(np.full((2, 4), 3.0)).interval == (3.0, 3.0)
    tiny = np.array([[1.0, 2.0, 4.0]]) * 1e-90  # Whose squared error, squared once more, is 0.
    assert estimate(tiny).interval[1] / 1e-90 == pytest.approx(estimate(tiny / 1e-90).interval[1])


def test_the_sign_is_that_of_the_whole_interval():
    x = np.array([[1.0, 1.1, 0.9]])
    assert [estimate(v).sign for v in (x, -x, x - 1)] == [1, -1, 0]


def test_a_difference_is_pairwise_on_what_both_have():
    """The levels of the items are far apart, and cancel; what only one of them has does not count."""
    rng = np.random.default_rng(0)
    items = 100 * rng.normal(size=20)
    a, b = items + 1 + 0.1 * rng.normal(size=(3, 20)), items + 0.1 * rng.normal(size=(3, 20))
    b[1, :5] = NAN
    a[2] = NAN
    found = difference(a, b)
    assert found.mean == pytest.approx(1, abs=0.1) and found.error < 0.1 and found.sign == 1
    assert (found.seeds, found.items) == (2, 20)
    assert math.isnan(difference(a[2:], b[2:]).mean)


def test_an_interval_of_a_percentage_stays_between_0_and_100():
    """Of three seeds that differ: by hand, at p = 77.1 and a half of 24.3."""
    found = as_percentage(Estimate(77.1, 5.6, (52.8, 101.4), 3, 805))
    odds, half = math.log(0.771 / 0.229), 0.243 / (0.771 * 0.229)
    ends = [100 / (1 + math.exp(-x)) for x in (odds - half, odds + half)]
    assert found.interval == pytest.approx(ends) and ends == pytest.approx([45.95, 93.02], abs=0.05)
    assert (found.mean, found.error, found.seeds, found.items) == (77.1, 5.6, 3, 805)


def test_a_small_error_leaves_the_interval_of_a_percentage_as_it_is():
    found = as_percentage(Estimate(60.0, 0.1, (59.8, 60.2), 3, 805))
    assert found.interval == pytest.approx((59.8, 60.2), abs=2e-3)


@pytest.mark.parametrize("mean", [0.0, 100.0, NAN])
def test_a_percentage_at_its_end_or_of_one_number_has_the_interval_that_it_had(mean):
    for ends in ((mean, mean), (NAN, NAN)):
        one = Estimate(mean, 0.0, ends, 1, 1)
        assert as_percentage(one) is one


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_intervals_of_percentages_hold_the_truth(share):
    """Three seeds of 200 answers each, whose shares differ between seeds: in 19 of 20 draws, but for chance."""
    rng, held, draws = np.random.default_rng(0), 0, 400
    for _ in range(draws):
        of_seed = 1 / (1 + np.exp(-(math.log(share / (1 - share)) + 0.3 * rng.normal(size=(3, 1)))))
        truth = 100 * float(np.mean(1 / (1 + np.exp(-(math.log(share / (1 - share)) + 0.3 * GRID)))))
        low, high = as_percentage(estimate(100.0 * (rng.random((3, 200)) < of_seed))).interval
        held += low <= truth <= high
    assert held >= 0.93 * draws


GRID = stats.norm.ppf((np.arange(200) + 0.5) / 200)
