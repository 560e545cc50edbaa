"""Two places that may say the prompt: messages beside a text, and responses that repeat it. Neither wins in silence."""

import pytest

from rlhf_jax.data.files.tables import write_parquet
from rlhf_jax.data.records.records import counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.data.templates import TRANSCRIPT
from rlhf_jax.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text} | more


S1, S2 = ({"role": "system", "content": text} for text in ("S1", "S2"))
HH = "\n\nHuman: hi\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Summarize", "input": "LONG TEXT", "messages": [user("Summarize")]},
        {"instruction": "p", "messages": [user("something else")]},
        {"prompt": "p", "messages": [user("something else")]},
        {"instruction": "first", "messages": [user("first"), bot("r"), user("more")]},
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_messages_that_ask_for_something_else(row, chat):
    _, skipped = read_instructions([row | {"output": "o"}, {"instruction": "i", "output": "o"}], chat=chat)
    assert skipped == {"messages are not the prompt beside them": 1}


@pytest.mark.parametrize("column", ["instruction", "prompt"])
def test_a_text_beside_longer_messages(column):
    row = {column: "p", "messages": [S1, user("p")]}
    (plain,), skipped = read_prompts([row])
    assert plain[column] == "p" and skipped.columns == {"messages beside the prompt": 1}
    assert not skipped.notes
    (record,), skipped = read_prompts([row], chat=True)
    assert record["messages"] == [S1, user("p")] and not skipped.columns


def test_a_system_text_of_its_own_may_be_the_instruction():
    row = {"instruction": "Translate.", "input": "Haus", "messages": [user("x")]}
    row["messages"] = [{"role": "system", "content": "Translate."}, user("Haus")]
    assert read_prompts([row], chat=True)[0][0]["messages"] == row["messages"]


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "i", "input": "x"},
        {"system": "S", "instruction": " i ", "input": "x\n"},
        {"prompt": HH},
        {"prompt": "<|user|>hi<|end|>", "messages": [user("hi")]},
        {"messages": [S1, user("a"), bot("b"), user("c")]},
        {"messages": [user("i")], "tools": '[{"name": "f"}]'},
        {"messages": [user("a"), bot("", tool_calls=[CALL]), {"role": "tool", "content": "7"}]},
    ],
)
def test_what_is_written_with_its_messages_is_read_again(tmp_path, row):
    (written,), _ = read_prompts([row], chat=True)
    write_parquet(tmp_path / "a.parquet", [written | {"output": "o"}])
    (record,), skipped = read_instructions(tmp_path / "a.parquet", chat=True)
    assert record == written | {"output": "o"} and not skipped
    assert "messages beside" not in counts_text(skipped)


def test_a_transcript_is_noted_where_it_is_the_prompt():
    messages = [user("a"), bot("b"), user("c")]
    assert read_prompts([{"messages": messages}])[1].notes == {TRANSCRIPT: 1}
    rendered = {"prompt": "<u>a</u>b<u>c</u>", "messages": messages}
    (record,), skipped = read_prompts([rendered])
    assert record == {"prompt": rendered["prompt"]} and not skipped.notes and not skipped.columns


def test_turns_before_chosen_that_are_another_prompt():
    row = {"prompt": "p", "chosen": [user("u"), bot("c")], "rejected": [user("u"), bot("r")]}
    with pytest.raises(UserError, match="the turns before chosen are not the prompt's 1"):
        read_pairs([row])


@pytest.mark.parametrize("chat", [False, True])
def test_rows_that_differ_in_messages_alone(chat):
    rows = [{"prompt": "p", "messages": [system, user("p")]} for system in (S1, S2)]
    rows += rows[:1]
    pairs = [row | {"chosen": "a", "rejected": "b"} for row in rows]
    for kept, skipped in (read_prompts(rows, chat=chat), read_pairs(pairs, chat=chat)):
        # Without chat they are written alike, so one of them would only be repeated.
        assert len(kept) == 1 + chat and skipped == {"duplicate": 2 - chat}


def test_a_transcript_that_responses_repeat_is_cut_off():
    row = {"prompt": HH, "chosen": f"{HH} good", "rejected": f"{HH} bad"}
    (pair,), skipped = read_pairs([row])
    assert pair == {"prompt": HH, "chosen": " good", "rejected": " bad"} and not skipped.notes
    (record,), _ = read_instructions([{"prompt": HH, "completion": f"{HH} good"}])
    assert record == {"prompt": HH, "output": " good"}
    assert read_responses([row])[0][0].responses == [" good", " bad"]
    assert read_responses([{"prompt": HH, "output": f"{HH} good"}])[0][0].responses == [" good"]
    _, skipped = read_instructions([{"prompt": HH, "completion": HH}, {"prompt": HH, "completion": "x"}])
    assert skipped == {"empty response": 1}


def test_other_prompts_that_responses_repeat_are_named():
    asked = "What is 2+2?"
    _, skipped = read_pairs([{"prompt": asked, "chosen": f"{asked} It is 4.", "rejected": f"{asked} 5."}])
    assert skipped.notes == {"chosen and rejected begin with the prompt": 1}
    _, skipped = read_instructions([{"instruction": asked, "output": f"{asked} 4"}])
    assert skipped.notes == {"output begins with the prompt": 1}
    _, skipped = read_pairs([{"prompt": asked, "chosen": f"{asked} It is 4.", "rejected": "5"}])
    assert not skipped.notes
    _, skipped = read_instructions([{"instruction": "Hi", "output": "Hi there"}])
    assert not skipped.notes
