"""Ratings and rankings with values of other kinds than they should have: one line, or a missing row."""

import math

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.rating_win_rates import (
    ranking_preferences,
    win_rate_from_ratings,
)
from rlhf_jax.evaluation.measures.win_rate import read_preferences

LONG = pytest.param(10**5000, id="more digits than Python writes")
ODD = [3, 1.25, True, {"a": 1}, ["a"], LONG]


@pytest.mark.parametrize("value", ODD)
def test_rankings(value):
    with pytest.raises(UserError, match=r"^rows\[0\]: ranking: found .*; give one of"):
        ranking_preferences([{"ranking": value}])


def test_rankings_that_are_missing():
    rows = [{"ranking": x} for x in (None, "", " ", math.nan, " (A) ", "(b)")]
    assert ranking_preferences(rows) == [None, None, None, None, 1.0, 2.0]


@pytest.mark.parametrize("value", [math.inf, True, "x", [], {}, 10**400, LONG])
def test_ratings(value):
    good = {"instruction": "i", "rating": 2}
    with pytest.raises(UserError, match=r"^model\[0\]: rating: found .*; give a number, or null"):
        win_rate_from_ratings([good | {"rating": value}], [good])


@pytest.mark.parametrize("value", [3, True, ["a"], {"a": 1}])
def test_inputs_of_ratings(value):
    good = {"instruction": "i", "rating": 2}
    with pytest.raises(UserError, match=r"^model\[0\]: input: found .*; it must be text"):
        win_rate_from_ratings([good | {"input": value}], [good])
    assert win_rate_from_ratings([good | {"input": math.nan}], [good]).win_rate == 50


def test_a_preference_beyond_all_numbers():
    with pytest.raises(UserError, match=r"preference\[0\]: inf is outside \[1, 2\]"):
        read_preferences([10**400])
