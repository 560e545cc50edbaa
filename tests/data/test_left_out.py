"""Nothing in a record is dropped in silence: each column, field and turn is used, or named and counted."""

import math

import pytest

from rlhf_jax.data.records.records import counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.errors import UserError


def user(text, **more):
    return {"role": "user", "content": text} | more


def bot(text, **more):
    return {"role": "assistant", "content": text} | more


SYSTEM = {"role": "system", "content": "S"}
GOOD = {"messages": [user("u"), bot("r")]}


def one(read, row, chat=True):
    """The only record of a row of which nothing is left out."""
    (record,), skipped = read([row], chat=chat)
    assert not skipped and not skipped.columns, counts_text(skipped)
    return record


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "When?", "context": "In 1932.", "response": "1932"},
            {"instruction": "When?", "input": "In 1932.", "output": "1932"},
        ),
        (
            {"system_prompt": "S", "question": "q", "response": "r"},
            {"prompt": "S\n\nHuman: q\n\nAssistant:", "output": "r"},
        ),
        (
            {"instruction": "b", "input": "", "output": "6", "system": "S", "history": [["a", "4"]]},
            {"prompt": "S\n\nHuman: a\n\nAssistant: 4\n\nHuman: b\n\nAssistant:", "output": "6"},
        ),
        (
            {
                "system": "S",
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}],
            },
            {"prompt": "S\n\nHuman: q\n\nAssistant:", "output": "r"},
        ),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "r"]}}, {"instruction": "q"}),
        (
            {"messages": '[{"role": "User", "content": "q"}, {"role": "Assistant", "content": "r"}]'},
            {"output": "r"},
        ),
        ({"messages": [{"role": "developer", "content": "S"}, user("q"), bot("r")]}, {"output": "r"}),
        (
            {"prompt": None, "instruction": "q", "input": math.nan, "output": "r"},
            {"instruction": "q", "input": ""},
        ),
    ],
)
def test_columns_that_are_used(row, expected):
    record = one(read_instructions, row, chat=False)
    assert {name: record[name] for name in expected} == expected
    chat = one(read_instructions, row)["messages"]
    assert [m["content"] for m in chat if m["role"] == "system"] == ["S"] * ("S" in str(row))
    assert len(chat) == 1 + ("S" in str(row)) + 2 * ("history" in row)


def test_preference_rows_with_a_question_and_a_system_text():
    row = {"system": "be kind", "question": "why?", "chosen": "because", "rejected": "no"}
    record = one(read_pairs, row)
    assert record["messages"] == [{"role": "system", "content": "be kind"}, user("why?")]
    assert (record["chosen"], record["rejected"]) == ("because", "no")


@pytest.mark.parametrize(
    ("rows", "chat", "words"),
    [
        ([{"instruction": "i", "output": "o", "query": "x"}] * 2, False, "columns not used: query (2 rows)"),
        (
            [{"instruction": "i", "output": "o", "inputs": "x", "empty": " "}],
            False,
            "not used: inputs (1 row)",
        ),
        ([{"prompt": "p", "context": "c", "completion": "o"}], False, "not used: context (1 row)"),
        ([GOOD | {"tools": '[{"name": "clock"}]'}], False, "not used: tools (1 row)"),
        ([{"messages": [user("u", name="Ann"), bot("r")]}], True, "not used: name of messages (1 row)"),
        (
            [{"messages": [user("u"), bot("r", reasoning_content="why")]}],
            False,
            "not used: reasoning_content of messages (1 row)",
        ),
        ([GOOD | {"source": "s"}, GOOD], True, "skipped none; columns not used: source (1 row)"),
    ],
)
def test_what_is_not_used_is_named_and_counted(rows, chat, words):
    kept, skipped = read_instructions(rows, chat=chat)
    assert len(kept) == len(rows)
    assert words in counts_text(skipped)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}])],
            "image_url part",
        ),
        (
            [user([{"type": "input_audio", "input_audio": {}}, {"type": "text", "text": "?"}])],
            "input_audio part",
        ),
        ([user("u"), {"role": "narrator", "content": "x"}], "role 'narrator'"),
        ([{"role": ["user"], "content": "u"}], "role is not text"),
        ([{"content": "u"}], "message without a role"),
        ([user(3)], "message content is not text"),
        ([user("u"), {"from": "function_call", "value": "{}"}], "tool calls without a name"),
        ([user("u"), {"from": "function_call", "value": "f(3)"}], "tool calls that are not JSON"),
        ([user("u"), bot(None, tool_calls=[3])], "tool calls that are not objects"),
        (
            [user("u"), bot(None, tool_calls=[{"type": "custom", "custom": {"name": "f"}}])],
            "tool calls of type 'custom'",
        ),
        (
            [user("u"), bot(None, tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])],
            "arguments of tool calls that are not an object",
        ),
        ([user("u", tool_calls=[{"name": "f"}])], "tool calls of the role 'user'"),
        ([user("u"), bot(""), user("v")], "empty assistant message"),
        ([user("u"), bot("x", weight=0.5), user("v")], "weight 0.5 of a turn is neither 0 nor 1"),
        ([user("the cat \ud83d")], "text that is not valid Unicode"),
    ],
)
def test_what_cannot_be_used_costs_its_row_and_is_counted(messages, reason):
    kept, skipped = read_instructions([{"messages": [*messages, bot("r")]}, GOOD], chat=True)
    assert len(kept) == 1
    (found,) = skipped
    assert found.startswith(reason) and skipped[found] == 1


def test_an_image_that_a_text_points_at():
    row = {"instruction": "<image>what is this?", "output": "a cat", "images": ["a.png"]}
    _, skipped = read_instructions([row, {"instruction": "i", "output": "o"}])
    assert skipped == {"images beside the text": 1}


def test_thoughts_and_weights_stay_on_their_messages():
    messages = [
        user("u"),
        bot("bad", weight=0),
        user("v"),
        bot("4", reasoning_content="2 and 2", train=False),
    ]
    record = one(read_instructions, {"messages": messages})
    assert record["messages"][1] == bot("bad", train=False)
    assert record["output_fields"] == {"reasoning_content": "2 and 2", "train": False}
    _, skipped = read_instructions([{"messages": messages}, GOOD])
    assert skipped == {"response with weight 0": 1}


def test_liked_and_disliked_completions():
    rows = [{"prompt": "p", "completion": x, "label": x == "good"} for x in ("good", "bad")]
    kept, skipped = read_instructions(rows)
    assert [row["output"] for row in kept] == ["good"] and skipped == {"label=False": 1}
    assert skipped.notes == {"the column label decides: rows where it is true are demonstrations": 1}
    with pytest.raises(UserError, match="one completion a row with a label is no pair; train with configs"):
        read_pairs(rows)


BOTH = {"chosen": [SYSTEM, user("u"), bot("a")], "rejected": [SYSTEM, user("u"), bot("b")]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "u"} | BOTH,
        {"prompt": [user("u")]} | BOTH,
        {"prompt": "u", "chosen": [SYSTEM, bot("a")], "rejected": [SYSTEM, bot("b")]},
        {"system": "S", "prompt": "u", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: u\n\nAssistant:a", "rejected": "\n\nHuman: u\n\nAssistant:b", "system": "S"},
    ],
)
def test_a_system_text_reaches_both_kinds_of_templates(row):
    assert one(read_pairs, row)["messages"] == [SYSTEM, user("u")]
    assert one(read_pairs, row, chat=False)["prompt"] == "S\n\nHuman: u\n\nAssistant:"


def test_turns_of_one_side_alone_are_no_pair():
    row = {"prompt": [user("u")], "chosen": [bot("x"), user("more"), bot("z")], "rejected": [bot("y")]}
    good = {"prompt": [user("u")], "chosen": [bot("x")], "rejected": [bot("y")]}
    kept, skipped = read_pairs([row, good], chat=True)
    assert len(kept) == 1 and skipped == {"chosen and rejected have different prompts": 1}


@pytest.mark.parametrize(
    ("row", "chat", "words"),
    [
        (
            {"prompt": "<|im_start|>user\nhi<|im_end|>\n"},
            False,
            "1 row: prompt already holds a template's '<|im_start|>'",
        ),
        ({"prompt": "[INST] hi [/INST]"}, True, "template's '[INST]', which is read as plain text"),
        (
            {"instruction": "### Instruction:\nhi\n\n### Response:"},
            False,
            "data.template writes another around it",
        ),
        (
            {"prompt": "### Instruction:\nhi\n\n### Response:"},
            False,
            "it is used as it is, without data.template",
        ),
        (
            {"prompt": "### Instruction:\nhi\n\n### Response:"},
            True,
            "data.template=chat writes another around it",
        ),
        (
            {"messages": [user("Human: hi\n\nAssistant:")]},
            True,
            "message already holds a template's text ('Human:')",
        ),
        (
            {"messages": [user("a"), bot("b"), user("c")]},
            False,
            "are written as a Human/Assistant transcript",
        ),
    ],
)
def test_prompts_that_hold_a_templates_text(row, chat, words):
    _, skipped = read_prompts([row], chat=chat)
    assert words in counts_text(skipped)


def test_plain_prompts_and_transcripts_say_nothing():
    rows = [{"prompt": "\n\nHuman: a\n\nAssistant:"}, {"prompt": "p"}, {"messages": [user("a")]}]
    for chat in (False, True):
        assert not read_prompts(rows, chat=chat)[1].notes
