"""The thoughts of a reasoning model: where records keep them, which are trained, and how a template is given them.

Records keep them in a field of the message (`reasoning_content`, `thinking`) or before the answer, as
"<think>...</think>"; of a response that was sampled after an open "<think>" the first tag is missing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.data.messages import THOUGHTS, ChatMessage

OPEN, CLOSE = "<think>", "</think>"
# How a turn's thoughts are given to a template, in the order in which the forms are tried.
VERBATIM, FIELDS, INLINE = "as the record has them", "as fields", f"as {OPEN}...{CLOSE}"


class Said(NamedTuple):
    """What the assistant thought, "" for nothing, and what it said then."""

    thoughts: str
    answer: str


def said_of(message: ChatMessage) -> Said:
    """Thoughts and answer of a message, wherever it keeps them."""
    for name in THOUGHTS:
        if message.get(name):
            return Said(message[name].strip("\n"), message["content"])
    before, closed, answer = message["content"].partition(CLOSE)
    if not closed:
        return Said("", message["content"])
    return Said(before.strip().removeprefix(OPEN).strip("\n"), answer.lstrip("\n"))


def kept(chat: Sequence[ChatMessage], which: str, *, prompt: bool = False) -> list[ChatMessage]:
    """The conversation with the thoughts that are wanted: keep (all), drop (none), or last (of its last turn alone).

    prompt: the conversation ends with the user, so that its last turn is still to come.
    """
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    bare = set() if which == "keep" else set(turns if which == "drop" or prompt else turns[:-1])
    return [
        _bare(message, said_of(message).answer) if i in bare else message for i, message in enumerate(chat)
    ]


def inline(said: Said) -> str:
    """Thoughts and answer in one text, as reasoning models write them."""
    return f"{OPEN}\n{said.thoughts}\n{CLOSE}\n\n{said.answer}" if said.thoughts else said.answer


def continued(prompt: str, said: Said) -> str:
    """What a model writes after a generation prompt, which may have opened the thoughts already."""
    if not prompt.rstrip().endswith(OPEN):
        return inline(said)
    return f"{said.thoughts}\n{CLOSE}\n\n{said.answer}"


def written(message: ChatMessage, form: str, marks: tuple[str, str] = ("", ""), trim=str) -> ChatMessage:
    """A turn in one of the forms, with marks around what was thought and what was said."""
    said, (start, end) = said_of(message), marks
    if form == FIELDS and said.thoughts:
        thoughts = f"{start}{said.thoughts}{end}"
        return _bare(message, f"{start}{trim(said.answer)}{end}") | dict.fromkeys(THOUGHTS, thoughts)
    if form == VERBATIM:
        return message | {"content": f"{start}{trim(message['content'])}{end}"}
    return _bare(message, f"{start}{trim(inline(said))}{end}")


def _bare(message: ChatMessage, content: str) -> ChatMessage:
    return {name: x for name, x in message.items() if name not in THOUGHTS} | {"content": content}
