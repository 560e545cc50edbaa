"""Reads chat messages and hh-rlhf transcripts, and converts them to prompt columns and a response.

A message is {role, content}, with what chat templates may read besides: `reasoning_content` or `thinking`, a model's
thoughts before it speaks; `tool_calls`, and `tools` of the first message (see `tools`); and `train`: False on a turn of
the assistant that is shown and not learnt.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.data.chat import tools
from rlhf_jax.data.records.left_out import RowError, has_content

# hh-rlhf's plain-text form of a conversation, also used here for any prompt of more than one turn.
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
# Names of roles in published files: ShareGPT says human and gpt, Gemini model, OpenAI developer for system.
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
# Types of parts, where a message's content is a list:
# Anthropic has thinking, OpenAI input_text and output_text.
_THOUGHT_PARTS = ("thinking", "reasoning")
_MEDIA_FIELDS = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "file")
_TEXT_PARTS = ("text", "input_text", "output_text")
# The roles that the assistant speaks after.
ASKING = ("user", "tool")
THOUGHTS = ("reasoning_content", "thinking")
_READ = {"role", "from", "content", "value", "tools", "reasoning", *THOUGHTS, *tools.CALL_FIELDS}
# Pairs of fields that say who speaks and what: ours and OpenAI's, then ShareGPT's.
_SPOKEN = (("role", "content"), ("from", "value"))
# The beginning of a list of messages, or of one, as Python's repr writes it; JSON has no single quotes.
_PYTHON = re.compile(r"\s*(?:\[\s*)?\{\s*'(?:role|from|content|value)'\s*:")

# As chat templates take it: role (user, assistant, system or tool) and content.
ChatMessage = dict[str, Any]


def is_messages(value: Any) -> bool:
    """True for a list of objects: chat messages of any dialect, or their columns in one object of lists."""
    value = _rows_of(value)
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def parse_messages(value: Any, unused: set[str] | None = None) -> list[ChatMessage]:
    """Parses messages, given as {role, content} or {from, value}; one message alone is a list of one.

    A list that a file keeps as JSON text or as an object of lists is read as that list. unused: gets the names
    of fields that hold something and that nobody here knows.
    """
    # Those that have been read before, and most of those of files, are as they should be.
    if type(value) is list and value and all(_is_parsed(m) for m in value):
        return [{"role": m["role"], "content": m["content"]} for m in value]
    refuse_python(value)
    value = _rows_of(_from_json(value))
    if isinstance(value, Mapping):
        value = [value]
    if not is_messages(value):
        raise RowError("unreadable messages")
    if unused is not None:
        named = {name for m in value for name, x in m.items() if not _is_read(name, m) and has_content(x)}
        unused.update(f"{name} of messages" for name in named)
    return [_message(message, unused) for message in value]


def _is_parsed(message: Any) -> bool:
    """Whether a message is one of a plain text as `_message` returns it."""
    if type(message) is not dict or len(message) != 2:
        return False
    return type(message.get("content")) is str and message.get("role") in ("user", "assistant", "system")


def _is_read(name: str, message: Mapping[str, Any]) -> bool:
    if name in tools.ANSWER_FIELDS:
        return _role(message) in tools.ANSWER_ROLES
    # Beside a role, `from` may be anything: an address, say. `_role` compares it where it is a role, too.
    if name == "from" and message.get("role") is not None:
        return _known_role(message["from"]) is not None
    return name in _READ or is_flag(name, message[name])


def from_text(value: Any) -> Any:
    """Parses a conversation, or one message, that a file keeps as JSON text; anything else is returned as it is.

    Raises RowError for one that is kept as Python's repr, which would else be taken for prose.
    """
    refuse_python(value)
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    if '"role"' not in value and '"from"' not in value:
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(found, Mapping):
        # An answer may well be an object with a field `role` or `from`; a message is one of somebody we know.
        known = any(_known_role(found.get(who)) and isinstance(found.get(what), str) for who, what in _SPOKEN)
        return [found] if known else value
    # Prose may begin with "[" as well, so every item must have a role and something said.
    return found if is_messages(found) and all(_is_spoken(m) for m in found) else value


def refuse_python(value: Any) -> None:
    """Raises RowError for messages that were written with Python's str() and not as JSON."""
    if not isinstance(value, str) or not _PYTHON.match(value):
        return
    if any(f"'{who}':" in value and f"'{what}':" in value for who, what in _SPOKEN):
        raise RowError("a conversation written as Python text, not JSON")


def _is_spoken(message: Mapping[str, Any]) -> bool:
    if "role" in message:
        return any(name in message for name in ("content", *tools.CALL_FIELDS))
    return "from" in message and "value" in message


def _rows_of(value: Any) -> Any:
    """Turns what files and tables have for a list of messages into that list.

    That is {"role": [...], "content": [...]}, as columnar files keep it; a tuple or an array; and a list of maps,
    which parquet reads as lists of (name, value).
    """
    value = _listed(value)
    if isinstance(value, list) and value and all(_is_map(m) for m in value):
        return [dict(m) for m in value]
    if not isinstance(value, Mapping) or not value or not all(isinstance(x, list) for x in value.values()):
        return value
    if not {"role", "from"} & set(value) or len({len(x) for x in value.values()}) != 1:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _listed(value: Any) -> Any:
    # Of arrays only the method is known here; scalars of numpy have it, too, and stay as they are.
    if hasattr(value, "tolist") and getattr(value, "ndim", 0):
        return value.tolist()
    return list(value) if type(value) is tuple else value


def _is_map(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(x, tuple) and len(x) == 2 for x in value)
    return pairs and any(name in ("role", "from") for name, _ in value)


def _from_json(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    # JSON that is nested too deeply raises RecursionError, which is no ValueError.
    except (ValueError, RecursionError) as e:
        raise RowError("unreadable messages") from e


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role") if message.get("role") is not None else message.get("from")
    if not isinstance(role, str):
        raise RowError("message without a role" if role is None else "role is not text")
    if role.lower() not in _ROLES:
        raise RowError(f"role {role[:40]!r}")
    if _known_role(message.get("from")) not in (None, _ROLES[role.lower()]):
        raise RowError("role and from of a message differ")
    return role.lower()


def _known_role(value: Any) -> str | None:
    return _ROLES.get(value.lower()) if isinstance(value, str) else None


def _message(message: Mapping[str, Any], unused: set[str] | None) -> ChatMessage:
    named = _role(message)
    parsed: ChatMessage = {"role": _ROLES[named], "content": ""}
    content, value = message.get("content"), message.get("value")
    if content is None:
        content = value
    elif has_content(value) and value != content:
        raise RowError("content and value of a message differ")
    content = _listed(content)
    # In ShareGPT's manner a call is a turn of its own. In
    # OpenAI's, it stands beside a content that may be null.
    if named in tools.CALL_ROLES:
        parsed["tool_calls"], content = tools.calls_in(content, unused), ""
    elif calls := tools.calls_of(message, unused):
        if _ROLES[named] != "assistant":
            raise RowError(f"tool calls of the role {named!r}")
        _refuse_other_calls(message, calls)
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
            # Templates read one of these names; which one would decide what is trained.
            if name not in tools.ANSWER_FIELDS and _thoughts(parsed) not in ("", message[name]):
                raise RowError("thoughts that differ under two names of a message")
            parsed["reasoning_content" if name == "reasoning" else name] = message[name]
    if has_content(message.get("tools")):
        parsed["tools"] = tools.definitions(message["tools"])
    if not trained(message):
        parsed["train"] = False
    return parsed


def _thoughts(parsed: ChatMessage) -> str:
    return next((parsed[name] for name in THOUGHTS if name in parsed), "")


def _refuse_other_calls(message: Mapping[str, Any], calls: list[dict[str, Any]]) -> None:
    """Raises RowError where a call in OpenAI's older form stands beside others and is another one."""
    if all(has_content(message.get(name)) for name in tools.CALL_FIELDS):
        older = tools.calls_in(message["function_call"])
        if [call["function"] for call in older] != [call["function"] for call in calls]:
            raise RowError("tool_calls and function_call of a message differ")


def _joined(parts: list[Any]) -> tuple[str, dict[str, str]]:
    """Joins the text of {"type": "text", "text": ...} parts, and thoughts that come as parts; images cost the row."""
    texts, thoughts = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError("message content is not text")
        # Some files leave out the type; then the field that has content tells it.
        kind = part.get("type") or next((k for k, x in part.items() if has_content(x)), "text")
        field = "thinking" if kind == "thinking" else "text"
        text = part.get(field)
        # A text may have an image in the same part, which would be dropped with no word of it.
        beside = (x for x in (*_MEDIA_FIELDS, "thinking", "text") if x != field and _holds(part.get(x)))
        if kind in (*_TEXT_PARTS, *_THOUGHT_PARTS) and (other := next(beside, None)):
            raise RowError(f"{other} in a {kind} part of a message")
        if kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS) or not isinstance(text, str):
            raise RowError(f"{str(kind)[:40]} part in a message")
        (thoughts if kind in _THOUGHT_PARTS else texts).append(text)
    return "".join(texts), {"thinking": "".join(thoughts)} if thoughts else {}


def _holds(value: Any) -> bool:
    # Columnar files give each part the fields of all others, filled with null.
    return any(map(_holds, value.values())) if isinstance(value, Mapping) else has_content(value)


def prompt_columns(messages: Sequence[ChatMessage]) -> dict[str, str]:
    """Writes the prompt columns of a conversation whose next turn is the assistant's.

    A single user message is an instruction, so a template applies to it. Anything longer is a transcript:
    the system text, then "Human:" and "Assistant:" turns as in hh-rlhf, ending with "Assistant:". With tools the text
    only serves to tell the row from others, since chat templates alone write tools.
    """
    if not messages or messages[-1]["role"] not in ASKING:
        raise RowError("conversation does not end with a user turn")
    if len(messages) == 1 and messages[0]["role"] == "user":
        return {"instruction": messages[0]["content"], "input": ""}
    marks = {"user": f"{_HUMAN} ", "assistant": f"{_ASSISTANT} ", "system": "", "tool": "\n\nTool: "}
    said = (marks[m["role"]] + m["content"] + tools.text_of(m.get("tool_calls", ())) for m in messages)
    return {"prompt": "".join(said) + _ASSISTANT}


def split_last(messages: list[ChatMessage]) -> tuple[list[ChatMessage], ChatMessage]:
    """Splits a conversation into what came before its last turn and that turn, which must be the assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError("conversation does not end with an assistant turn")
    return messages[:-1], messages[-1]


def split_transcript(text: Any) -> tuple[str, str]:
    """Splits an hh-rlhf transcript into the prompt, up to and with the last "Assistant:", and the response."""
    if not isinstance(text, str) or _ASSISTANT not in text:
        raise RowError("transcript without an Assistant turn")
    before, _, response = text.rpartition(_ASSISTANT)
    if _HUMAN in response:
        raise RowError("conversation does not end with an assistant turn")
    return before + _ASSISTANT, response


def is_transcript(prompt: str) -> bool:
    """Whether a prompt is an hh-rlhf transcript, which can be taken apart into its turns."""
    return prompt.startswith(_HUMAN) and prompt.endswith(_ASSISTANT)


def messages_of(row: Mapping[str, Any]) -> list[ChatMessage]:
    """Returns the prompt of a row as chat messages, ending with the user.

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
        # The split gives "", role, text, role, text and so on;
        # the last two pieces are the open turn of the assistant.
        pieces = _TURN.split(prompt)[1:-2]
        roles = [_ROLES[name.lower()] for name in pieces[::2]]
        return [{"role": r, "content": text.strip()} for r, text in zip(roles, pieces[1::2], strict=True)]
    return [{"role": "user", "content": prompt}]


# Flags that records keep beside a text: whether a turn is to be trained on, and whether a response was liked.

# `weight` is the name of OpenAI and TRL, `train` ours. Those of ms-swift and Axolotl below count
# only where they hold a flag: a field named `loss` may also be a number that somebody measured.
TRAIN_FLAGS = ("weight", "train")
_OTHER_FLAGS = ("loss", "training", "trainable")
LIKED = ("label", "kto_tag")
_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def flag(value: Any) -> bool | None:
    """Reads true or false in any form that files keep it in; None where a value is something else."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def is_flag(name: str, value: Any) -> bool:
    """Whether a field of a message says if it is trained."""
    return name in TRAIN_FLAGS or (name in _OTHER_FLAGS and flag(value) is not None)


def trained(message: Mapping[str, Any]) -> bool:
    """Whether a turn is trained, as its flags say; one without flags is, and of several flags one no is enough."""
    said = True
    for name in TRAIN_FLAGS + _OTHER_FLAGS:
        value = message.get(name)
        if not has_content(value) or not is_flag(name, value):
            continue
        found = flag(value)
        if found is None:
            numbers = "neither 0 nor 1" if name == "weight" else "neither true nor false"
            raise RowError(f"{name} {value!r} of a turn is {numbers}"[:60])
        said = said and found
    return said


def liked_column(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> str | None:
    """Finds the column that says whether a row's one completion is liked, as files for KTO have it; None without one.

    0 and 1 may also be classes: they are read so beside a `completion` alone, as TRL's files have it.
    """
    numbers = "completion" in columns
    for name in LIKED:
        values = [row[name] for row in rows if has_content(row.get(name))]
        # The whole column has to be of flags: a single 2 shows that its numbers are classes.
        known = [flag(x) is not None and (numbers or isinstance(x, bool | str)) for x in values]
        if values and all(known):
            return name
    return None
