"""Tools in records: definitions reach the template, calls are written and trained, and what is not written is said."""

import copy
import datetime
import json
from collections import Counter

import numpy as np
import pytest
from chat_tokenizers import TOKENIZERS
from tool_templates import TOOL_TOKENIZERS

from rlhf_jax.data.chat.chat_templates import NOT_WRITTEN, TOOLS_NOTE
from rlhf_jax.data.chat.tools import NEED_CHAT
from rlhf_jax.data.files.tables import write_parquet
from rlhf_jax.data.records.records import counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_pairs, encode_prompts, encode_sft
from rlhf_jax.errors import UserError

ALL = pytest.mark.parametrize("style", TOOL_TOKENIZERS)
TOOL = {"type": "function", "function": {"name": "clock", "description": "the hour", "parameters": {}}}


def call(name="clock", **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def bot(text, *calls):
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


def answer(text):
    return {"role": "tool", "content": text}


CHATS = [
    [user("the hour?"), bot("", call(zone="é 日本")), answer("12"), bot("the cat sat")],
    [user("hi"), bot("the mat"), user("the hour?"), bot("", call())],
    [
        user("a"),
        bot("", call(x={"y": [1, None, "z"]})),
        answer('{"a": 1}'),
        bot("b"),
        user("c"),
        bot("", call("date", n=1.5)),
        answer(""),
        bot("", call(zone='a\n"b"')),
        answer("d"),
        bot("e"),
    ],
]


def encoded(chat, tokenizer, tools=(TOOL,), **how):
    """(ids, trained, counts) of the only record of a conversation."""
    rows, skipped = read_instructions([{"messages": chat, "tools": list(tools)}], chat=True)
    assert not skipped and not skipped.columns, counts_text(skipped)
    found, counts = encode_sft(rows, tokenizer, "chat", 2000, Handling(**how))
    trained = found.trained
    if trained is None:
        trained = np.arange(len(found.tokens)) >= found.prompt_lengths[0]
    return found.tokens, trained, counts


def with_texts(chat):
    """The conversation with arguments as JSON texts, as OpenAI's files keep them."""

    def changed(called):
        function = called["function"]
        return called | {
            "function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        }

    return [
        m | {"tool_calls": [changed(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in chat
    ]


@ALL
@pytest.mark.parametrize("chat", CHATS)
def test_ids_and_trained_tokens_are_those_of_transformers(style, chat):
    tokenizer = TOOL_TOKENIZERS[style]
    theirs = tokenizer.apply_chat_template(
        with_texts(chat) if style == "deepseek" else chat,
        tools=[TOOL],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = np.array(theirs["assistant_masks"], bool)
    last = int(np.flatnonzero(mask)[-1]) + 1
    for record in (chat, with_texts(chat)):
        ids, trained, counts = encoded(record, tokenizer)
        assert ids.tolist() == theirs["input_ids"][:last]
        assert trained.tolist() == mask[:last].tolist()
        assert counts == (Counter({TOOLS_NOTE: 1}) if style == "deepseek" else Counter())


def test_only_what_is_to_be_trained():
    first, *others = CHATS[0]
    shown = [first, others[0] | {"weight": 0}, *others[1:]]
    tokenizer = TOOL_TOKENIZERS["qwen"]
    ids, trained, _ = encoded(shown, tokenizer)
    assert ids.tolist() == encoded(CHATS[0], tokenizer)[0].tolist()
    assert tokenizer.decode(ids[trained]) == "the cat sat<|im_end|>"


CALLED = {"role": "assistant", "content": None, "tool_calls": [call(zone="here")]}
SAME = [
    {"tools": json.dumps([TOOL])},
    {"tools": [json.dumps(TOOL)]},
    {"tools": [TOOL["function"]]},
    {"tools": json.dumps(TOOL["function"])},
    {"functions": [TOOL["function"]]},
    {"tools": [TOOL | {"strict": None}], "functions": []},
    {"messages": [user("u") | {"tools": [TOOL]}, CALLED]},
    {"messages": json.dumps([user("u"), CALLED]), "tools": [TOOL]},
    {"messages": [user("u"), bot("", call(zone="here", other=None))], "tools": [TOOL]},
    {"messages": [user("u"), bot(None, {"name": "clock", "arguments": '{"zone": "here"}'})], "tools": [TOOL]},
    {
        "messages": [user("u"), bot(None) | {"function_call": CALLED["tool_calls"][0]["function"]}],
        "functions": [TOOL["function"]],
    },
    {
        "messages": [],
        "conversations": [
            {"from": "human", "value": "u"},
            {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "here"}}'},
        ],
        "tools": json.dumps([TOOL["function"]]),
    },
    {"prompt": "u", "completion": [CALLED], "messages": None, "tools": [TOOL]},
]


@pytest.mark.parametrize("row", SAME)
def test_records_of_all_kinds_give_the_same_tokens(row):
    tokenizer = TOOL_TOKENIZERS["qwen"]
    wanted = encoded([user("u"), CALLED], tokenizer)
    rows, skipped = read_instructions([{"messages": [user("u"), CALLED]} | row], chat=True)
    found, counts = encode_sft(rows, tokenizer, "chat", 999)
    assert found.tokens.tolist() == wanted[0].tolist() and not counts and not skipped
    assert set(skipped.columns) == ({"null arguments of tool_calls"} if "other" in str(row) else set())


def test_answers_of_tools_by_any_name():
    first, called, told, said = CHATS[0]
    tokenizer = TOOL_TOKENIZERS["qwen"]
    wanted = encoded(CHATS[0], tokenizer)[0].tolist()
    for role in ("tool", "function", "observation", "ipython", "tool_response"):
        chat = [first, called, told | {"role": role, "name": "clock", "tool_call_id": "1"}, said]
        assert encoded(chat, tokenizer)[0].tolist() == wanted


@ALL
def test_prompts_and_pairs(style, tmp_path):
    """What is sampled from is what the responses of pairs follow, also after both were written and read again."""
    tokenizer, tools = TOOL_TOKENIZERS[style], [TOOL]
    for prompt in (CHATS[0][:1], CHATS[0][:3], CHATS[2][:9]):
        sides = {"chosen": [bot("", call(zone="a"))], "rejected": [bot("", call(zone="b"))]}
        pair, _ = read_pairs([{"prompt": prompt, "tools": tools} | sides], chat=True)
        pairs, _ = encode_pairs(pair, tokenizer, "chat", 2000)
        rows, _ = read_prompts([{"messages": prompt, "tools": tools}], chat=True)
        write_parquet(tmp_path / "rows.parquet", rows)
        again, skipped = read_prompts(tmp_path / "rows.parquet", chat=True)
        assert not skipped and not skipped.columns
        for found in (rows, again):
            asked, counts, _ = encode_prompts(found, tokenizer, "chat", 2000)
            assert set(counts) == ({TOOLS_NOTE} if style == "deepseek" else set())
            for side in pairs:
                assert side[0][: side.prompt_lengths[0]].tolist() == asked[0].tolist()
        said = [tokenizer.decode(side[0][side.prompt_lengths[0] :]) for side in pairs]
        assert '"a"' in said[0] and said[0].replace('"a"', '"b"') == said[1]


def test_rows_that_differ_in_calls_or_tools_alone_are_no_duplicates():
    sides = {"chosen": [bot("", call(zone="a"))], "rejected": [bot("", call(zone="b"))]}
    rows = [{"prompt": [user("u")], "tools": [TOOL]} | sides] * 2
    rows.append(rows[0] | {"chosen": [bot("", call(zone="c"))]})
    rows.append(rows[0] | {"rejected": sides["chosen"]})
    kept, skipped = read_pairs(rows, chat=True)
    assert len(kept) == 2 and skipped == {"duplicate": 1, "identical outputs": 1}
    prompts = [{"prompt": "u", "tools": [TOOL]}, {"prompt": "u"}, {"prompt": "u"}]
    kept, skipped = read_prompts(prompts, chat=True)
    assert len(kept) == 2 and skipped == {"duplicate": 1}


def test_calls_and_thoughts_are_scored():
    tokenizer, tools = TOOL_TOKENIZERS["qwen"], {"tools": [TOOL]}
    *before, last = CHATS[1]
    for said in (last, bot("4") | {"reasoning_content": "2 and 2"}):
        wanted = encoded([*before, said], tokenizer)[0].tolist()
        sides = {"chosen": [said], "rejected": [bot("x")]}
        for row in (
            {"messages": [*before, said]},
            {"prompt": before, "output": [said]},
            {"prompt": before} | sides,
        ):
            (read,), left_out = read_responses([row | tools], chat=True)
            assert not left_out and not left_out.columns
            found, _ = encode_sft(read.records[:1], tokenizer, "chat", 999)
            assert found.tokens.tolist() == wanted


def test_other_templates_say_what_they_do_not_write():
    rows = [{"messages": CHATS[0], "tools": [TOOL]}, {"messages": [user("u"), bot("r")], "tools": [TOOL]}]
    kept, skipped = read_instructions(rows)
    assert len(kept) == 1 and skipped == {NEED_CHAT: 1} and skipped.columns == {"tools": 1}
    kept, skipped = read_instructions(rows, chat=True)
    assert len(kept) == 2 and not skipped.columns
    found, counts = encode_sft(kept, TOKENIZERS["chatml"], "chat", 999)
    assert len(found) == 1 and counts == {NOT_WRITTEN: 1, TOOLS_NOTE: 1}
    asked, counts, _ = encode_prompts(kept[1:], TOKENIZERS["chatml"], "chat", 999)
    assert len(asked) == 1 and counts == {TOOLS_NOTE: 1}


@pytest.mark.parametrize(
    ("style", "change", "chat", "reason"),
    [
        ("llama", ("", ""), [user("u"), bot("", call(), call())], "chat template: only one call at once!"),
        (
            "llama",
            ("", ""),
            [user("u"), bot("so:", call())],
            "chat template leaves out what is said beside tool",
        ),
        ("qwen", ("c.arguments | tojson", "'{}'"), CHATS[0], f"{NOT_WRITTEN} with their arguments"),
        (
            "qwen",
            ("m.content + '\n</tool_r", "'\n</tool_r"),
            CHATS[0],
            "answers of tools that the chat template",
        ),
        ("qwen", ("", ""), [user("u"), bot("", call("<|im_end|>"))], "text holds a special token"),
        ("qwen", ("", ""), [user("u"), bot("", call(x="<|im_end|>"))], "text holds a special token"),
    ],
)
def test_what_is_lost_costs_its_row(style, change, chat, reason):
    tokenizer = copy.copy(TOOL_TOKENIZERS[style])
    tokenizer.chat_template = tokenizer.chat_template.replace(*change)
    with pytest.raises(UserError) as error:
        encoded(chat, tokenizer)
    assert reason in str(error.value)


def test_what_generation_prompt_sampling_cannot_write():
    how = {"generation_prompt": "sampling"}
    ids, trained, _ = encoded(CHATS[0], TOOL_TOKENIZERS["qwen"], **how)
    assert TOOL_TOKENIZERS["qwen"].decode(ids[trained]) == "the cat sat<|im_end|>"
    with pytest.raises(UserError, match=r"tool calls, which data\.generation_prompt=sampling cannot write"):
        encoded(CHATS[1], TOOL_TOKENIZERS["qwen"], **how)


def test_thoughts_beside_calls():
    """A template that has no field for thoughts is given them within the text before the call."""
    chat = [user("u"), bot("", call()) | {"reasoning_content": "hm"}]
    tokenizer = TOOL_TOKENIZERS["qwen"]
    ids, trained, counts = encoded(chat, tokenizer)
    assert tokenizer.decode(ids[trained]).startswith("<think>\nhm\n</think>\n\n\n<tool_call>")
    assert counts == {"thoughts written as <think>...</think> (row kept)": 1}
    with pytest.raises(UserError, match="leaves out"):
        encoded(chat, TOOL_TOKENIZERS["llama"])


@pytest.mark.parametrize("tools", ["clock", "[3]", 3, [["x"]], '{"a":'])
def test_tools_that_cannot_be_read(tools):
    kept, skipped = read_instructions(
        [{"messages": CHATS[0], "tools": tools}, {"messages": CHATS[1]}], chat=True
    )
    assert len(kept) == 1 and skipped == {"unreadable tools": 1}


def test_odd_ones_cost_their_row():
    nan = bot(None, call(x=float("nan")))
    rows = [
        {"messages": CHATS[1]},
        {"messages": CHATS[1], "tools": {"clock": TOOL["function"]}},
        {"messages": [user("u"), nan]},
        {"messages": [user("u"), bot(None, call(x=datetime.date(2026, 1, 1)))]},
        {"messages": [user("u"), bot(None, call()), answer(None), bot("r")]},
    ]
    kept, skipped = read_instructions(rows, chat=True)
    assert len(kept) == 1
    assert skipped == {
        "tools without a name": 1,
        "tool calls hold what JSON cannot": 2,
        "message without content": 1,
    }
    (row,), _ = read_prompts([{"prompt": [answer("x")]}], chat=True)
    assert row["messages"] == [answer("x")]


def test_no_tools_are_none():
    for tools in (None, [], "[]", "", float("nan")):
        (row,), _ = read_instructions([{"messages": [user("u"), bot("r")], "tools": tools}], chat=True)
        assert row["messages"] == [user("u")]
