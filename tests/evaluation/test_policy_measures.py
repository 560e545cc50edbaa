"""Measures of policies against numbers worked out by hand; what cannot be had is None and not a number."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation.measures.win_rate import wilson_interval
from rlhf_jax.evaluation.policy_measures import (
    PairNumbers,
    ResponseNumbers,
    flat_measures,
    measure_policy,
    policies_text,
)
from rlhf_jax.evaluation.report.plots import plot_reward_against_kl

SAID = ResponseNumbers(
    tokens=np.array([2, 4, 9]),
    characters=np.array([5, 0, 13]),
    ended=np.array([True, True, False]),
    rewards=np.array([1.0, np.nan, 3.0]),
    policy=np.array([-1.0, -2.0, -6.0], np.float32),
    reference=np.array([-2.0, -1.0, -9.0], np.float32),
    other=np.array([-3.0, np.nan, -5.0]),
    other_tokens=np.array([2, 0, 6]),
)
PAIRS = PairNumbers(
    policy=np.array([[-4.0, -3.0], [-2.0, -2.0], [-1.0, -5.0], [-2.0, -3.0]]),
    tokens=np.array([[8, 3], [2, 2], [1, 2], [3, 1]]),
    reference=np.array([[-6.0, -3.0], [-2.0, -2.0], [-1.0, -6.0], [-1.0, -4.0]]),
)


def test_every_number_by_hand():
    found = measure_policy("p", SAID, PAIRS)
    assert (found.name, found.responses) == ("p", 3)
    assert found.tokens == (5.0, 4.0, 9) and found.characters == (6.0, 5.0, 13)
    assert found.ended == pytest.approx(2 / 3)
    # The response that could not be scored counts nowhere; (3 - 1) / sqrt(2) / sqrt(2).
    assert found.reward == pytest.approx((2.0, 1.0, 2))
    # Log-ratios 1, -1 and 3.
    assert found.kl == pytest.approx((1.0, 2 / math.sqrt(3), 3))
    assert found.perplexity == pytest.approx(math.exp(8 / 8)) and found.perplexity_tokens == 8
    # By token: -0.5 > -1, a tie, -1 > -2.5, -0.7 > -3. By ratio: 2 > 0, a tie, 0 < 1, -1 < 1.
    for group, right in ((found.mean_logprob, 3.5), (found.implicit_reward, 1.5)):
        assert (group.n, group.accuracy) == (4, 100 * right / 4)
        assert group.interval == pytest.approx(wilson_interval(right / 4, 4))


def test_what_is_not_there_is_none():
    bare = SAID._replace(rewards=None, reference=None, other=None, other_tokens=None)
    row = flat_measures(measure_policy("p", bare))
    for name in ("reward", "kl", "perplexity", "mean_logprob_accuracy", "implicit_reward_low"):
        assert row[name] is None, name
    assert row["kl_n"] == row["perplexity_tokens"] == row["mean_logprob_pairs"] == 0
    without = measure_policy("p", SAID, PAIRS._replace(reference=None))
    assert without.implicit_reward is None and without.mean_logprob is not None
    nothing = measure_policy("p", SAID._replace(rewards=np.full(3, np.nan), other_tokens=np.zeros(3, int)))
    assert nothing.reward is None and nothing.perplexity is None


def test_one_response_has_no_standard_error():
    one = ResponseNumbers(*(x[:1] for x in SAID))
    assert measure_policy("p", one).reward == (1.0, None, 1)


def test_all_rows_have_the_same_columns_and_the_table_says_each():
    rows = [measure_policy("full", SAID, PAIRS), measure_policy("bare", SAID._replace(rewards=None))]
    assert list(flat_measures(rows[0])) == list(flat_measures(rows[1]))
    title, full, bare = policies_text(rows).splitlines()
    assert title.split()[:3] == ["policy", "tokens", "ended"]
    assert full.split()[:4] == ["full", "5.0", "66.7", "%"] and "+2.000 ± 1.000" in full and "87.5 %" in full
    assert bare.split()[0] == "bare" and bare.rstrip().endswith("-")


def test_the_chart_shows_policies_that_have_both(tmp_path):
    rows = [measure_policy("full", SAID), measure_policy("bare", SAID._replace(rewards=None))]
    path = plot_reward_against_kl(rows, tmp_path / "plots/r.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert plot_reward_against_kl(rows[1:], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
