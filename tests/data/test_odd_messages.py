"""Conversations in forms of many tools: read as what they are, or refused; never trained as prose, never in part."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_jax.data.records.records import read_instructions, read_pairs, read_prompts
from rlhf_jax.errors import UserError

ASK, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "yo"}
PYTHON = "a conversation written as Python text, not JSON"


def reason_of(read, row):
    with pytest.raises(UserError) as error:
        read([row], chat=True)
    return str(error.value)


@pytest.mark.parametrize("said", [[{"from": "gpt", "value": "yo"}], SAID, {"from": "gpt", "value": "yo"}])
def test_messages_as_json_texts(said):
    (row,), skipped = read_instructions([{"instruction": "q", "output": json.dumps(said)}], chat=True)
    assert row["output"] == "yo" and not skipped
    other = json.dumps(said).replace("yo", "no")
    (pair,), _ = read_pairs([{"prompt": "q", "chosen": json.dumps(said), "rejected": other}])
    assert (pair["chosen"], pair["rejected"]) == ("yo", "no")


@pytest.mark.parametrize("column", ["prompt", "instruction", "question"])
def test_prompts_as_json_texts(column):
    for asked in ([ASK], ASK, [{"from": "human", "value": "q"}]):
        assert read_prompts([{column: json.dumps(asked)}], chat=True)[0][0]["messages"] == [ASK]


@pytest.mark.parametrize(
    "text",
    [
        '{"role": "admin", "content": "x"}',
        '{"from": "Berlin", "value": 3}',
        '[{"from": "Berlin", "to": "Bonn"}]',
        "{'role': 'admin'}",
        "['a', 'b']",
        "{'a': 1}",
        "The list [{'role': 'user', 'content': 'x'}] is one of Python.",
    ],
)
def test_other_texts_stay_texts(text):
    assert read_instructions([{"instruction": text, "output": text}])[0][0]["output"] == text


@pytest.mark.parametrize("order", [1, -1])
def test_messages_as_python_texts(order):
    text = str([dict(list(m.items())[::order]) for m in (ASK, SAID)])
    assert PYTHON in reason_of(read_pairs, {"prompt": "q", "chosen": text, "rejected": "x"})
    assert PYTHON in reason_of(read_instructions, {"instruction": "q", "output": text})
    for column in ("prompt", "instruction", "question", "messages"):
        assert PYTHON in reason_of(read_prompts, {column: text})
    assert PYTHON in reason_of(read_prompts, {"conversations": "[{'from': 'human', 'value': 'q'}]"})


def test_messages_as_tuples_arrays_and_maps(tmp_path):
    arrays = pa.array([[list(ASK.items()), list(SAID.items())]], pa.list_(pa.map_(pa.string(), pa.string())))
    pq.write_table(pa.table({"messages": arrays}), tmp_path / "a.parquet")
    for source in (
        [{"messages": (ASK, SAID)}],
        [{"messages": np.array([ASK, SAID])}],
        tmp_path / "a.parquet",
    ):
        (row,), _ = read_instructions(source, chat=True)
        assert (row["messages"], row["output"]) == ([ASK], "yo")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ASK | {"content": [{"text": "describe", "image": "a.png"}]}, "image in a text part"),
        (
            ASK | {"content": [{"type": "text", "text": "x", "image_url": {"url": "x"}}]},
            "image_url in a text part",
        ),
        (ASK | {"value": "other"}, "content and value of a message differ"),
        (ASK | {"from": "gpt"}, "role and from of a message differ"),
        (SAID | {"reasoning": "R1", "reasoning_content": "R2"}, "thoughts that differ under two names"),
        (SAID | {"reasoning_content": "R1", "thinking": "R2"}, "thoughts that differ under two names"),
        (
            SAID | {"tool_calls": [{"name": "f"}], "function_call": {"name": "g", "arguments": "{}"}},
            "tool_calls and function_call of a message differ",
        ),
    ],
)
def test_messages_that_say_two_things(message, reason):
    assert reason in reason_of(read_instructions, {"messages": [ASK, message, ASK, SAID]})


def test_messages_that_say_one_thing_twice():
    call = {"name": "f", "arguments": "{}"}
    twice = SAID | {"value": "yo", "from": "gpt", "reasoning": "R", "thinking": "R"}
    part = {"type": "text", "text": "q", "image_url": {"url": None}}
    messages = [
        ASK | {"content": [part], "from": "ann@example.org"},
        SAID | {"tool_calls": [{"function": call, "id": "1"}], "function_call": call},
        ASK,
        twice,
    ]
    (row,), skipped = read_instructions([{"messages": messages}], chat=True)
    assert row["output"] == "yo" and row["output_fields"]["thinking"] == "R" and not skipped
    assert skipped.columns == {"from of messages": 1}
