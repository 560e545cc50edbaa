"""Agreement, kappa, biases and calibration against brute force."""

import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.agreement import (
    agreement,
    biases,
    calibration,
    has_list,
    labels_from_scores,
)


def test_agreement_counts_a_tie_as_half():
    r = agreement([1, 2, 2, 1.5, 1.5], [1, 2, 1, 2, 1.5])
    assert r.agreement == pytest.approx(100 * (1 + 1 + 0 + 0.5 + 1) / 5)
    assert (r.n_total, r.n_missing, r.n_clear) == (5, 0, 0)
    assert math.isnan(r.clear_agreement)


def test_kappa_is_cohens_on_decided_labels():
    # Cohen's kappa from a 2x2 table: 20, 5, 10, 15 -> po .7, pe .5, kappa .4.
    judge = [1] * 25 + [2] * 25
    human = [1] * 20 + [2] * 5 + [1] * 10 + [2] * 15
    assert agreement(judge, human).kappa == pytest.approx(0.4)
    assert agreement(judge, human).agreement == pytest.approx(70)


def test_kappa_matches_brute_force_on_graded_labels():
    rng = np.random.default_rng(0)
    a, b = 1 + rng.random(61), rng.choice([1, 1.5, 2], 61)
    chance = np.abs(a[:, None] - b[None, :]).mean()
    assert agreement(a, b).kappa == pytest.approx(1 - np.abs(a - b).mean() / chance, abs=1e-12)


def test_kappa_of_constant_equal_labels_is_undefined_and_of_opposites_is_minus_one():
    assert math.isnan(agreement([2, 2], [2, 2]).kappa)
    assert agreement([1, 2], [2, 1]).kappa == pytest.approx(-1)


def test_clear_pairs_and_missing_rows():
    r = agreement([1, 2, None, 2, 1], [1, 1, 2, 2, float("nan")], clear=[True, False, True, True, True])
    assert (r.n_total, r.n_missing, r.n_clear) == (3, 2, 2)
    assert (r.agreement, r.clear_agreement) == pytest.approx((200 / 3, 100))


def test_unpaired_or_disjoint_labels_are_refused():
    with pytest.raises(UserError, match="2 rows against 1"):
        agreement([1, 2], [1])
    with pytest.raises(UserError, match="none of the 2 pairs"):
        agreement([1, None], [None, 2])
    with pytest.raises(UserError, match="clear: 1 rows"):
        agreement([1, 2], [1, 2], clear=[True])


def test_labels_from_scores():
    assert labels_from_scores([0.1, 0.5, 3], [0.2, 0.5, 1]).tolist() == [2, 1.5, 1]


@pytest.mark.parametrize("text", ["- one\n- two", "Sure:\n1. one", "* a", "a) first", "  • x", "10) ten"])
def test_lists_are_found(text):
    assert has_list(text)


@pytest.mark.parametrize("text", ["a well-known fact", "The end. The start.", "2.5 litres", "-5 degrees", ""])
def test_prose_is_no_list(text):
    assert not has_list(text)


def test_biases():
    short, long, bullets = "x" * 10, "y" * 90, "- a\n- b"
    preferences = [2, 1, 2, 1.5, 1, None]
    outputs_1 = [short, long, short, short, bullets, short]
    outputs_2 = [long, short, "x" * 40, long, "plain ab", long]
    switched = [True, False, False, False, False, True]
    r = biases(preferences, outputs_1, outputs_2, switched=switched)
    assert (r.prefers_longer, r.n_longer) == (100, 2)  # the third differs by 30 characters, not by more
    assert (r.prefers_list, r.n_list) == (100, 1)
    assert (r.prefers_first, r.n_first) == (pytest.approx(100 * (1 + 1 + 0 + 0.5 + 1) / 5), 5)


def test_biases_without_evidence_are_nan_with_n_zero():
    r = biases([1, 2], ["a", "b"], ["c", "d"])
    assert (r.n_longer, r.n_list, r.n_first) == (0, 0, 0)
    assert math.isnan(r.prefers_longer) and math.isnan(r.prefers_list) and math.isnan(r.prefers_first)
    with pytest.raises(UserError, match="1 and 2 rows"):
        biases([1, 2], ["a"], ["c", "d"])


def test_calibration_of_a_calibrated_reward_model():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1.5, 20_000)
    labels = 1.0 + (rng.random(20_000) < 1 / (1 + np.exp(-margin)))
    r = calibration(np.zeros(20_000), margin, labels)
    assert r.calibration_error < 1.5 and len(r.bins) == 5
    assert sum(b.n for b in r.bins) == r.n_total == 20_000
    assert r.accuracy == pytest.approx(100 * np.mean((margin > 0) == (labels == 2)))
    for low, high in zip(r.bins, r.bins[1:], strict=False):
        assert low.high <= high.low and low.accuracy < high.accuracy
    assert all(b.interval[0] <= b.confidence <= b.interval[1] for b in r.bins)
    overconfident = calibration(np.zeros(20_000), 5 * margin, labels)
    assert overconfident.accuracy == r.accuracy and overconfident.calibration_error > 10


def test_calibration_edges():
    one = calibration([0.0], [0.0], [2])
    assert (one.accuracy, one.n_total, len(one.bins)) == (50, 1, 1)
    r = calibration([0, 0, 0], [1, 1, 1], [2, 1, None])
    assert (r.accuracy, r.n_total, r.n_missing, len(r.bins)) == (50, 2, 1, 1)
    with pytest.raises(UserError, match="not finite"):
        calibration([0.0], [float("nan")], [2])
