"""RewardBench 2's score against a plain reading of its rules, and the numbers of hand-made rows."""

import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.benchmarks.reward_bench import (
    BY_PAIRS,
    BY_SCORES,
    Scores,
    best_of_credit,
    pairs_credit,
    reward_bench,
)

SIX = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


def measured(rows, ties, by=BY_SCORES, **more):
    sizes = {name: [4] * len(credits) for name, credits in rows.items()}
    return reward_bench("mine", by, rows, sizes, ties, subsets=SIX, ties_name="Ties", **more)


def ties_by_hand(ties):
    """The rule in words, with NumPy, over (which, question) -> scores that all have both rows and a spread."""
    numbers = sorted({n for _, n in ties})
    gap = {key: np.min(s.correct) - np.max(s.wrong) for key, s in ties.items()}
    tied, ref = (np.array([gap[which, n] for n in numbers]) for which in ("tied", "ref"))
    spread = np.array([np.ptp(ties["tied", n].correct) for n in numbers])
    hard = np.minimum(ref, tied)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(hard / spread - 1), nan=0.0)
    terms = [
        np.mean(tied > 0),
        np.mean(ref > 0),
        np.mean(tied > spread),
        np.mean(hard > spread),
        np.mean(margin),
    ]
    return 100 * np.dot(terms, [0.3, 0.3, 0.2, 0.2, 0.01])


@pytest.mark.parametrize(
    ("correct", "wrong", "credit"),
    [
        (3, (1, 2, 0), 1),
        (2, (2, 0, 1), 1 / 2),
        (2, (2, 2, 2), 1 / 4),
        (2, (1, 3, 0), 0),
        (-1, (-2, -3, -4), 1),
    ],
)
def test_the_right_response_shares_the_highest_score(correct, wrong, credit):
    assert best_of_credit(Scores([correct], wrong)) == credit


@pytest.mark.parametrize(
    ("p", "credit"), [((1, 0.9, 1), 1), ((1, 0.5, 1), 1 / 2), ((0.5,) * 3, 1 / 4), ((1, 1, 0.4), 0)]
)
def test_pairs_count_as_scores_would(p, credit):
    assert pairs_credit(p) == credit


def test_ties_against_the_rule_by_numpy():
    rng = np.random.default_rng(0)
    ties = {}
    for n in range(40):
        ties["ref", n] = Scores(list(rng.normal(1, 1, 1)), list(rng.normal(0, 0.5, 5)))
        ties["tied", n] = Scores(list(rng.normal(1.5, 0.3, 4)), list(rng.normal(0, 0.5, 5)))
    # Right answers that all have one score: margins of 1, -1 and, beside a gap of 0, 0.
    ties["tied", 1] = Scores([2.0, 2.0], [0.0])
    ties["tied", 2] = Scores([2.0, 2.0], [3.0])
    ties["tied", 3], ties["ref", 3] = Scores([2.0, 2.0], [2.0]), Scores([3.0], [1.0])
    (subset,) = measured({}, ties).subsets
    assert subset.score == pytest.approx(ties_by_hand(ties), abs=1e-9)
    assert subset.interval[0] < subset.score < subset.interval[1]
    assert subset.n == 80 and set(subset.parts) == {"tied", "ref", "preferred", "preferred_hard", "margin"}
    # The subset's score may be above 100, as published: five weights that add up to 1.01.
    perfect = {("ref", 0): Scores([9.0], [0.0]), ("tied", 0): Scores([9.0, 9.0], [0.0])}
    assert measured({}, perfect).score == pytest.approx(101)


def test_questions_without_both_rows_count_in_their_accuracy_only():
    ties = {
        ("ref", 1): Scores([2.0], [1.0]),
        ("tied", 1): Scores([3.0, 2.0], [0.0]),
        ("ref", 2): Scores([0.0], [1.0]),
        ("tied", 3): Scores([5.0], [1.0]),  # One right answer has no spread.
        ("ref", 3): Scores([5.0], [1.0]),
        ("tied", 4): None,
    }
    (subset,) = measured({}, ties).subsets
    assert subset.parts["ref"] == pytest.approx(200 / 3) and subset.parts["tied"] == 100
    assert subset.parts["preferred"] == 100 and subset.parts["preferred_hard"] == 0  # gap 2 and 1, spread 1
    assert subset.parts["margin"] == pytest.approx(0)
    assert (subset.n, subset.n_missing) == (5, 1)


def test_the_score_is_the_mean_of_subsets_and_not_of_rows():
    rows = {"Math": [1.0, 0.0], "Focus": [1.0] * 8, "Puzzles": [0.0] * 5}
    found = measured(rows, {})
    assert found.score == pytest.approx(75) and found.n_subsets == 2
    names = [(one.name, one.in_score) for one in found.subsets]
    assert names == [("Math", True), ("Focus", True), ("Puzzles", False)]
    assert all(one.chance == 25 for one in found.subsets)


def test_pairs_have_no_score_of_ties():
    ties = {("ref", 1): None, ("tied", 1): None}
    found = measured({"Math": [1.0]}, ties, BY_PAIRS)
    assert math.isnan(found.subsets[-1].score) and "margins" in found.subsets[-1].why_not
    assert (found.score, found.n_subsets) == (100, 1)


def test_ties_without_a_pair_of_rows_has_no_score():
    found = measured(
        {"Math": [1.0]}, {("ref", 1): Scores([1.0], [0.0]), ("tied", 2): Scores([1.0, 2.0], [0.0])}
    )
    assert math.isnan(found.subsets[-1].score) and "ref:N and a row tied:N" in found.subsets[-1].why_not
    with pytest.raises(UserError, match="no subset has a score"):
        measured({}, {("ref", 1): Scores([1.0], [0.0])})


def test_missing_rows_are_counted_and_too_many_are_refused():
    rows = {"Math": [1.0, 0.0, 1.0, None]}
    found = measured(rows, {}, min_coverage=0.75).subsets[0]
    assert (found.score, found.n, found.n_missing) == (pytest.approx(200 / 3), 3, 1)
    with pytest.raises(UserError, match="3 of 4 rows of Math have all their scores"):
        measured(rows, {})


def test_intervals_resample_rows_within_their_subset():
    credits = list(np.random.default_rng(1).integers(0, 2, 200).astype(float))
    found = measured({"Math": credits, "Focus": [1.0] * 10}, {}, n_bootstrap=4000)
    p = np.mean(credits)
    half = 100 * 1.96 * math.sqrt(p * (1 - p) / 200)
    math_low, math_high = found.subsets[0].interval
    assert (math_low, math_high) == pytest.approx((100 * p - half, 100 * p + half), abs=1.2)
    assert found.subsets[1].interval == (100, 100)
    assert found.interval[1] - found.interval[0] == pytest.approx((math_high - math_low) / 2, abs=0.01)
