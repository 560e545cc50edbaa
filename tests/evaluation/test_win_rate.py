"""Win-rate formulas against independent NumPy, intervals by simulation, and refusals."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.win_rate import (
    read_preferences,
    utility_win_rate,
    wilson_interval,
    win_rate,
)


def test_formulas_match_numpy():
    x = 1 + np.random.default_rng(0).random(977)
    x[::7], x[1::7], x[2::7] = 1, 2, 1.5
    r = win_rate(x)
    s = x.astype(np.float64) - 1
    assert r.win_rate == pytest.approx(100 * s.mean(), abs=1e-12)
    assert r.standard_error == pytest.approx(100 * np.sqrt(s.var() * 977 / 976) / np.sqrt(977), abs=1e-12)
    wins, draws = np.count_nonzero(s > 0.5), np.count_nonzero(x == 1.5)
    assert (r.n_wins, r.n_draws, r.n_wins_base) == (wins, draws, 977 - wins - draws)
    assert r.discrete_win_rate == pytest.approx(100 * (wins + draws / 2) / 977, abs=1e-12)
    assert (r.n_total, r.n_missing) == (977, 0)


def test_hand_worked_example_with_legacy_draw_and_graded_preference():
    r = win_rate([2, 2, 1, 0, 1.75])  # scores 1, 1, 0, .5, .75
    assert r.win_rate == pytest.approx(65)
    assert r.discrete_win_rate == pytest.approx(70)
    assert (r.n_wins, r.n_wins_base, r.n_draws) == (3, 1, 1)
    assert r.standard_error == pytest.approx(100 * math.sqrt(0.7 / 4 / 5))


@pytest.mark.parametrize("missing", [None, float("nan"), -1])
def test_missing_rows_shrink_n_and_are_counted(missing):
    r = win_rate([2, 1, 2, 2, missing])
    assert (r.win_rate, r.n_total, r.n_missing) == (75, 4, 1)


def test_low_coverage_is_refused_and_says_what_would_work():
    rows = [2] * 7 + [None] * 3
    with pytest.raises(UserError, match=r"7 of 10 rows \(70 %\).*80 %.*min_coverage"):
        win_rate(rows)
    assert win_rate(rows, min_coverage=0.7).n_missing == 3


@pytest.mark.parametrize("rows", [[], [None, None], [float("nan")]])
def test_no_usable_row_is_refused_whatever_the_coverage(rows):
    with pytest.raises(UserError, match=f"0 of {len(rows)}"):
        win_rate(rows, min_coverage=0.0)


@pytest.mark.parametrize("bad", [0.5, 2.01, 3, -2, float("inf"), "b", True, False, np.True_])
def test_values_that_are_no_preference_name_their_row(bad):
    with pytest.raises(UserError, match=r"preference\[1\]"):
        win_rate([1, bad, 2])


def test_one_row_has_no_standard_error_but_an_interval():
    r = win_rate([2])
    assert math.isnan(r.standard_error)
    assert r.interval[0] == pytest.approx(20.65, abs=0.01) and r.interval[1] == 100


def test_unanimous_rows_still_have_an_interval():
    r = win_rate([2] * 50)
    assert r.standard_error == 0 and 90 < r.interval[0] < 95 and r.interval[1] == 100


def test_swapping_the_sides_mirrors_everything():
    x = np.random.default_rng(1).choice([1, 1.2, 1.5, 2], 200)
    a, b = win_rate(x), win_rate(3 - x)
    assert a.win_rate + b.win_rate == pytest.approx(100)
    assert a.interval == pytest.approx((100 - b.interval[1], 100 - b.interval[0]))
    assert (a.n_wins, a.n_draws) == (b.n_wins_base, b.n_draws)


def test_wilson_interval_matches_a_published_example_and_covers():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148.
    assert wilson_interval(81 / 263, 263) == pytest.approx((25.53, 36.62), abs=0.005)
    assert wilson_interval(15 / 148, 148) == pytest.approx((6.24, 16.05), abs=0.005)
    hits = np.random.default_rng(0).binomial(60, 0.15, 4000)
    covers = {h: low <= 15 <= high for h in set(hits) for low, high in [wilson_interval(h / 60, 60)]}
    assert 0.93 < np.mean([covers[h] for h in hits]) < 0.98


def test_pyarrow_columns_and_json():
    r = win_rate(pa.chunked_array([[1.0, 2.0], [None, 2.0, 1.5]]))
    assert (r.n_total, r.n_missing) == (4, 1)
    assert json.loads(json.dumps(dataclasses.asdict(r)))["n_draws"] == 1
    assert np.isnan(read_preferences(pa.array([None], pa.float32()))).all()


def test_utility_win_rate_counts_and_interval():
    r = utility_win_rate([0.9, 0.5, 0.1, 0.7], [0.1, 0.5, 0.2, 0.6])
    assert (r.n_wins, r.n_ties, r.n_losses, r.n_total) == (2, 1, 1, 4)
    assert r.win_rate == 62.5
    assert (r.mean_utility, r.mean_utility_base) == pytest.approx((0.55, 0.35))


def test_utility_differences_below_rounding_are_ties():
    assert utility_win_rate([0.1 + 0.2], [0.3]).n_ties == 1


def test_bootstrap_interval_agrees_with_resampling_rows():
    rng = np.random.default_rng(0)
    model, base = rng.random(400).round(1), rng.random(400).round(1)
    r = utility_win_rate(model, base, seed=3)
    scores = np.where(model > base, 1, np.where(model < base, 0, 0.5))
    resampled = 100 * scores[rng.integers(0, 400, (4000, 400))].mean(1)
    assert r.interval == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.6)
    assert r == utility_win_rate(model, base, seed=3) != utility_win_rate(model, base, seed=4)


def test_model_against_itself_is_fifty_without_width():
    u = np.random.default_rng(0).random(30)
    assert utility_win_rate(u, u).win_rate == 50 and utility_win_rate(u, u).interval == (50, 50)


@pytest.mark.parametrize(
    ("model", "base", "message"),
    [
        ([0.1, 0.2], [0.1], "2 rows but utilities_base has 1"),
        ([], [], "utilities_model"),
        ([0.1, float("nan")], [0.1, 0.2], r"utilities_model\[1\]"),
    ],
)
def test_bad_utilities_are_refused(model, base, message):
    with pytest.raises(UserError, match=message):
        utility_win_rate(model, base)


@pytest.mark.parametrize("rows", [[True, True, False], np.array([True, False]), pa.array([False, True])])
def test_truth_values_are_no_preferences(rows):
    with pytest.raises(
        UserError, match=r"^preference\[0\]: (True|False) is a truth value, no preference; give 1"
    ):
        win_rate(rows)
