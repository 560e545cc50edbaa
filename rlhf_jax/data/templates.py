"""Prompt templates: an instruction record -> the text a model is asked to continue.

The template `chat` is not here: it is the tokenizer's own, see `chat.chat_templates`.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlhf_jax.data.records.messages import is_transcript, prompt_columns
from rlhf_jax.errors import UserError

# The settings of a page's `data` that say what is done with rows that can be treated in more than one way.


@dataclass(frozen=True)
class Handling:
    """How rows are encoded where there is a choice.

    Attributes:
    not_ended: responses that their sampler cut, as their records say: keep (without an end token) or drop.
    too_long: rows of more than max_length tokens: drop, cut_response or cut_prompt (at its left).
    thoughts: of a reasoning model: keep, drop, or those of the last turn alone (last).
    generation_prompt: where the chat template begins a response otherwise in training text than where it is
        sampled: template (as it says), training (prompts end as in training text) or sampling (training text
        begins as sampling does; the last turn alone is trained).
    chat_template: which of a tokenizer's named templates; "" for its default.
    date: what templates that ask for the date are told, as 2026-11-29; "" for today.
    """

    not_ended: str = "keep"
    too_long: str = ""
    thoughts: str = "keep"
    generation_prompt: str = "template"
    chat_template: str = ""
    date: str = ""


def handling_of(data: Any) -> Handling:
    """Reads the settings from a page's `data` group; what it does not have stays at its default."""
    return Handling(**{field.name: data[field.name] for field in fields(Handling) if field.name in data})


# Each template is a pair: the text for rows without an input, and for rows with one.
TEMPLATES: dict[str, tuple[str, str]] = {
    # AlpacaFarm's v0_inputs_noinputs, character for character.
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{instruction}\n\n### Response:",
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
        "### Input:\n{input}\n\n### Response:",
    ),
    # The same without the preamble, for small models whose every token of context costs.
    "brief": (
        "### Instruction:\n{instruction}\n\n### Response:",
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    ),
    # That of dpo-rlaif for ShareGPT, with the space at the end; its instructions have no input.
    "human_assistant": (
        "Human: {instruction}\n\nAssistant: ",
        "Human: {instruction}\n\n{input}\n\nAssistant: ",
    ),
}

_FIELD = re.compile(r"\{(instruction|input)\}")


def render(row: Mapping[str, Any], template_name: str) -> str:
    """Renders the prompt text of a row.

    A row with a `prompt` string is that string, unchanged. Otherwise `instruction` and, when it is neither
    missing nor empty, `input` go into the template. Braces and placeholders in the data stay as they are.
    Raises UserError for an unknown template name.
    """
    without_input, with_input = _template(template_name)
    if isinstance(row.get("prompt"), str):
        return row["prompt"]
    template = with_input if row.get("input") else without_input
    # One pass, and no str.format: "{input}" or other braces
    # within an instruction are text and stay as they are.
    return _FIELD.sub(lambda match: row[match.group(1)], template)


def _template(name: str) -> tuple[str, str]:
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name == "chat":
        raise UserError(
            "template: chat is written by a tokenizer that has one; name such a tokenizer or model"
        )
    close = difflib.get_close_matches(str(name), TEMPLATES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"template: {name!r} is unknown; {hint}use one of {', '.join(sorted([*TEMPLATES, 'chat']))}"
    )


# Finds texts that already hold what a template writes, which would be wrapped in a template a second time.

# What templates write into a prompt as plain text, at the beginning of a paragraph.
_HEADS = re.compile(
    r"(?:^|\n\n)(### (?:Instruction|Response|Input|Human|Assistant|User|System):|(?:Human|Assistant|USER|ASSISTANT):)"
)
# What they write as tokens of their own; in a text these are only characters.
_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|user|assistant|system|end|eot_id|begin_of_text|start_header_id|end_header_id"
    r"|endoftext|end_of_turn|start_of_role|end_of_role)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<｜(?:User|Assistant)｜>|</s>"
)
TRANSCRIPT = "several turns are written as a Human/Assistant transcript, and not as data.template=chat would"


def mark_note(record: Mapping[str, Any], chat: bool) -> str | None:
    """Returns a remark on a record whose texts already hold a template's text, None where there is nothing to say.

    chat: whether the tokenizer's own template writes the prompt. Also said: that a conversation is written as a
    transcript, because other templates know a single turn alone.
    """
    # A remark and not a refusal, since a text may speak about
    # templates. Tokens come first: they are the surer sign.
    for where, text in _texts(record):
        # All of them begin with one of these two, which most texts lack, and looking for a sign is quick.
        if ("<" in text or "[" in text) and (found := _TOKENS.search(text)):
            return (
                f"{where} already holds a template's {found[0]!r}, which is read as plain text and not as a "
                "token; give messages without it and set data.template=chat"
            )
    for where, text in _texts(record):
        # A response may well contain headings, and an hh-rlhf
        # transcript is known as such and taken apart into its turns.
        if where in ("output", "chosen", "rejected") or is_transcript(text):
            continue
        if ":" in text and (found := _HEADS.search(text)):
            how = _what_happens(where, chat)
            return f"{where} already holds a template's text ({found[1]!r}); {how}"
    messages = record.get("messages") or ()
    # Of messages beside a prompt of its own the text is used as it is.
    if not chat and len(messages) > 1 and prompt_columns(messages).get("prompt") == record.get("prompt"):
        return TRANSCRIPT
    return _repeats(record)


def _repeats(record: Mapping[str, Any]) -> str | None:
    """Says where all responses of a record begin with the prompt, which is then trained as their words."""
    asked = (record.get("prompt") or record.get("instruction") or "").strip()
    names = [name for name in ("output", "chosen", "rejected") if record.get(name)]
    # A single word, such as a greeting, is often repeated in the answer.
    if len(asked.split()) < 2 or not names:
        return None
    if all(record[name].lstrip().startswith(asked) for name in names):
        return f"{' and '.join(names)} begin{'s' * (len(names) == 1)} with the prompt"
    return None


def _texts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts as the file has them, with their places."""
    if messages := record.get("messages"):
        yield from (("message", message["content"]) for message in messages)
    else:
        yield from ((name, record[name]) for name in ("prompt", "instruction") if record.get(name))
    yield from ((name, record[name]) for name in ("output", "chosen", "rejected") if record.get(name))


def _what_happens(where: str, chat: bool) -> str:
    if chat:
        return "data.template=chat writes another around it; give the texts without it"
    if where == "prompt":
        return "it is used as it is, without data.template"
    return "data.template writes another around it; name the column prompt to use it as it is"
