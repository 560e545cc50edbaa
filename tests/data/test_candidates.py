"""Prompts with several scored responses: every layout, what is put together and what is dropped."""

import numpy as np
import pytest

from rlhf_jax.data.files.tables import write_jsonl, write_parquet
from rlhf_jax.data.records.candidates import read_candidates
from rlhf_jax.errors import UserError


def said(rows):
    return [[(x["output"], x["score"]) for x in row["candidates"]] for row in rows]


SCORED = {"prompt": "w1", "responses": ["w2", "w3"], "scores": [0.5, 2]}


@pytest.mark.parametrize(
    "row",
    [
        SCORED | {"reasons": [None, None], "generator": "sft"},  # as score writes it
        {"prompt": "w1", "outputs": ["w2", "w3"], "scores": [0.5, 2]},
        {"query": "w1", "responses": ["w2", "w3"], "scores": [0.5, 2]},  # RRHF's
        {"prompt": "w1", "responses": '["w2", "w3"]', "scores": "[0.5, 2]"},
    ],
)
def test_layouts_of_one_row_a_prompt(row, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [row])
    rows, skipped = read_candidates(str(tmp_path / "rows.jsonl"))
    assert said(rows) == [[("w2", 0.5), ("w3", 2.0)]] and not skipped and not skipped.columns
    # What RRHF calls a query goes into the template, what is called a prompt does not.
    assert rows[0].get("instruction" if "query" in row else "prompt") == "w1"
    rows, _ = read_candidates(str(tmp_path / "rows.jsonl"), query="prompt")
    assert rows[0]["prompt"] == "w1"


def test_ratings_are_put_together_by_prompt_and_judge():
    rated = [("w1", "w2", 3, "a"), ("w4", "w5", 1, "a"), ("w1", "w3", 7, "a"), ("w1", "w3", 2, "b")]
    rows = [
        {"instruction": p, "input": "", "output": o, "rating": r, "judge_id": j, "status": "ok"}
        for p, o, r, j in rated
    ]
    rows.append(rows[0] | {"output": "w9", "status": "parse_error", "rating": None})
    found, skipped = read_candidates(rows)
    assert said(found) == [[("w2", 3.0), ("w3", 7.0)], [("w5", 1.0)], [("w3", 2.0)]]
    assert skipped == {"status=parse_error": 1}


def test_files_are_put_together_by_prompt(tmp_path):
    """As provided and sampled responses are, each scored by a command of its own."""
    write_parquet(tmp_path / "a.parquet", [SCORED, SCORED | {"prompt": "w8"}])
    write_parquet(tmp_path / "b.parquet", [{"prompt": "w1", "responses": ["w4"], "scores": [1.0]}])
    rows, _ = read_candidates(f"{tmp_path}/a.parquet, {tmp_path}/b.parquet")
    assert said(rows)[0] == [("w2", 0.5), ("w3", 2.0), ("w4", 1.0)] and len(rows) == 2


def test_what_is_dropped_is_counted():
    rows = [
        {
            "prompt": "w1",
            "responses": ["w2", None, "w3", "w4", "w2"],
            "scores": [1.0, 1.0, None, np.nan, 4.0],
        },
        {"prompt": "w1", "responses": ["w5"], "scores": [1.0, 2.0]},
        {"prompt": "w1", "responses": ["w5", "w6"], "scores": ["much", np.inf]},
        {"prompt": None, "responses": ["w5"], "scores": [1.0]},
    ]
    found, skipped = read_candidates(rows)
    assert said(found) == [[("w2", 1.0)]]
    assert skipped == {
        "missing response": 1,
        "response without a score": 2,
        "same response to the same prompt again": 1,
        "not one score for each response": 1,
        "score is not a finite number": 2,
        "missing prompt": 1,
    }


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"prompt": "w1", "output": "w2"}],
            r"no scored responses; it has output, prompt .*configs/score.py",
        ),
        ([{"responses": ["w2"], "scores": [1.0]}], r"no prompts; it has responses, scores \(needed: prompt"),
        (
            [{"prompt": "w1", "responses": ["w2"], "scores": [None]}],
            r"none of its 1 rows can be used; skipped 1",
        ),
    ],
)
def test_files_without_any_are_refused(rows, says):
    with pytest.raises(UserError, match=says):
        read_candidates(rows)
