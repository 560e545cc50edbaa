"""Chat templates: one string, one tokenisation, one BOS, and exactly the assistant's words and ends trained."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from chat_tokenizers import CHATML, TOKENIZERS, ZEPHYR, build, rendered
from tokenizers import Tokenizer

from rlhf_jax.data.batches import pad
from rlhf_jax.data.chat.chat_encoding import encode_chats
from rlhf_jax.data.records.records import read_instructions, read_pairs, read_prompts
from rlhf_jax.data.tokenization import decode, encode_pairs, encode_prompts, encode_sft
from rlhf_jax.errors import UserError

ALL = pytest.mark.parametrize("style", TOKENIZERS)


def chat(*texts, system=""):
    """Turns of user and assistant by turns."""
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


CHATS = [
    chat("hi", "the cat"),
    chat("the cat", "sat on", "the mat", "and the dog", "sat", "on the cat"),
    chat("a", "a", "assistant", "user assistant"),  # what is said stands in the headers too
    chat("é 日本", "日本 é \U0001f642", "🙂", "é"),
    chat("lines", "one\n\ntwo\n  three", "two", "x\n\n\ny"),
    chat("spaces", "  the cat  ", "more", "the mat\n"),
    chat("symbols {{ x }} %}", "{% raw %} <html> [INST"),
]


def with_systems(style):
    return CHATS if style.startswith("mistral") else [*CHATS, chat("hi", "the cat", system="the system")]


@cache
def backend_of(style):
    return Tokenizer.from_str(TOKENIZERS[style].backend_tokenizer.to_str())


def reference(style, messages):
    """(ids, trained) up to the last trained token, token by token from the offsets of the Rust tokenizer."""
    tokenizer, backend = TOKENIZERS[style], backend_of(style)
    text, flags = rendered(style, messages)
    encoding = backend.encode(text, add_special_tokens=False)
    ids, trained, reached = [], [], 0
    for token, (begin, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        if begin == stop:  # spaces that the tokenizer left out of its offsets
            begin = min(begin, reached)
        ids.append(token)
        trained.append(any(flags[begin:stop]))
        reached = max(reached, stop)
    length = len(trained) - trained[::-1].index(True)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + ids[:length], [False] * len(bos) + trained[:length]


@ALL
def test_trained_are_the_tokens_of_the_assistant(style):
    chats = with_systems(style)
    for messages, found in zip(chats, encode_chats(chats, TOKENIZERS[style]), strict=True):
        ids, trained = reference(style, messages)
        assert found.ids.tolist() == ids, messages
        assert found.trained.tolist() == trained, messages


@ALL
def test_one_bos_and_one_end_per_turn(style):
    tokenizer = TOKENIZERS[style]
    for messages, found in zip(CHATS, encode_chats(CHATS, tokenizer), strict=True):
        ids = found.ids.tolist()
        if tokenizer.bos_token_id is not None:
            assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1
            assert not found.trained[0]
        turns = sum(m["role"] == "assistant" for m in messages)
        ends = [i for i, t in enumerate(ids) if t == tokenizer.eos_token_id and found.trained[i]]
        assert len(ends) == turns
        assert ends[-1] == len(ids) - 1
        assert tokenizer.pad_token_id not in ids


@ALL
def test_trained_tokens_decode_to_what_the_assistant_said(style):
    tokenizer = TOKENIZERS[style]
    for messages, found in zip(CHATS, encode_chats(CHATS, tokenizer), strict=True):
        said = [m["content"] for m in messages if m["role"] == "assistant"]
        runs, run = [], []
        for token, trained in zip(found.ids.tolist(), found.trained, strict=True):
            if trained and token == tokenizer.eos_token_id:
                runs.append(decode(tokenizer, run))
                run = []
            elif trained:
                run.append(token)
        assert not run
        assert [x.strip() for x in runs] == [x.strip() for x in said]


@ALL
def test_the_last_turn_alone(style):
    tokenizer = TOKENIZERS[style]
    every, last = (encode_chats(CHATS, tokenizer, all_turns=flag) for flag in (True, False))
    for a, b in zip(every, last, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert b.trained[b.trained.argmax() :].all()
        assert (b.trained & ~a.trained).sum() == 0


def rows_of(chats):
    """Records as the readers give them: the prompt as messages, and the response."""
    return read_instructions([{"messages": messages} for messages in chats], chat=True)[0]


@ALL
def test_records_of_several_turns(style):
    sequences, counts = encode_sft(rows_of(CHATS), TOKENIZERS[style], "chat", 500)
    assert not counts
    for i, messages in enumerate(CHATS):
        ids, trained = reference(style, messages)
        assert sequences[i].tolist() == ids
        begin, stop = sequences.offsets[i : i + 2]
        assert sequences.trained[begin:stop].tolist() == trained
        assert sequences.prompt_lengths[i] == trained.index(True)


@ALL
def test_of_single_turns_no_mask_is_kept(style):
    sequences, _ = encode_sft(rows_of([CHATS[0], CHATS[-1]]), TOKENIZERS[style], "chat", 500)
    assert sequences.trained is None
    assert set(pad(sequences, np.arange(2), 120, 0)) == {"tokens", "lengths", "prompt_lengths"}


@ALL
def test_limits(style):
    """Cut rows are counted, end with a trained token, and a row without one is dropped and counted."""
    messages = CHATS[1]
    ids, trained = reference(style, messages)
    filler = chat("a", "b")
    first, least = trained.index(True), len(reference(style, filler)[0])
    for limit in range(least, len(ids) + 2):
        sequences, counts = encode_sft(rows_of([messages, filler]), TOKENIZERS[style], "chat", limit)
        if limit <= first:
            assert counts == Counter({"prompt too long": 1}) and len(sequences) == 1
            continue
        assert counts == (Counter() if limit >= len(ids) else Counter({"response cut (row kept)": 1}))
        length = max(i for i in range(min(limit, len(ids))) if trained[i]) + 1
        assert sequences[0].tolist() == ids[:length]
        mask = trained[:length]
        if sequences.trained is None:
            assert all(mask[first:])
        else:
            assert sequences.trained[:length].tolist() == mask


@ALL
def test_arrays_carry_the_mask(style):
    tokenizer = TOKENIZERS[style]
    sequences, _ = encode_sft(rows_of(CHATS), tokenizer, "chat", 500)
    T = int(sequences.lengths.max()) + 3
    arrays = pad(sequences, np.array([4, 1, 0]), T, tokenizer.pad_token_id)
    for row, i in zip(range(3), (4, 1, 0), strict=True):
        ids, trained = reference(style, CHATS[i])
        assert arrays["tokens"][row].tolist() == ids + [tokenizer.pad_token_id] * (T - len(ids))
        assert arrays["trained"][row].tolist() == trained + [False] * (T - len(ids))


@ALL
def test_pairs_and_prompts_agree(style):
    """What is sampled from is what the pairs' responses follow; the response is the last turn alone."""
    tokenizer = TOKENIZERS[style]
    prompt = chat("the cat", "sat on", "the mat")
    say = [{"role": "assistant", "content": text} for text in ("and the dog", "the cat sat")]
    record = {"prompt": prompt, "chosen": [say[0]], "rejected": [say[1]]}
    rows, _ = read_pairs([record], chat=True)
    pairs, counts = encode_pairs(rows, tokenizer, "chat", 500)
    assert not counts
    prompts, counts, kept = encode_prompts(rows, tokenizer, "chat", 500)
    assert not counts and kept.tolist() == [0]
    for side, answer in zip(pairs, say, strict=True):
        ids, trained = reference(style, [*prompt, answer])
        assert side[0].tolist() == ids
        assert side.prompt_lengths[0] == len(prompts[0])
        assert all(trained[len(prompts[0]) :])
        assert ids[: len(prompts[0])] == prompts[0].tolist()
        assert decode(tokenizer, side[0][len(prompts[0]) :]).strip() == answer["content"]
    limit = max(int(side.lengths[0]) for side in pairs) - 1
    with pytest.raises(UserError, match="response too long 1"):
        encode_pairs(rows, tokenizer, "chat", limit)
    with pytest.raises(UserError, match=r"max_prompt_length: none of 1 rows fits .*prompt too long 1"):
        encode_prompts(rows, tokenizer, "chat", len(prompts[0]) - 1)


def test_layouts_give_the_same_conversation():
    user, said = {"role": "user", "content": "u\n\nx"}, "r"
    wanted = [{"role": "user", "content": "u\n\nx"}]
    for record in (
        {"messages": [user, {"role": "assistant", "content": said}]},
        {"conversations": [{"from": "human", "value": "u\n\nx"}, {"from": "gpt", "value": said}]},
        {"instruction": "u", "input": "x", "output": said},
        {"prompt": "u\n\nx", "completion": said},
        {"prompt": [user], "completion": [{"role": "assistant", "content": said}]},
    ):
        (row,), _ = read_instructions([record], chat=True)
        assert row["messages"] == wanted and row["output"] == said
        assert "messages" not in read_instructions([record])[0][0]
    turns = chat("u", "v", "w")
    transcript = "\n\nHuman: u\n\nAssistant: v\n\nHuman: w\n\nAssistant:"
    whole = [[*turns, {"role": "assistant", "content": text}] for text in ("a", "b")]
    for record in (
        {"chosen": f"{transcript} a", "rejected": f"{transcript} b"},
        {"chosen": whole[0], "rejected": whole[1]},
        {"prompt": "w", "chosen": whole[0], "rejected": whole[1]},  # UltraFeedback's
        {"prompt": turns, "chosen": "a", "rejected": "b"},
        {"prompt": transcript, "output_1": "a", "output_2": "b", "preference": 1},
    ):
        (row,), _ = read_pairs([record], chat=True)
        assert row["messages"] == turns
        assert (row["chosen"].strip(), row["rejected"].strip()) == ("a", "b")
    rows, skipped = read_prompts(
        [{"messages": [*turns, {"role": "assistant", "content": "a"}]}, {"prompt": turns}][:1] * 2, chat=True
    )
    assert [row["messages"] for row in rows] == [turns] and skipped == Counter(duplicate=1)


def test_rows_that_cannot_be_used_are_counted():
    tokenizer = TOKENIZERS["mistral"]
    rows = rows_of([CHATS[0], chat("hi", "the </s> cat"), chat("hi", "the cat", system="s"), CHATS[0]])
    sequences, counts = encode_sft(rows, tokenizer, "chat", 99)
    assert len(sequences) == 2
    assert counts == Counter(
        {
            "text holds a special token": 1,
            "chat template: Only user and assistant roles are supported!": 1,
        }
    )
    pairs = [
        {"prompt": "the </s>", "chosen": "a", "rejected": "b"},
        {"prompt": "the", "chosen": "a", "rejected": "b"},
    ]
    assert encode_pairs(pairs, tokenizer, "chat", 99)[1] == Counter({"text holds a special token": 1})
    found, counts, kept = encode_prompts(pairs, tokenizer, "chat", 99)
    assert (len(found), kept.tolist()) == (1, [1])
    assert counts == Counter({"text holds a special token": 1})


def test_a_template_that_rewrites_a_response_costs_the_row():
    special = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    shouting = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</aside>')[-1] }}")
    tokenizer = build(shouting, ["<|im_end|>", "<|im_start|>", "<|pad|>"], **special)
    rows = rows_of([chat("a", "b</aside>c"), chat("a", "b"), chat("a", "b</aside>c", "d", "e")])
    sequences, counts = encode_sft(rows, tokenizer, "chat", 99)
    assert len(sequences) == 1 and counts == Counter({"chat template rewrites a response": 2})


def test_a_template_without_an_end_gets_eos():
    special = {"eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = build(ZEPHYR.replace(" + eos_token", ""), ["</s>", "<pad>"], **special)
    (found,) = encode_chats([chat("hi", "the cat")], tokenizer)
    assert found.ids[-1] == tokenizer.eos_token_id and found.trained[-1]
    assert decode(tokenizer, found.ids[found.trained]) == "the cat"
    (cut,) = encode_chats([chat("hi", "the cat")], tokenizer, ended=[False])
    assert cut.ids.tolist() == found.ids[:-1].tolist() and cut.trained[-1]


def test_bos_that_is_written_twice_is_there_once():
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    order = ["<s>", "</s>", "<pad>"]
    twice = build("{{ bos_token }}{{ bos_token }}" + ZEPHYR, order, adds_bos=True, **special)
    never = build(ZEPHYR, order, **special)
    a, b = (encode_chats(CHATS, tokenizer) for tokenizer in (twice, never))
    for x, y in zip(a, b, strict=True):
        assert x.ids.tolist() == y.ids.tolist() and x.ids.tolist().count(0) == 1
        assert x.trained.tolist() == y.trained.tolist()


@pytest.mark.parametrize(
    ("template", "special", "words"),
    [
        (
            None,
            {"eos_token": "</s>"},
            r"has none; use a chat model's tokenizer, or set tokenizer\.chat_template",
        ),
        (
            CHATML.replace("<|im_end|>", "; that is all"),
            {"eos_token": "</s>"},
            r"ends a turn with '; that is all', which is \d+ tokens of plain text, and EOS is '</s>'",
        ),
        ("{{ messages[0]['content'] }}", {"eos_token": "</s>"}, "does not write what the assistant says"),
        (
            "{{ raise_exception('no') }}",
            {"eos_token": "</s>"},
            r"does not take a plain conversation \(.*no\)",
        ),
        (
            "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
            {"eos_token": "</s>"},
            r"does not take a plain conversation \(.*recursion",
        ),
    ],
)
def test_tokenizers_that_cannot_be_used(template, special, words):
    tokenizer = build(template, ["</s>", "<pad>", "<|im_end|>", "<|im_start|>"], pad_token="<pad>", **special)
    for encode in (encode_sft, encode_pairs, encode_prompts):
        rows = [{"instruction": "i", "input": "", "output": "o", "chosen": "a", "rejected": "b"}]
        with pytest.raises(UserError, match=words) as error:
            encode(rows, tokenizer, "chat", 99)
        assert str(error.value).startswith("template: ")


def test_turns_of_weight_0_are_shown_and_not_trained():

    tokenizer = TOKENIZERS["chatml"]
    turns = [("user", "a"), ("assistant", "a bad answer"), ("user", "b"), ("assistant", "a good answer")]
    messages = [{"role": role, "content": text} for role, text in turns]
    found = {}
    for name, marks in (("all", {}), ("weight", {"weight": 0}), ("train", {"train": False})):
        row = [dict(messages[0]), messages[1] | marks, *messages[2:]]
        rows, _ = read_instructions([{"messages": row}], chat=True)
        sequences, _ = encode_sft(rows, tokenizer, "chat", 400)
        trained = sequences.trained
        if trained is None:
            trained = np.arange(len(sequences.tokens)) >= sequences.prompt_lengths[0]
        found[name] = sequences.tokens, tokenizer.decode(sequences.tokens[trained])
    assert all(np.array_equal(tokens, found["all"][0]) for tokens, _ in found.values())
    assert "a bad answer" in found["all"][1] and "a good answer" in found["all"][1]
    assert found["weight"][1] == found["train"][1] == f"a good answer{tokenizer.eos_token}"
