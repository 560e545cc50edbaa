"""Scores by a user's function: where it is found, what it is given, and what it may return."""

import math
import sys

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.rollout.function_rewards import FunctionScores, function_at, source_file

FIELD = "reward.sources"
MODULE = """
import math
from collections import Counter
LIMIT = 3
def length(prompts, responses):
    return [len(x) + row["extra"] for row, x in zip(prompts, responses)]
def gaps(prompts, responses):
    return [None, math.nan, 2]
def short(prompts, responses):
    return [1.0]
def words(prompts, responses):
    return ["a" for _ in responses]
def endless(prompts, responses):
    return [math.inf for _ in responses]
def spoils(prompts, responses):
    prompts[0]["extra"] = 99
    return [0.0 for _ in responses]
def one(prompts, responses):
    return 1.0
def fails(prompts, responses):
    raise KeyError("no\\nsuch")
"""
ROWS = [{"instruction": str(i), "extra": i} for i in range(3)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import no_such_thing\n")
    (tmp_path / "odd_rewards.py").write_text("1 / 0\n")
    yield tmp_path
    for name in ("my_rewards", "broken_rewards", "odd_rewards"):
        sys.modules.pop(name, None)


def scores(name):
    return FunctionScores(f"my_rewards:{name}", FIELD)


def test_a_function_gets_records_and_texts_and_gives_a_number_for_each(here):
    found = scores("length")(ROWS, ["", "ab", "abc"])
    assert list(found.scores) == [0.0, 3.0, 5.0] and list(found.readable) == [True] * 3
    assert not found.parts
    assert source_file("my_rewards:length", FIELD) == str(here / "my_rewards.py")


def test_none_and_nan_are_no_score(here):
    found = scores("gaps")(ROWS, ["a", "b", "c"])
    assert list(found.readable) == [False, False, True]
    assert found.scores[2] == 2.0 and not any(math.isnan(x) for x in found.scores)


def test_numbers_of_numpy_are_numbers(here, monkeypatch):
    given = scores("length")
    monkeypatch.setattr(given, "_function", lambda prompts, responses: np.arange(3, dtype=np.float32))
    assert list(given(ROWS, ["a", "b", "c"]).scores) == [0.0, 1.0, 2.0]


def test_a_function_cannot_change_the_prompts(here):
    scores("spoils")(ROWS, ["a", "b", "c"])
    assert ROWS[0]["extra"] == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "returned 1 values for 3 responses"),
        ("words", "returned 'a'"),
        ("endless", "returned inf"),
        ("one", "returned float for 3 responses"),
        ("fails", "failed with KeyError: 'no\\nsuch'"),
    ],
)
def test_what_a_function_may_not_return_is_named(here, name, said):
    with pytest.raises(UserError) as told:
        scores(name)(ROWS, ["a", "b", "c"])
    line = str(told.value)
    assert line.startswith(f"{FIELD}: my_rewards:{name} ") and said in line and "\n" not in line


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("my_rewards", "names no function; write MODULE:FUNCTION"),
        ("my_rewards:", "names no function"),
        ("my-rewards:length", "names no function"),
        ("my_rewards:missing", "has no function missing"),
        ("my_rewards:LIMIT", "has no function LIMIT"),
        ("nowhere_rewards:length", "no module nowhere_rewards in "),
        ("my_rewards.deeper:length", "no module my_rewards.deeper in "),
        ("broken_rewards:length", "importing broken_rewards failed with No module named 'no_such_thing'"),
        ("odd_rewards:length", "failed with ZeroDivisionError"),
    ],
)
def test_what_cannot_be_found_is_told_in_one_line(here, where, said):
    before = list(sys.path)
    with pytest.raises(UserError) as told:
        function_at(where, FIELD)
    assert str(told.value).startswith(f"{FIELD}: ") and said in str(told.value)
    assert sys.path == before
