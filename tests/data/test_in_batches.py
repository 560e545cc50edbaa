"""Rows that are encoded in batches are those that each conversation gives alone and the long way, token by token."""

import random

import numpy as np
import pytest
from chat_tokenizers import CHATML, LLAMA3, TOKENIZERS, build
from test_shown_turns import JOINED, NEWEST, NO_SYSTEM
from test_thoughts import TOKENS as THINKING
from tool_templates import TOOL_TOKENIZERS

from rlhf_jax.data.chat import outlines, turns
from rlhf_jax.data.chat.chat_encoding import encode_chat_prompts, encode_chats
from rlhf_jax.data.chat.chat_templates import kept, opened, unopened_note
from rlhf_jax.data.records.left_out import RowError
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_sft
from rlhf_jax.data.tokens import text_batches
from rlhf_jax.data.tokens.text_batches import ahead, tokens_of
from rlhf_jax.data.tokens.tokenizer_files import heads

# Templates that leave out, rewrite, repeat and refuse.
LOUD = CHATML.replace("m['content']", "(m['content'] | upper if m['content'] | length > 9 else m['content'])")
TWICE = CHATML.replace(
    "{{ m['content'] }}",
    "{{ m['content'] + (m['content'] if m['role'] == 'user' else '') }}"
    "{% if 'dog' in m['content'] %}{{ raise_exception('dogs') }}{% endif %}",
)
SHORT = LLAMA3.replace("| trim", "| trim | truncate(12, True, '')")
ORDER = ["<s>", "<|im_start|>", "<|im_end|>"]
ODD = {
    name: build(template, ORDER, eos_token="<|im_end|>", bos_token=None if name == "newest" else "<s>")
    for name, template in (
        ("no_system", NO_SYSTEM),
        ("newest", NEWEST),
        ("joined", JOINED),
        ("loud", LOUD),
        ("twice", TWICE),
    )
}
ALL = TOKENIZERS | THINKING | {f"tools_{name}": x for name, x in TOOL_TOKENIZERS.items()} | ODD
ALL["short"] = build(
    SHORT, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], eos_token="<|eot_id|>"
)
TEXTS = [
    "hi",
    "the cat",
    " sat on",
    "the mat\n",
    "\n\nand the dog ",
    "é 日本 \U0001f642",
    "a",
    "",
    "  ",
    "<think>\nx\n</think>\n\ny",
]
TEXTS += ["x\n</think>\n\ny", "cat {{ x }} [INST] 'q' \"r\"", "<|im_end|>", "0", "the dog sat on the cat"]


def conversations(count, seed):
    """Odd ones, plain ones, and some with fields that templates may read."""
    draw = random.Random(seed)
    for _ in range(count):
        chat = [{"role": "system", "content": draw.choice(TEXTS)}] if draw.random() < 0.3 else []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            chat += [{"role": role, "content": draw.choice(TEXTS)} for role in ("user", "assistant")]
        if draw.random() < 0.1:
            chat[-1]["reasoning_content"] = "two and two"
        if draw.random() < 0.1:
            chat[-1 - 2 * (len(chat) > 3)]["train"] = False
        yield chat


def alone(tokenizer, chat, whole, all_turns, how):
    """(ids, trained, notes) of one conversation in the long way; or the reason why it is left out."""
    turn = turns.turn_of(tokenizer, how)
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    chat = opened(chat) if turn.opens else chat
    if any(token in text for token in special for m in chat for text in _said(m)):
        return "text holds a special token"
    write = turns.as_sampled if how.generation_prompt == "sampling" else turns.as_templated
    try:
        text = write(kept(chat, how.thoughts), tokenizer, turn, all_turns, whole, how)
    except RowError as reason:
        return str(reason)
    ids, trained, joined = [], [], False
    for piece, spans in zip(text.pieces, text.spans, strict=True):
        found = tokenizer(
            piece, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False
        )
        reached = 0
        for token, (begin, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            joined |= any(begin < first < stop for first, _ in spans)
            begin, reached = (begin if begin < stop else min(begin, reached)), max(reached, stop)
            ids.append(token)
            trained.append(begin < stop and any(stop > first and begin < last for first, last in spans))
    if front := list(heads(tokenizer)):
        bare = next((i for i, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))
        ids, trained = front + ids[bare:], [False] * len(front) + trained[bare:]
    if True not in trained:
        return "empty response"
    length = len(trained) - trained[::-1].index(True)
    after = [] if turn.end or not whole else [turn.end_id]
    notes = unopened_note(chat, how) + text.notes
    joins = "a token joins prompt and response (row kept; data.generation_prompt=sampling parts them)"
    return ids[:length] + after, trained[:length] + [True] * len(after), (*notes, joins) if joined else notes


def prompt_alone(tokenizer, chat, how):
    """(ids, notes) of a prompt in the long way; or the reason why it is left out."""
    turn = turns.turn_of(tokenizer, how)
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    chat = opened(chat) if turn.opens else chat
    if any(token in text for token in special for m in chat for text in _said(m)):
        return "text holds a special token"
    try:
        text, notes = turns.prompt_of(kept(chat, how.thoughts, prompt=True), tokenizer, how)
    except RowError as reason:
        return str(reason)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    if front := list(heads(tokenizer)):
        ids = front + ids[next((i for i, x in enumerate(ids) if x != tokenizer.bos_token_id), len(ids)) :]
    return ids, unopened_note(chat, how) + notes


def _said(message):
    return turns.said_of(message) if message["role"] == "assistant" else (message["content"],)


HOW = [
    Handling(),
    Handling(thoughts="drop"),
    Handling(thoughts="last", generation_prompt="training"),
    Handling(generation_prompt="sampling"),
]


@pytest.mark.parametrize("name", ALL)
def test_equal_to_each_alone(name, monkeypatch):
    monkeypatch.setattr(text_batches, "BATCH", 7)
    tokenizer, chats = ALL[name], list(conversations(24, seed=len(name)))
    whole = [i % 5 > 0 for i in range(len(chats))]
    short, read = [], turns._read_marks
    monkeypatch.setattr(turns, "_read_marks", lambda *x: short.append(read(*x)) or short[-1])
    # An outline that is not right must show, and not be found out in time.
    monkeypatch.setattr(outlines, "_TRIALS", 0)
    monkeypatch.setattr(outlines, "_known", {})
    kinds = set()
    for how in HOW:
        for all_turns in (True, False):
            found = encode_chats(chats, tokenizer, all_turns=all_turns, ended=whole, how=how)
            for chat, ended, one in zip(chats, whole, found, strict=True):
                got = one if isinstance(one, str) else (one.ids.tolist(), one.trained.tolist(), one.notes)
                assert got == alone(tokenizer, chat, ended, all_turns, how), (how, chat)
                kinds.add(type(one))
    assert len(kinds) == 2
    # The short way is taken, or this test would compare the long way with itself.
    assert any(x is not None for x in short) or name == "twice"


@pytest.mark.parametrize("name", ALL)
def test_prompts_are_equal_to_each_alone(name, monkeypatch):
    monkeypatch.setattr(text_batches, "BATCH", 7)
    monkeypatch.setattr(outlines, "_TRIALS", 0)
    monkeypatch.setattr(outlines, "_known", {})
    tokenizer, chats = ALL[name], [chat[:-1] for chat in conversations(24, seed=len(name))]
    for how in HOW:
        for chat, one in zip(chats, encode_chat_prompts(chats, tokenizer, how), strict=True):
            got = one if isinstance(one, str) else (one.ids.tolist(), one.notes)
            assert got == prompt_alone(tokenizer, chat, how), (how, chat)


def test_batches_do_not_change_rows_or_counts(monkeypatch):
    chats = list(conversations(60, seed=1))
    rows = [
        {"messages": chat[:-1], "output": chat[-1]["content"], "ended": i % 3 > 0}
        for i, chat in enumerate(chats)
    ]
    plain = [{"instruction": row["messages"][-1]["content"], "output": row["output"]} for row in rows]
    for template, some in (("chat", rows), ("alpaca", plain)):
        found = []
        for size in (1, 8, 1024):
            monkeypatch.setattr(text_batches, "BATCH", size)
            sequences, counts = encode_sft(
                some, TOKENIZERS["llama3"], template, 30, Handling(too_long="cut_prompt")
            )
            found.append([None if x is None else x.tolist() for x in vars(sequences).values()] + [counts])
        assert found[0] == found[1] == found[2] and len(found[0][1]) > 20, template


def test_a_tokenizer_of_another_kind_is_called_as_it_is():
    tokenizer = TOKENIZERS["llama3"]

    class Loud(type(tokenizer)):
        def __call__(self, texts, **options):
            return super().__call__([text.upper() for text in texts], **options)

    loud = Loud(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    for spans in (False, True):
        wanted = tokens_of(["THE CAT", "", "SAT"], tokenizer, spans=spans)
        for one, other in zip(tokens_of(["the cat", "", "sat"], loud, spans=spans), wanted, strict=True):
            assert np.array_equal(one, other)


def test_what_goes_wrong_beside_the_caller_is_raised():
    assert list(ahead(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
    done = ahead(lambda x: 1 // x, [2, 1, 0, 3])
    assert [next(done), next(done)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(done)
