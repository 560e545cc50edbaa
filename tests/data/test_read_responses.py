"""Responses to score: every row stays, in every layout, and what cannot be scored says why."""

import math

import pytest

from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.errors import UserError

USER = {"role": "user", "content": "u"}
BOT = {"role": "assistant", "content": "r"}
PROMPT = {"instruction": "u", "input": ""}


@pytest.mark.parametrize(
    ("row", "responses"),
    [
        (PROMPT | {"output": "r"}, ["r"]),
        (PROMPT | {"outputs": ["r", "s"]}, ["r", "s"]),
        (PROMPT | {"responses": ["r", "s"], "scores": [1.0, 2.0]}, ["r", "s"]),
        (PROMPT | {"output_1": "r", "output_2": "s"}, ["r", "s"]),
        ({"prompt": [USER], "output": "r"}, ["r"]),
        ({"messages": [USER], "output": "r"}, ["r"]),
        ({"messages": [USER, BOT]}, ["r"]),
        ({"chosen": [USER, BOT], "rejected": [USER, BOT | {"content": "s"}]}, ["r", "s"]),
        ({"instruction": "u", "input": math.nan, "output": "r"}, ["r"]),
        ({"question": "u", "response": ""}, [""]),
    ],
)
def test_layouts(row, responses):
    (read,), left_out = read_responses([row])
    assert not left_out
    assert read.responses == [record["output"] for record in read.records] == responses
    assert all({name: record[name] for name in PROMPT} == PROMPT for record in read.records)
    assert {name: read.columns[name] for name in PROMPT} == PROMPT and "prompt" not in read.columns


@pytest.mark.parametrize(
    ("row", "reasons", "responses"),
    [
        ({"instruction": None, "output": "r"}, ["missing instruction"], ["r"]),
        ({"instruction": "u", "output": None}, ["missing response"], [None]),
        ({"instruction": "u", "output": math.nan}, ["missing response"], [None]),
        ({"instruction": "u", "output": 3}, ["response is not text"], [None]),
        ({"instruction": "u", "outputs": ["r", None]}, [None, "missing response"], ["r", None]),
        ({"instruction": "u \ud83d", "output": "r"}, ["text that is not valid Unicode"], ["r"]),
        ({"messages": [{"role": "narrator", "content": "x"}, BOT]}, ["role 'narrator'"], [None]),
    ],
)
def test_what_cannot_be_scored_says_why(row, reasons, responses):
    (read, other), left_out = read_responses([row, PROMPT | {"output": "fine"}])
    assert [record if isinstance(record, str) else None for record in read.records] == reasons
    assert read.responses == responses and other.records[0]["output"] == "fine"
    assert left_out == {reason: 1 for reason in reasons if reason}


@pytest.mark.parametrize("chat", [False, True])
def test_weights_say_nothing_of_scores(chat):
    rows = [{"messages": [USER, BOT, USER, BOT | {"content": "s", "weight": 0}]}]
    rows.append({"messages": [USER, BOT | {"train": False}]})
    read, left_out = read_responses(rows, chat=chat)
    assert not left_out and [row.responses for row in read] == [["s"], ["r"]]
    assert not any("output_fields" in record for row in read for record in row.records)


@pytest.mark.parametrize("name", ["outputs", "responses"])
def test_lists_that_a_file_keeps_as_json_texts(name):
    (read,), _ = read_responses([PROMPT | {name: '["r", null]', "ended": "[false, true]"}])
    assert read.responses == ["r", None] and read.records[0]["ended"] is False
    for text in ('["r", 3]', "[r, s]", '["r"'):
        (read,), _ = read_responses([PROMPT | {name: text}])
        assert read.responses == [text]


def test_a_file_without_responses_is_refused():
    with pytest.raises(UserError, match="rows: no responses to score; it has input, instruction"):
        read_responses([PROMPT])
