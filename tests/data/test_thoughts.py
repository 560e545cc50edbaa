"""Reasoning models: their thoughts are trained, left out, or the row says why not; prompts meet training text."""

import datetime
from collections import Counter

import pytest
from chat_tokenizers import CHATML, TOKENIZERS, build

from rlhf_jax.data.chat import chat_templates
from rlhf_jax.data.records.records import read_instructions, read_pairs, read_prompts
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_pairs, encode_prompts, encode_sft
from rlhf_jax.errors import UserError

# In Qwen3's manner: thoughts of earlier turns are left out, the last turn always has a think block.
QWEN = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else %}"
    "{%- set r = '' %}{%- set c = m.content %}"
    "{%- if m.reasoning_content is string %}{%- set r = m.reasoning_content %}"
    "{%- elif '</think>' in c %}{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}{{ '<|im_start|>assistant\n<think>\n' + r + '\n</think>\n\n' + c }}"
    "{%- else %}{{ '<|im_start|>assistant\n' + c }}{%- endif %}{{ '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
# In the manner of R1's distills: thoughts are left out always, and the generation prompt opens them.
R1 = (
    "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|im_start|>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{%- set c = m.content.split('</think>')[-1] %}"
    "{{ '<|eom|>' + c + '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|eom|><think>\n' }}{%- endif %}"
)
ORDER = ["<s>", "<|im_start|>", "<|im_end|>", "<|eom|>", "<pad>"]
SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
TOKENS = {"qwen": build(QWEN, ORDER[1:], **{k: v for k, v in SPECIAL.items() if k != "bos_token"})}
TOKENS |= {"r1": build(R1, ORDER, **SPECIAL), "plain": TOKENIZERS["chatml"]}
TAGS = build(CHATML, ["<|im_end|>", "<|im_start|>", "<think>", "</think>"], eos_token="<|im_end|>")

USER = {"role": "user", "content": "2+2?"}
FIELD = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
OTHER_FIELD = {"role": "assistant", "content": "4", "thinking": "two and two"}
TEXT = {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"}
OPENED = {"role": "assistant", "content": "two and two\n</think>\n\n4"}  # sampled behind "<think>\n"
WHOLE = "<think>\ntwo and two\n</think>\n\n4<|im_end|>"


def trained(tokenizer, *messages, **how):
    """(what is trained of a conversation, what stands before the last stretch of it, counts)."""
    rows, skipped = read_instructions([{"messages": list(messages)}], chat=True)
    assert not skipped
    found, counts = encode_sft(rows, tokenizer, "chat", 400, Handling(**how))
    mask = [True] * len(found[0]) if found.trained is None else found.trained
    ids, n = found[0].tolist(), int(found.prompt_lengths[0])
    said = [i for i in range(n, len(ids)) if mask[i]]
    return tokenizer.decode([ids[i] for i in said]), tokenizer.decode(ids[:n]), counts


def prompt(tokenizer, *messages, **how):
    rows, _ = read_prompts([{"prompt": list(messages)}], chat=True)
    found, counts, _ = encode_prompts(rows, tokenizer, "chat", 400, Handling(**how))
    return tokenizer.decode(found[0]), counts


# Not OPENED with the plain template: one that writes any text writes this one, too.
@pytest.mark.parametrize(
    ("name", "message"),
    [("qwen", x) for x in (FIELD, OTHER_FIELD, TEXT, OPENED)]
    + [("plain", x) for x in (FIELD, OTHER_FIELD, TEXT)],
)
def test_thoughts_are_trained_wherever_the_record_keeps_them(name, message):
    said, before, counts = trained(TOKENS[name], USER, message)
    assert said == WHOLE
    assert before == prompt(TOKENS[name], USER)[0]
    inline = name == "plain" and message is not TEXT
    note = Counter({"thoughts written as <think>...</think> (row kept)": 1})
    assert counts == (note if inline else Counter())


def test_tags_that_are_special_tokens():
    said, _, counts = trained(TAGS, USER, TEXT)
    assert said == WHOLE and not counts
    rows = [{"prompt": [{"role": "user", "content": "</think>"}]}, {"prompt": [USER]}]
    _, counts, _ = encode_prompts(read_prompts(rows, chat=True)[0], TAGS, "chat", 99)
    assert counts == Counter({"text holds a special token": 1})


@pytest.mark.parametrize("message", [FIELD, TEXT, OPENED])
def test_without_thoughts(message):
    said, before, counts = trained(TOKENS["qwen"], USER, message, thoughts="drop")
    assert said == "4<|im_end|>"
    # Only of a text without the first tag it is a guess what its beginning is.
    assert counts == (Counter({chat_templates.UNOPENED_NOTE: 1}) if message is OPENED else Counter())
    assert before == prompt(TOKENS["qwen"], USER, thoughts="drop")[0]
    assert before.endswith("assistant\n<think>\n\n</think>\n\n")
    assert trained(TOKENS["plain"], USER, message, thoughts="drop")[0] == "4<|im_end|>"


LITERAL = [
    "In HTML, <b> and </think> differ.",
    "Write <think> first and\n</think>\nlast.",
    "The tag </think>\n\nends thoughts; see\n</think>",
]


@pytest.mark.parametrize("text", LITERAL)
def test_an_answer_that_speaks_of_the_tags_is_no_thoughts(text):
    answer = {"role": "assistant", "content": text}
    for how in ({}, {"thoughts": "drop"}, {"generation_prompt": "sampling"}):
        assert trained(TOKENS["plain"], USER, answer, **how) == (
            f"{text}<|im_end|>",
            prompt(TOKENS["plain"], USER)[0],
            Counter(),
        )
        history = prompt(TOKENS["plain"], USER, answer, USER, **how)
        assert text in history[0] and not history[1]
    # This template takes the tag for the end of thoughts, and so would have another response trained.
    with pytest.raises(UserError, match="chat template rewrites a response"):
        trained(TOKENS["qwen"], USER, answer)


def test_behind_a_prompt_that_opens_the_thoughts_every_closing_tag_ends_them():
    for text in ("so <think> it is</think>4", "two and two</think>4", "</think>4"):
        answer = {"role": "assistant", "content": text}
        for how in ({"thoughts": "drop"}, {"thoughts": "drop", "generation_prompt": "training"}):
            said, _, counts = trained(TOKENS["r1"], USER, answer, **how)
            assert said.endswith("4<|im_end|>") and text[:3] not in said
            assert chat_templates.UNOPENED_NOTE not in counts
        said, _, counts = trained(TOKENS["r1"], USER, answer, generation_prompt="sampling")
        assert said == text.replace("</think>", "\n</think>\n\n") + "<|im_end|>" and not counts
    drop = {"thoughts": "drop"}
    guessed = trained(TOKENS["plain"], USER, OPENED, generation_prompt="sampling")
    assert guessed[0] == WHOLE and guessed[2] == Counter({chat_templates.UNOPENED_NOTE: 1})
    assert prompt(TOKENS["plain"], USER, OPENED, USER, **drop)[1] == {chat_templates.UNOPENED_NOTE: 1}
    assert prompt(TOKENS["plain"], USER, FIELD | {"content": "a\n</think>\nb"}, USER, **drop)[1] == {}


def test_of_the_last_turn_alone():
    asked = {"role": "user", "content": "3+3?"}
    turns = (USER, TEXT, asked, FIELD)
    said, _, counts = trained(TOKENS["qwen"], *turns, thoughts="last")
    assert said == "4<|im_end|>" + WHOLE and not counts
    with pytest.raises(
        UserError, match=r"^none of 1 rows can be used .*leaves out thoughts of earlier turns"
    ):
        trained(TOKENS["qwen"], *turns)
    assert trained(TOKENS["plain"], *turns, thoughts="last")[0] == "4<|im_end|>" + WHOLE
    history = prompt(TOKENS["plain"], USER, TEXT, asked, thoughts="last")[0]
    assert "think" not in history
    assert "two and two" in prompt(TOKENS["plain"], USER, TEXT, asked)[0]


def test_an_empty_block_is_counted():
    said, _, counts = trained(TOKENS["qwen"], USER, {"role": "assistant", "content": "4"})
    assert said.startswith("<think>\n\n</think>")
    assert counts == Counter({"empty think block of the chat template trained (row kept)": 1})


DIFFERS = "chat template begins a response otherwise in training text than where it is sampled"


def test_a_generation_prompt_that_differs_is_counted_and_can_be_made_to_meet():
    answer = {"role": "assistant", "content": "4"}
    r1 = TOKENS["r1"]
    for counts in (trained(r1, USER, answer)[2], prompt(r1, USER)[1]):
        ((said, n),) = counts.items()
        assert said.startswith(DIFFERS) and n == 1
    for way in ("training", "sampling"):
        said, before, counts = trained(r1, USER, answer, generation_prompt=way)
        asked, also = prompt(r1, USER, generation_prompt=way)
        assert before == asked and not counts and not also
    assert before.endswith("<think>\n") and said == "\n</think>\n\n4<|im_end|>"
    with pytest.raises(
        UserError, match=r"leaves out thoughts \(data\.generation_prompt=sampling writes them"
    ):
        trained(r1, USER, TEXT)
    for message in (TEXT, FIELD, OPENED):
        said, before, counts = trained(r1, USER, message, generation_prompt="sampling")
        assert before == asked and said == "two and two\n</think>\n\n4<|im_end|>" and not counts


def test_pairs_meet_too():
    sides = {"chosen": [TEXT], "rejected": [{"role": "assistant", "content": "<think>\nx\n</think>\n\n5"}]}
    rows, _ = read_pairs([{"prompt": [USER], **sides}], chat=True)
    for name, way in (("qwen", "template"), ("r1", "sampling")):
        tokenizer, how = TOKENS[name], Handling(generation_prompt=way)
        pairs, counts = encode_pairs(rows, tokenizer, "chat", 99, how)
        asked = prompt(tokenizer, USER, generation_prompt=way)[0]
        assert not counts
        for side, said in zip(pairs, ("two and two\n</think>\n\n4", "x\n</think>\n\n5"), strict=True):
            ids, n = side[0].tolist(), int(side.prompt_lengths[0])
            assert tokenizer.decode(ids[:n]) == asked
            assert tokenizer.decode(ids[n:]).removeprefix("<think>\n") == said + "<|im_end|>"


def test_a_token_across_the_border_is_counted_and_parted():
    template = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '') }}{% endfor %}"
    glued = build(template, ["</s>"], eos_token="</s>")
    row = (USER | {"content": "the c"}, {"role": "assistant", "content": "at"})
    note = "a token joins prompt and response (row kept; data.generation_prompt=sampling parts them)"
    said, before, counts = trained(glued, *row)
    assert (said, before, counts) == (" cat</s>", "the", Counter({note: 1}))
    said, before, counts = trained(glued, *row, generation_prompt="sampling")
    assert (said, before, counts) == ("at</s>", prompt(glued, row[0])[0], Counter())


def test_named_templates():
    several = build(None, ["<|im_end|>", "<|im_start|>"], eos_token="<|im_end|>")
    several.chat_template = {"rag": CHATML, "tool_use": "{{ 'x' }}"}
    answer = {"role": "assistant", "content": "4"}
    with pytest.raises(
        UserError, match=r"chat templates rag, tool_use and no default; .*data\.chat_template=rag"
    ):
        trained(several, USER, answer)
    assert trained(several, USER, answer, chat_template="rag")[0] == "4<|im_end|>"
    with pytest.raises(
        UserError, match=r"data\.chat_template: .* has no 'raq'; its templates are rag, tool_use"
    ):
        trained(several, USER, answer, chat_template="raq")
    with pytest.raises(UserError, match="it has one without a name"):
        trained(TOKENS["plain"], USER, answer, chat_template="rag")


def test_the_clock_stands_still():
    clock = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + CHATML
    tokenizer = build(clock, ["<|im_end|>", "<|im_start|>"], eos_token="<|im_end|>")
    assert chat_templates.asks_for_the_date(tokenizer)
    assert not chat_templates.asks_for_the_date(TOKENS["plain"])
    assert prompt(tokenizer, USER, date="2024-07-26")[0].startswith("26 Jul 2024 00:00:00.000000<")
    today = datetime.date.today().strftime("%d %b %Y")
    _, before, counts = trained(tokenizer, USER, {"role": "assistant", "content": "4"})
    assert before.startswith(today) and not counts
    aliased = "{% set now = strftime_now %}{{ now('%d %b %Y') }}"
    for asks in ("{{ strftime_now(messages[0]['content']) }}", aliased, "{{ [strftime_now][0]('%Y') }}"):
        computed = build(asks + CHATML, ["<|im_end|>"], eos_token="<|im_end|>")
        with pytest.raises(UserError, match="it computes how it asks for the time"):
            prompt(computed, USER, date="2001-01-01")


def test_a_template_that_asks_whether_there_is_a_clock():
    """Llama 3.2's way, and a comment."""
    asks = (
        "{#- strftime_now is used here -#}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}'
        "{%- endif %}{%- endif %}{{- date_string }}{%- if strftime_now is not defined %}x{%- endif %}"
    )
    tokenizer = build(asks + CHATML, ["<|im_end|>", "<|im_start|>"], eos_token="<|im_end|>")
    assert prompt(tokenizer, USER, date="2001-01-02")[0].startswith("02 Jan 2001<|im_start|>user")
