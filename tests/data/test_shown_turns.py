"""What the model reads and does not write: a chat template that leaves some of it out costs the row, or is said."""

from collections import Counter

import pytest
from chat_tokenizers import CHATML, build

from rlhf_jax.data.chat.chat_templates import BESIDE_CALLS, REWRITTEN_NOTE, SYSTEM_NOTE
from rlhf_jax.data.records.records import read_instructions, read_pairs, read_prompts
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_pairs, encode_prompts, encode_sft
from rlhf_jax.errors import UserError

TOKENS = ["<|im_start|>", "<|im_end|>"]
# In Phi 3's manner: a system text is left out.
NO_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
# Only the newest turns are written.
NEWEST = CHATML.replace("in messages", "in messages[-2:]")
# Mistral's: the system text stands in the last turn of the user; some write it as JSON.
JOINED = (
    "{% set s = messages[0] if messages[0]['role'] == 'system' %}{% for m in messages %}"
    "{% if m['role'] == 'user' and s %}<|im_start|>user\n"
    "{{ s['content'] | tojson }} {{ m['content'] | trim }}<|im_end|>\n"
    "{% elif m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = "a turn of the user that the chat template does not write"
BOT = "a turn of the assistant that the chat template does not write"


def tokenizer_of(template):
    return build(template, TOKENS, eos_token="<|im_end|>")


def turns(*texts, system=""):
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def counts_of(template, chat, **how):
    """The counts of a conversation as a demonstration, as a pair and as a prompt; a reason where it is left out."""
    tokenizer, handling, found = tokenizer_of(template), Handling(**how), []
    rows, _ = read_instructions([{"messages": chat}], chat=True)
    pairs, _ = read_pairs([{"prompt": chat[:-1], "chosen": "good", "rejected": "bad"}], chat=True)
    prompts, _ = read_prompts([{"prompt": chat[:-1]}], chat=True)
    for encode, these in ((encode_sft, rows), (encode_pairs, pairs), (encode_prompts, prompts)):
        try:
            found.append(dict(encode(these, tokenizer, "chat", 400, handling)[1]))
        except UserError as e:
            found.append(str(e).split("(", 1)[1])
    return found


@pytest.mark.parametrize("way", ["template", "training", "sampling"])
@pytest.mark.parametrize("text", ["Be a pirate.", "a", "q"])
def test_a_system_text_that_is_not_written_is_said(way, text):
    """Also one whose few letters stand elsewhere in the rendered text."""
    wanted = {SYSTEM_NOTE: 1}
    assert counts_of(NO_SYSTEM, turns("q", "arr", system=text), generation_prompt=way) == [wanted] * 3
    assert counts_of(NO_SYSTEM, turns("q", "arr"), generation_prompt=way) == [{}] * 3


@pytest.mark.parametrize("way", ["template", "training", "sampling"])
def test_turns_that_are_not_written_cost_the_row(way):
    chat = turns("first", "the cat", "u", "the mat")
    as_demonstration = USER if way == "sampling" else "chat template rewrites a response"
    found = counts_of(NEWEST, chat, generation_prompt=way)
    assert as_demonstration in found[0] and USER in found[1]
    first_alone = turns("u", "the cat", "u", "the mat")
    assert USER in counts_of(NEWEST.replace("-2:", "1:"), first_alone, generation_prompt=way)[1]
    silent = CHATML.replace("in messages %}", "in messages if not m['content'].startswith('the cat') %}")
    assert all(BOT in x for x in counts_of(silent, chat, generation_prompt=way)[1:])


@pytest.mark.parametrize("way", ["template", "training", "sampling"])
def test_what_is_trimmed_joined_or_within_json_is_written(way):
    chat = turns(" hi\n", "the cat\n", "  é\n x", "a", system='Say "é"\n  to all. ')
    assert counts_of(JOINED, chat, generation_prompt=way) == [{}] * 3


def test_a_text_that_is_written_otherwise_is_said():
    shouting = CHATML.replace(
        "m['content']", "(m['content'] if m['role'] == 'assistant' else m['content'] | upper)"
    )
    assert counts_of(shouting, turns("the cat", "sat")) == [{REWRITTEN_NOTE: 1}] * 3


def test_a_response_that_is_written_otherwise_costs_the_row():
    found = counts_of(CHATML.replace("m['content']", "m['content'] | upper"), turns("A", "sat"))
    assert "chat template rewrites a response" in found[0]


def test_what_is_said_beside_calls_of_an_earlier_turn():
    template = CHATML.replace(
        "{{ m['content'] }}",
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
        "{% else %}{{ m['content'] }}{% endif %}",
    )
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "x"}}}
    for text, reason in (("I look:", BESIDE_CALLS), ("", "")):
        said = {"role": "assistant", "content": text, "tool_calls": [call]}
        chat = [*turns("hour?"), said, {"role": "tool", "content": "12"}, *turns("u", "a")]
        for found in counts_of(template, chat)[1:]:
            assert found == {} if not reason else reason in found


def test_counted_beside_rows_that_are_kept():
    rows, _ = read_instructions(
        [{"messages": turns("q", "arr", system="s")}, {"messages": turns("q", "arr")}], chat=True
    )
    found, counts = encode_sft(rows, tokenizer_of(NO_SYSTEM), "chat", 400)
    assert len(found) == 2 and counts == Counter({SYSTEM_NOTE: 1})
