"""Chat messages and transcripts -> prompt columns and a response.

A message is {role, content}, with what chat templates may read besides: `reasoning_content` or `thinking`, a model's
thoughts before it speaks; `tool_calls`, and `tools` of the first message (see `tools`); and `train`: False on a turn of
the assistant that is shown and not learnt.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data import tools
from rlhf_jax.data.left_out import RowError, has_content
from rlhf_jax.data.turn_flags import is_flag, trained

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
    "developer": "system",
    **dict.fromkeys(tools.CALL_ROLES, "assistant"),
    **dict.fromkeys(tools.ANSWER_ROLES, "tool"),
}
_THOUGHT_PARTS = ("thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")
ASKING = ("user", "tool")  # Roles that the assistant speaks after.
THOUGHTS = ("reasoning_content", "thinking")
_READ = {"role", "from", "content", "value", "tools", "reasoning", *THOUGHTS, *tools.CALL_FIELDS}

ChatMessage = dict[str, Any]  # role (user, assistant, system, tool) and content, as chat templates take them


def is_messages(value: Any) -> bool:
    """True for a list of objects: chat messages of any dialect, or their columns in one object of lists."""
    value = _rows_of(value)
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def parse_messages(value: Any, unused: set[str] | None = None) -> list[ChatMessage]:
    """Messages as {role, content} or {from, value}; one message alone is a list of one.

    A list that a file keeps as JSON text or as an object of lists is read as that list. unused: gets the names
    of fields that hold something and that nobody here knows.
    """
    value = _rows_of(_from_json(value))
    if isinstance(value, Mapping):
        value = [value]
    if not is_messages(value):
        raise RowError("unreadable messages")
    if unused is not None:
        named = {name for m in value for name, x in m.items() if not _is_read(name, m) and has_content(x)}
        unused.update(f"{name} of messages" for name in named)
    return [_message(message, unused) for message in value]


def _is_read(name: str, message: Mapping[str, Any]) -> bool:
    if name in tools.ANSWER_FIELDS:
        return _role(message) in tools.ANSWER_ROLES
    return name in _READ or is_flag(name, message[name])


def from_text(value: Any) -> Any:
    """A conversation that a file keeps as JSON text, as that list; anything else, other text too, as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[") or '"role"' not in value:
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    texts = ("content", "tool_calls")
    said = is_messages(found) and all("role" in m and any(name in m for name in texts) for m in found)
    return found if said else value


def _rows_of(value: Any) -> Any:
    """{"role": [...], "content": [...]}, as columnar files keep a list of messages, as that list."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(x, list) for x in value.values()):
        return value
    if not {"role", "from"} & set(value) or len({len(x) for x in value.values()}) != 1:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _from_json(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise RowError("unreadable messages") from e


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role") if message.get("role") is not None else message.get("from")
    if not isinstance(role, str):
        raise RowError("message without a role" if role is None else "role is not text")
    if role.lower() not in _ROLES:
        raise RowError(f"role {role[:40]!r}")
    return role.lower()


def _message(message: Mapping[str, Any], unused: set[str] | None) -> ChatMessage:
    named = _role(message)
    parsed: ChatMessage = {"role": _ROLES[named], "content": ""}
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if named in tools.CALL_ROLES:
        parsed["tool_calls"], content = tools.calls_in(content, unused), ""
    elif calls := tools.calls_of(message, unused):
        if _ROLES[named] != "assistant":
            raise RowError(f"tool calls of the role {named!r}")
        parsed["tool_calls"], content = calls, "" if content is None else content
    if isinstance(content, list):
        content, thoughts = _joined(content)
        parsed |= thoughts
    if not isinstance(content, str):
        raise RowError("message without content" if content is None else "message content is not text")
    parsed["content"] = content
    for name in ("reasoning", *THOUGHTS, *(tools.ANSWER_FIELDS if _ROLES[named] == "tool" else ())):
        if has_content(message.get(name)):
            if not isinstance(message[name], str):
                raise RowError(f"{name} is not text")
            parsed["reasoning_content" if name == "reasoning" else name] = message[name]
    if has_content(message.get("tools")):
        parsed["tools"] = tools.definitions(message["tools"])
    if not trained(message):
        parsed["train"] = False
    return parsed


def _joined(parts: list[Any]) -> tuple[str, dict[str, str]]:
    """The text of {"type": "text", "text": ...} parts, and thoughts that come as parts; other kinds cost the row."""
    texts, thoughts = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError("message content is not text")
        kind = part.get("type") or next((k for k, x in part.items() if has_content(x)), "text")
        text = part.get("thinking" if kind == "thinking" else "text")
        if kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS) or not isinstance(text, str):
            raise RowError(f"{str(kind)[:40]} part in a message")
        (thoughts if kind in _THOUGHT_PARTS else texts).append(text)
    return "".join(texts), {"thinking": "".join(thoughts)} if thoughts else {}


def prompt_columns(messages: Sequence[ChatMessage]) -> dict[str, str]:
    """The prompt of a conversation whose next turn is the assistant's.

    A single user message is an instruction, so a template applies to it. Anything longer is a transcript:
    the system text, then "Human:" and "Assistant:" turns as in hh-rlhf, ending with "Assistant:". One with tools
    is only there to tell it from others: it is not written but by chat templates.
    """
    if not messages or messages[-1]["role"] not in ASKING:
        raise RowError("conversation does not end with a user turn")
    if len(messages) == 1 and messages[0]["role"] == "user":
        return {"instruction": messages[0]["content"], "input": ""}
    marks = {"user": f"{_HUMAN} ", "assistant": f"{_ASSISTANT} ", "system": "", "tool": "\n\nTool: "}
    said = (marks[m["role"]] + m["content"] + tools.text_of(m.get("tool_calls", ())) for m in messages)
    return {"prompt": "".join(said) + _ASSISTANT}


def split_last(messages: list[ChatMessage]) -> tuple[list[ChatMessage], ChatMessage]:
    """A conversation -> what came before its last turn, and that turn, which must be the assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError("conversation does not end with an assistant turn")
    return messages[:-1], messages[-1]


def split_transcript(text: Any) -> tuple[str, str]:
    """An hh-rlhf transcript -> the prompt up to and with the last "Assistant:", and the response after it."""
    if not isinstance(text, str) or _ASSISTANT not in text:
        raise RowError("transcript without an Assistant turn")
    before, _, response = text.rpartition(_ASSISTANT)
    return before + _ASSISTANT, response


def is_transcript(prompt: str) -> bool:
    """Whether a prompt is an hh-rlhf transcript, which can be taken apart into its turns."""
    return prompt.startswith(_HUMAN) and prompt.endswith(_ASSISTANT)


def messages_of(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The prompt of a row as chat messages, ending with the user.

    Its `messages`, where it has them. Otherwise one message of the user: the prompt, or the instruction and its
    input with an empty line between; a prompt that is an hh-rlhf transcript is taken apart into its turns.
    """
    if row.get("messages") is not None:
        return parse_messages(row["messages"])
    prompt = row.get("prompt")
    if prompt is None:
        text = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        return [{"role": "user", "content": text}]
    if is_transcript(prompt):
        pieces = _TURN.split(prompt)[1:-2]
        roles = [_ROLES[name.lower()] for name in pieces[::2]]
        return [{"role": r, "content": text.strip()} for r, text in zip(roles, pieces[1::2], strict=True)]
    return [{"role": "user", "content": prompt}]
