"""Whether two measures rank methods alike: against scipy, with ties, and how often the intervals hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.rank_agreement import rank_agreement


def of(means, values_SN):
    return {f"m{i}": mean + values_SN for i, mean in enumerate(means)}


@pytest.mark.parametrize("ties", [False, True])
def test_both_correlations_are_scipys(ties):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9))
    if ties:
        x, y = x.round(), y.round()
        assert len(set(x)) < 9 > len(set(y))
    found = rank_agreement(of(x, np.zeros((2, 3))), of(y, np.zeros((2, 3))))
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert found.r2 == pytest.approx(stats.pearsonr(x, y).statistic ** 2, rel=1e-9)
    assert found.methods == 9


def noisy(rng, means, seeds, items, *, of_seeds, of_items):
    return {
        f"m{i}": mean + of_seeds * rng.normal(size=(seeds, 1)) + of_items * rng.normal(size=(seeds, items))
        for i, mean in enumerate(means)
    }


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Methods that lie far enough apart to be ranked but for a few neighbours; two of them rank otherwise in truth."""
    rng, true = np.random.default_rng(0), (np.arange(8.0), np.array([0.0, 1, 2, 4, 3, 5, 7, 6]))
    spearman, r2, trials = [], [], 50
    for seed in range(trials):
        sides = (noisy(rng, means, 3, 50, of_seeds=0.3, of_items=1.0) for means in true)
        found = rank_agreement(*sides, seed=seed)
        wanted = stats.spearmanr(*true).statistic, stats.pearsonr(*true).statistic ** 2
        # Ranks are whole numbers, so an interval may end at the very truth.
        spearman.append(found.spearman_interval[0] - 1e-9 <= wanted[0] <= found.spearman_interval[1] + 1e-9)
        r2.append(found.r2_interval[0] <= wanted[1] <= found.r2_interval[1])
    assert np.mean(spearman) > 0.9 and np.mean(r2) > 0.8


def test_the_spread_of_two_seeds_is_not_taken_for_half_of_it():
    rng, widths = np.random.default_rng(0), []
    for _ in range(2):
        x = noisy(rng, np.arange(6.0), 2, 40, of_seeds=1.0, of_items=0.1)
        found = rank_agreement(x, {name: v.mean() + 0 * v for name, v in x.items()})
        widths.append(found.spearman_interval[1] - found.spearman_interval[0])
        # Each of the two seeds alone is a resample: the interval reaches as far as they do.
        alone = [
            stats.spearmanr([v[s].mean() for v in x.values()], [v.mean() for v in x.values()]) for s in (0, 1)
        ]
        assert found.spearman_interval[0] <= min(one.statistic for one in alone) + 1e-9
    assert min(widths) > 0


def test_noise_alone_has_an_interval_that_holds_zero():
    rng = np.random.default_rng(1)
    sides = [noisy(rng, np.zeros(8), 3, 40, of_seeds=0.5, of_items=1.0) for _ in range(2)]
    found = rank_agreement(*sides)
    assert found.spearman_interval[0] < 0 < found.spearman_interval[1]


def test_the_same_seed_draws_the_same_interval():
    x = noisy(np.random.default_rng(0), range(4), 2, 30, of_seeds=1, of_items=1)
    y = noisy(np.random.default_rng(1), range(4), 2, 20, of_seeds=1, of_items=1)
    assert rank_agreement(x, y, seed=3) == rank_agreement(x, y, seed=3) != rank_agreement(x, y, seed=4)


def test_without_items_or_enough_seeds_there_is_no_interval():
    one, two, four = (of([1.0, 2.0, 3.0], np.zeros((seeds, 1))) for seeds in (1, 2, 4))
    for few in (one, two):
        found = rank_agreement(few, few)
        assert found.spearman == pytest.approx(1)
        assert all(map(math.isnan, (*found.spearman_interval, *found.r2_interval)))
    many = of([1.0, 2.0, 3.0], np.zeros((2, 5)))
    assert math.isnan(rank_agreement(many, two).spearman_interval[0])
    assert rank_agreement(four, four).spearman_interval == pytest.approx((1, 1))


def test_a_method_that_lacks_a_seed_is_not_ranked_last_for_it():
    rng = np.random.default_rng(0)
    x = noisy(rng, [0.0, 5.0, 10.0, 15.0], 2, 30, of_seeds=0.1, of_items=0.1)
    y = noisy(rng, [0.0, 5.0, 10.0, 15.0], 2, 30, of_seeds=0.1, of_items=0.1)
    x["m3"][1] = np.nan  # Its run of this seed failed.
    y["m2"][0, :29] = np.nan
    found = rank_agreement(x, y)
    assert found.spearman == pytest.approx(1) and found.spearman_interval == pytest.approx((1, 1))


def test_measures_with_as_many_seeds_as_items_resample_them_apart():
    rng = np.random.default_rng(0)
    x = noisy(rng, range(5), 6, 6, of_seeds=1.0, of_items=2.0)
    found = rank_agreement(x, x)
    assert found.spearman_interval == pytest.approx((1, 1)) and found.r2_interval == pytest.approx((1, 1))


def test_a_measure_that_is_the_same_for_all_has_no_correlation():
    x = of([1.0, 1.0, 1.0], np.zeros((2, 3)))
    y = of([1.0, 2.0, 3.0], np.zeros((2, 3)))
    found = rank_agreement(x, y)
    assert all(map(math.isnan, (found.spearman, found.r2, *found.spearman_interval)))


def test_fewer_than_three_methods_are_refused():
    x, y = of([1.0, 2.0, 3.0], np.zeros((1, 4))), of([1.0, 2.0], np.zeros((1, 4)))
    with pytest.raises(UserError, match=r"^rows: 2 of them have both measures; .* at least 3$"):
        rank_agreement(x, y)
