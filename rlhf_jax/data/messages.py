"""Chat messages and transcripts -> prompt columns and a response."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# hh-rlhf's plain-text form of a conversation, also used here for any prompt of more than one turn.
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}

Message = tuple[str, str]  # role (user, assistant, system), text
ChatMessage = dict[str, str]  # role and content, as chat templates take them


class RowError(ValueError):
    """A row that cannot be understood; its message is the reason under which the row is counted."""


def is_messages(value: Any) -> bool:
    """True for a list of objects: chat messages of any dialect."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def parse_messages(value: Any) -> list[Message]:
    """Messages as {role, content} or {from, value}; one message alone is a list of one."""
    if isinstance(value, Mapping):
        value = [value]
    if not is_messages(value):
        raise RowError("unreadable messages")
    parsed = []
    for message in value:
        role = _ROLES.get(message.get("role", message.get("from")))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):  # parts, as in {"type": "text", "text": ...}
            content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
        if role is None or not isinstance(content, str):
            raise RowError("unreadable messages")
        parsed.append((role, content))
    return parsed


def prompt_columns(messages: list[Message]) -> dict[str, str]:
    """The prompt of a conversation whose next turn is the assistant's.

    A single user message is an instruction, so a template applies to it. Anything longer is a transcript:
    the system text, then "Human:" and "Assistant:" turns as in hh-rlhf, ending with "Assistant:".
    """
    if not messages or messages[-1][0] != "user":
        raise RowError("conversation does not end with a user turn")
    if len(messages) == 1:
        return {"instruction": messages[0][1], "input": ""}
    marks = {"user": f"{_HUMAN} ", "assistant": f"{_ASSISTANT} ", "system": ""}
    return {"prompt": "".join(marks[role] + text for role, text in messages) + _ASSISTANT}


def split_last(messages: list[Message]) -> tuple[list[Message], str]:
    """A conversation -> what came before its last turn, and that turn, which must be the assistant's."""
    if not messages or messages[-1][0] != "assistant":
        raise RowError("conversation does not end with an assistant turn")
    return messages[:-1], messages[-1][1]


def split_transcript(text: Any) -> tuple[str, str]:
    """An hh-rlhf transcript -> the prompt up to and with the last "Assistant:", and the response after it."""
    if not isinstance(text, str) or _ASSISTANT not in text:
        raise RowError("transcript without an Assistant turn")
    before, _, response = text.rpartition(_ASSISTANT)
    return before + _ASSISTANT, response


def chat_messages(messages: Sequence[Message]) -> list[ChatMessage]:
    """Messages as chat templates take them."""
    return [{"role": role, "content": text} for role, text in messages]


def messages_of(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The prompt of a row as chat messages, ending with the user.

    Its `messages`, where it has them. Otherwise one message of the user: the prompt, or the instruction and its
    input with an empty line between; a prompt that is an hh-rlhf transcript is taken apart into its turns.
    """
    if row.get("messages") is not None:
        return chat_messages(parse_messages(row["messages"]))
    prompt = row.get("prompt")
    if prompt is None:
        text = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        return [{"role": "user", "content": text}]
    if prompt.startswith(_HUMAN) and prompt.endswith(_ASSISTANT):
        pieces = _TURN.split(prompt)[1:-2]
        roles = [_ROLES[name.lower()] for name in pieces[::2]]
        return chat_messages([(r, text.strip()) for r, text in zip(roles, pieces[1::2], strict=True)])
    return [{"role": "user", "content": prompt}]
