"""Paired differences against closed forms, coverage by simulation, and refusals."""

import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.bootstrap import bootstrap_mean, paired_differences


def test_difference_and_interval_of_a_known_case():
    rng = np.random.default_rng(0)
    base = 1 + rng.random(500)
    a, b = np.clip(base + 0.1, 1, 2), base
    (d,) = paired_differences({"a": a, "b": b})
    assert (d.a, d.b, d.n_total, d.n_missing) == ("a", "b", 500, 0)
    assert d.difference == pytest.approx(100 * np.mean(a - b))
    half = 1.96 * 100 * np.std(a - b, ddof=1) / math.sqrt(500)
    assert d.interval == pytest.approx((d.difference - half, d.difference + half), abs=0.1)
    assert d.p_value == pytest.approx(1 / 10_001)


def test_pairing_sees_what_separate_intervals_do_not():
    rng = np.random.default_rng(1)
    hard = rng.choice([1.0, 2.0], 400)
    better = np.where((hard == 1) & (rng.random(400) < 0.06), 2.0, hard)
    (d,) = paired_differences({"better": better, "hard": hard})
    assert d.interval[0] > 0
    separate = 1.96 * 100 * math.sqrt(2 * 0.25 / 400)
    assert d.difference < separate


def test_intervals_cover_the_truth_and_p_values_are_uniform():
    covered, small = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = 1 + (rng.random(150) < 0.4), 1 + (rng.random(150) < 0.4)
        (d,) = paired_differences({"a": a, "b": b}, n_bootstrap=500, seed=seed)
        covered += d.interval[0] <= 0 <= d.interval[1]
        small += d.p_value <= 0.1
    assert 0.9 <= covered / 200 <= 0.99
    assert 0.04 <= small / 200 <= 0.17


def test_equal_models_do_not_differ():
    (d,) = paired_differences({"a": [1, 2, 1.5], "b": [1, 2, 1.5]})
    assert (d.difference, d.interval, d.p_value) == (0, (0, 0), 1)


def test_a_single_row_has_an_interval_without_width():
    (d,) = paired_differences({"a": [2], "b": [1.5]}, n_bootstrap=9)
    assert (d.difference, d.interval, d.p_value) == (50, (50, 50), 1 / 10)


def test_missing_rows_are_left_out_and_counted():
    values = {"a": [2, 2, None, 1, 2], "b": [1, 2, 2, None, 1], "c": [1] * 5}
    ab, ac, _ = paired_differences(values, min_coverage=0.6)
    assert (ab.n_total, ab.n_missing, ab.difference) == (3, 2, pytest.approx(200 / 3))
    assert (ac.b, ac.n_total) == ("c", 4)
    with pytest.raises(UserError, match="a and b share 3 of 5"):
        paired_differences(values)
    with pytest.raises(UserError, match=r"\[1, 2\] rows"):
        paired_differences({"a": [1], "b": [1, 2]})


def test_resamples_are_seeded_and_as_many_as_asked():
    x = np.arange(7.0)
    one, interval = bootstrap_mean(x, seed=3, n_bootstrap=1001)
    assert len(one) == 1001 and np.array_equal(one, bootstrap_mean(x, seed=3, n_bootstrap=1001)[0])
    assert interval == pytest.approx(np.percentile(one, [2.5, 97.5]), abs=1e-12)
    assert one.std() == pytest.approx(x.std() / math.sqrt(7), rel=0.1)
