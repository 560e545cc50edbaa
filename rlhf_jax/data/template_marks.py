"""Texts that already hold what a template writes: trained on as they are, they would be wrapped a second time."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_jax.data.messages import is_transcript

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
    """The remark on a record whose texts already hold a template's text, None where there is nothing to say.

    chat: whether the tokenizer's own template writes the prompt. Also said: that a conversation is written as a
    transcript, because other templates know a single turn alone.
    """
    for where, text in _texts(record):
        if found := _TOKENS.search(text):
            return (
                f"{where} already holds a template's {found[0]!r}, which is read as plain text and not as a "
                "token; give messages without it and set data.template=chat"
            )
    for where, text in _texts(record):
        if where in ("output", "chosen", "rejected") or is_transcript(text):
            continue
        if found := _HEADS.search(text):
            how = _what_happens(where, chat)
            return f"{where} already holds a template's text ({found[1]!r}); {how}"
    return TRANSCRIPT if not chat and len(record.get("messages") or ()) > 1 else None


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
