"""Wrong types, nulls and numbers that are none in feedback files: a status, or one line; never a label."""

import json
import math
from pathlib import Path

import pytest

from rlhf_jax.annotation import read_feedback, write_feedback
from rlhf_jax.annotation.formats import FORMATS
from rlhf_jax.annotation.formats.rows_of import pair, rated
from rlhf_jax.annotation.labels.expansion import pairs_of, scored_of
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError
from rlhf_jax.errors import UserError

GOOD = pair("p", "", ("x", "y"), 2.0)
ULTRA = {"instruction": "i", "completions": [{"model": "m", "response": "r", "overall_score": 3}]}
BINARY = {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 2, "score_rejected": 1}
RRHF = {"query": "q", "responses": ["a", "b"], "scores": [1.0, 0.5]}
EVAL = {"instruction": "i", "output_1": "x", "output_2": "y", "preference": 1}


@pytest.mark.parametrize("preference", [math.nan, None, math.inf, 0.0, 2.5, "2", True])
@pytest.mark.parametrize("name", ["trl", "sparse_rankings", "rrhf", "alpaca_farm", "alpaca_eval"])
def test_no_winner_is_made_of_a_preference_that_is_none(
    tmp_path: Path, name: str, preference: object
) -> None:
    bad = GOOD | {"instruction": "bad", "preference": preference}
    path = tmp_path / f"f{FORMATS[name].suffix}"
    assert write_feedback(path, [GOOD, bad], name) == (2 if name == "alpaca_eval" else 1)
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    labelled = [
        row for row in read_feedback(path, name) if row["status"] == "ok" and row.get("preference", 1)
    ]
    assert {row["instruction"] for row in labelled} == {"p"}


def test_ratings_that_are_none_make_no_pair() -> None:
    rows = [rated("p", "", "x", 3.0), rated("p", "", "y", 1.0) | {"rating": math.nan, "status": "ok"}]
    assert pairs_of(rows) == [] and scored_of(rows) == []
    assert rated("p", "", "x", math.nan)["status"] == "parse_error"


@pytest.mark.parametrize("score", ["nan", "inf", "good", ""])
def test_sparse_ratings_that_are_no_number(tmp_path: Path, score: str) -> None:
    (tmp_path / "r.csv").write_text(f"i,,r,{score}\n")
    (row,) = read_feedback(tmp_path / "r.csv", "sparse_ratings")
    assert (row["rating"], row["status"]) == (None, "parse_error")


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("ultrafeedback", ULTRA | {"completions": "text"}, "completions: found str"),
        ("ultrafeedback", ULTRA | {"completions": ["text"]}, "completions[0]: found str"),
        ("ultrafeedback", ULTRA | {"completions": [{"response": None}]}, "response: missing"),
        ("ultrafeedback", BINARY | {"chosen": None}, "chosen: missing"),
        ("ultrafeedback", BINARY | {"chosen": [{"role": "assistant", "content": None}]}, "chosen"),
        ("rrhf", RRHF | {"scores": [1.0, None]}, "scores[1]: found None"),
        ("rrhf", RRHF | {"responses": [False, "b"]}, "responses[0]: found False"),
        ("rrhf", RRHF | {"scores": 3}, "scores"),
        ("alpaca_eval", EVAL | {"output_2": False}, "output_2: found False"),
        ("alpaca_eval", EVAL | {"preference": "1"}, "preference: found '1'"),
        ("alpaca_farm", EVAL | {"preference": True}, "preference: found True"),
        ("alpaca_farm", EVAL | {"preference": 7}, "preference: found 7"),
        ("alpaca_farm", EVAL | {"input": 3}, "input: found 3"),
    ],
)
def test_wrong_types_are_one_line(tmp_path: Path, name: str, row: dict, says: str) -> None:
    (tmp_path / "f.json").write_text(json.dumps([row]))
    with pytest.raises(UserError) as caught:
        read_feedback(tmp_path / "f.json", name)
    assert says in str(caught.value) and "row 1" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"message": None},
        {"message": {"content": 3}, "logprobs": {"content": [{"top_logprobs": [{"token": "m"}]}]}},
        {"message": {"content": "m"}, "logprobs": {"content": [None]}},
        {"message": {"content": "m"}, "logprobs": [1]},
        [1, 2],
        5,
    ],
)
def test_raw_completions_of_any_shape_are_read(tmp_path: Path, raw: object) -> None:
    (tmp_path / "f.json").write_text(json.dumps([EVAL | {"raw_completion": raw}]))
    assert read_feedback(tmp_path / "f.json", "alpaca_eval")[0]["preference"] == 1


def test_ultrafeedback_ratings_that_are_none(tmp_path: Path) -> None:
    completion = {"response": "r", "overall_score": math.nan, "annotations": ["x"]}
    (tmp_path / "f.json").write_text(json.dumps([ULTRA | {"completions": [completion]}]))
    (row,) = read_feedback(tmp_path / "f.json", "ultrafeedback")
    assert (row["rating"], row["status"], row["aspects"]) == (None, "parse_error", None)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_nothing_to_write_is_told_apart_from_what_is_wrong(tmp_path: Path, name: str) -> None:
    with pytest.raises(NothingToWriteError):
        write_feedback(tmp_path / "f", [], name)
    assert not list(tmp_path.iterdir())
