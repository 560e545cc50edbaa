"""Reads the parts of a row of any known layout: its prompt with all that belongs to it, its responses, its pair.

A part that cannot be understood raises RowError with the reason under which the row is counted.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rlhf_jax.data.records.left_out import RowError, UsedColumns, has_content
from rlhf_jax.data.records.messages import (
    ASKING,
    ChatMessage,
    from_text,
    is_messages,
    is_transcript,
    messages_of,
    parse_messages,
    prompt_columns,
    split_last,
    split_transcript,
)
from rlhf_jax.errors import UserError

Row = dict[str, Any]

# What published files call these columns (context is Dolly's,
# question Orca's); the first one with content is taken.
CONVERSATIONS = ("messages", "conversations", "conversation")
INSTRUCTIONS = ("instruction", "question")
PROMPTS = ("prompt", *INSTRUCTIONS, *CONVERSATIONS)
RESPONSES = ("output", "completion", "response")
_INPUTS = ("input", "context")
_SYSTEMS = ("system", "system_prompt")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def missing(value: Any) -> bool:
    """Whether a value is None or NaN, as tables keep what is not there."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, what: str) -> str:
    """Returns a text that says something, and raises RowError for anything else."""
    if missing(value):
        raise RowError(f"missing {what}")
    if not isinstance(value, str):
        raise RowError(f"{what} is not text")
    if not value.strip():
        raise RowError(f"empty {what}")
    return value


def answer(value: Any) -> str:
    """Returns a response as text, which may be empty."""
    if missing(value):
        raise RowError("missing response")
    if not isinstance(value, str):
        raise RowError("response is not text")
    return value


def prompt(row: UsedColumns) -> Row:
    """Reads the prompt columns of a row, with the conversation they stand for in `messages` where there is one.

    A system text and a history, in columns of their own, make a conversation of any prompt.
    """
    _refuse_media(row)
    columns = _prompt_alone(row)
    before = [*_system(row), *_history(row)]
    return of_messages(_joined(before, messages_of(columns))) if before else columns


def of_messages(messages: Sequence[ChatMessage]) -> Row:
    """Makes the prompt columns of a conversation, with the conversation itself."""
    columns = prompt_columns(messages)
    if "instruction" in columns:
        text_of(columns["instruction"], "instruction")
    # A blank turn is a mistake of the file; an empty system text or answer of a tool is not.
    for message in messages[:-1]:
        if message["role"] in ("user", "assistant") and not _says_something(message):
            raise RowError(f"empty {message['role']} message")
    if messages[-1]["role"] == "user":
        text_of(messages[-1]["content"], "prompt")
    return columns | {"messages": list(messages)}


def response(value: Any, row: UsedColumns) -> tuple[str, Row]:
    """Reads a response given as text or as a list with one message: (text, further fields of its message)."""
    value = from_text(value)
    if not (is_messages(value) or isinstance(value, Mapping)):
        return text_of(value, "response"), {}
    messages = parse_messages(value, row.dropped)
    if len(messages) > 1:
        raise RowError("several messages for one response")
    return last_turn(messages)[1:]


def last_turn(messages: list[ChatMessage]) -> tuple[list[ChatMessage], str, Row]:
    """Splits off the assistant's last turn: (turns before it, its text, further fields of its message)."""
    before, last = split_last(messages)
    # A turn that only calls a tool says nothing, and is complete.
    if not last.get("tool_calls"):
        text_of(last["content"], "response")
    return before, last["content"], further(last)


def _says_something(message: ChatMessage) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def further(message: ChatMessage) -> Row:
    """Returns the fields of a message beyond its role and content."""
    return {name: value for name, value in message.items() if name not in ("role", "content")}


def conversation(row: UsedColumns) -> list[ChatMessage]:
    """Reads the whole conversation of a row, its system text and history before it."""
    _refuse_media(row)
    name = row.first_with_content(*CONVERSATIONS) or next((x for x in CONVERSATIONS if x in row), "messages")
    messages = parse_messages(row.get(name), row.dropped)
    return _joined([*_system(row), *_history(row)], messages)


def _prompt_alone(row: UsedColumns) -> Row:
    name = row.first_with_content(*PROMPTS)
    # None has content. The first one that is there is read all the same, for an error that names it.
    if name is None:
        name = next((x for x in (*INSTRUCTIONS, "prompt", *CONVERSATIONS) if x in row), "instruction")
    value = row.get(name) if name in CONVERSATIONS else from_text(row.get(name))
    if name in CONVERSATIONS or is_messages(value):
        return of_messages(parse_messages(value, row.dropped))
    if name == "prompt":
        columns = {"prompt": text_of(value, "prompt")}
    else:
        columns = {"instruction": text_of(value, "instruction"), "input": _input(row)}
    return columns | _messages_beside(row, columns)


def _input(row: UsedColumns) -> str:
    name = row.first_with_content(*_INPUTS)
    value = row.get(name) if name else row.get("input")
    if missing(value):
        return ""
    if not isinstance(value, str):
        raise RowError(f"{name or 'input'} is not text")
    return value


def _messages_beside(row: UsedColumns, columns: Row) -> Row:
    """Reads the conversation that `generate` writes beside a text prompt; one that ends with a response is none.

    Raises RowError where it asks for something else than the text: each kind of template would train another prompt.
    """
    if not row.has("messages"):
        return {}
    # A peek, so that a conversation that is not used is still counted as an unused column.
    try:
        messages = parse_messages(row.peek("messages"))
    except RowError:
        return {}
    if messages[-1]["role"] not in ASKING:
        return {}
    if not _asks_for(messages, columns):
        raise RowError("messages are not the prompt beside them")
    return {"messages": parse_messages(row["messages"], row.dropped)}


def _asks_for(messages: Sequence[ChatMessage], columns: Row) -> bool:
    """Whether messages ask for what the prompt's columns say, perhaps with more around it."""
    if prompt_columns(messages) == columns:
        return True
    last = messages[-1]["content"].strip()
    systems = [m["content"] for m in messages[:-1] if m["role"] == "system"]
    said = "\n\n".join([*systems, last])
    if "instruction" in columns:
        return all(columns[name].strip() in said for name in ("instruction", "input"))
    # The prompt may also be a text that somebody rendered from the messages.
    return columns["prompt"].strip() in said or (bool(last) and last in columns["prompt"])


def says_more(record: Row) -> bool:
    """Whether a record's messages hold a text that its prompt's columns do not."""
    said = [record[name] for name in ("instruction", "input", "prompt") if name in record]
    texts = [m["content"].strip() for m in record.get("messages", ())]
    asked = record | {"messages": None}
    return not all(any(x in y for y in said) for x in texts) and record.get("messages") != messages_of(asked)


def _system(row: UsedColumns) -> list[ChatMessage]:
    name = row.first_with_content(*_SYSTEMS)
    return [{"role": "system", "content": text_of(row[name], name)}] if name else []


def _history(row: UsedColumns) -> list[ChatMessage]:
    """Reads earlier turns, given as [user, assistant] pairs or as messages."""
    if not row.has("history"):
        return []
    history = row["history"]
    if is_messages(history):
        return parse_messages(history, row.dropped)
    messages = []
    # What is no list is taken for one wrong turn, so that it is refused in the same words.
    for turn in history if isinstance(history, list) else [None]:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise RowError("history is not a list of [user, assistant] pairs")
        asked, said = turn
        messages.append({"role": "user", "content": text_of(asked, "user message in history")})
        messages.append({"role": "assistant", "content": text_of(said, "assistant message in history")})
    return messages


def _joined(before: list[ChatMessage], messages: list[ChatMessage]) -> list[ChatMessage]:
    # A system text may stand in a column and again in the conversation; it is written once, at the beginning.
    if before and messages and messages[0]["role"] == "system":
        if before[0]["role"] == "system" and before[0]["content"] != messages[0]["content"]:
            raise RowError("two system texts")
        messages, before = messages[1:], before if before[0]["role"] == "system" else [messages[0], *before]
    return [*before, *messages]


def _refuse_media(row: UsedColumns) -> None:
    """Raises RowError for a text that refers to an image as "<image>", since we train on text alone.

    An unused column of images beside a text that does not mention them costs nothing.
    """
    name = row.first_with_content(*_MEDIA)
    if name and f"<{name.removesuffix('s')}>" in "".join(map(str, (row.peek(x) for x in row if x != name))):
        raise RowError(f"{name} beside the text")


def labelled_pair(row: UsedColumns) -> Row:
    """Reads a pair of outputs with the preference that says which one is better."""
    preference = row.get("preference")
    if missing(preference):
        raise RowError("missing preference")
    if not _is_number(preference):
        raise RowError("preference is not a number")
    if not 1 <= preference <= 2:
        raise RowError("preference out of [1, 2]")
    if preference == 1.5:
        raise RowError("tie")
    columns = prompt(row)
    sides = [(answer(row.get(f"output_{i}")), ended(row, f"ended_{i}", "")) for i in (1, 2)]
    (chosen, one), (rejected, two) = sides if preference < 1.5 else sides[::-1]
    cut = {f"{side}_ended": False for side, found in (("chosen", one), ("rejected", two)) if found}
    return columns | {"chosen": chosen, "rejected": rejected} | cut


def _is_number(preference: Any) -> bool:
    # True would pass for 1, since Python's bool is an int. Parquet files may hold Decimal.
    return isinstance(preference, int | float | Decimal) and not isinstance(preference, bool)


def check_preferences(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raises UserError for preferences on another scale, 0 to 1 say, of which a 1 would be read as one of ours.

    Only the whole column shows that: some are below 1 and none is above it.
    """
    values = [row["preference"] for row in rows if not missing(row.get("preference"))]
    numbers = [x for x in values if _is_number(x)]
    if numbers and min(numbers) < 1 and max(numbers) == 1:
        between = "between 0 and 1" if min(numbers) >= 0 else f"between {min(numbers)} and 1"
        way_out = "; add 1 if 1 meant output_2" if min(numbers) >= 0 else ""
        raise UserError(
            f"{name}: preference is {between}; it must be 1 (output_1 is better) to 2 (output_2 is better){way_out}"
        )


def ended(row: UsedColumns, column: str, name: str) -> dict[str, bool]:
    """Returns {name: False} for a response that did not end by itself, and {} for one that did or may have."""
    value = row.get(column)
    if missing(value) or value is True:
        return {}
    if value is not False:
        raise RowError(f"{column} is neither true nor false")
    return {name: False}


def explicit_pair(row: UsedColumns) -> Row:
    """Reads a pair whose prompt stands beside it; a side may repeat the prompt's turns before its own."""
    columns = prompt(row)
    (before, *chosen), (other, *rejected) = (_side(row, side) for side in ("chosen", "rejected"))
    if before != other:
        raise RowError("chosen and rejected have different prompts")
    if before:
        columns = _with_turns(columns, before, is_list=is_messages(from_text(row.get("prompt"))))
    chosen[0], rejected[0] = own_words(columns, chosen[0], rejected[0])
    return columns | _pair(chosen, rejected)


def own_words(columns: Row, *responses: str) -> tuple[str, ...]:
    """Cuts off a transcript that stands as the prompt and again at the beginning of each response."""
    prompt_text = columns.get("prompt", "")
    if is_transcript(prompt_text) and all(said.startswith(prompt_text) for said in responses):
        return tuple(said[len(prompt_text) :] for said in responses)
    return responses


def implicit_pair(row: UsedColumns) -> Row:
    """Reads a pair whose sides are whole conversations; what comes before their last turn must be the same."""
    _refuse_media(row)
    if is_messages(from_text(row.get("chosen"))):
        (before, *chosen), (other, *rejected) = (_side(row, side) for side in ("chosen", "rejected"))
        columns = of_messages(_joined([*_system(row), *_history(row)], before))
    else:
        (before, *chosen), (other, *rejected) = (
            (*split_transcript(row.get(side)), {}) for side in ("chosen", "rejected")
        )
        columns = {"prompt": before}
        if ahead := [*_system(row), *_history(row)]:
            columns = of_messages(_joined(ahead, messages_of(columns)))
    if before != other:
        raise RowError("chosen and rejected have different prompts")
    return columns | _pair(chosen, rejected)


def _side(row: UsedColumns, side: str) -> tuple[list[ChatMessage], str, Row]:
    """Reads a side of a pair: (turns before the response, its text, further fields of its message)."""
    value = from_text(row.get(side))
    if not (isinstance(value, Mapping) or is_messages(value)):
        return [], answer(value), {}
    before, last = split_last(parse_messages(value, row.dropped))
    return before, last["content"], further(last)


def _with_turns(columns: Row, before: list[ChatMessage], *, is_list: bool) -> Row:
    """Returns the prompt where both sides repeat the turns before them, which may say more: a system text, say."""
    own = messages_of(columns)
    # The sides hold only a system text, which belongs in front of the prompt.
    if before[-1]["role"] == "system":
        return of_messages(_joined(before, own))
    if before[-1]["role"] not in ASKING:
        raise RowError("conversation does not end with a user turn")
    if before == own:
        return columns
    # The turns end with the prompt or contain its text, so they are the prompt with more before it.
    if before[-len(own) :] == own or (len(before) > 1 and _says(before, columns)):
        return of_messages(before)
    if is_list or "prompt" not in columns or not _asks_for(before, columns):
        raise RowError("the turns before chosen are not the prompt's")
    # The prompt is a text that somebody rendered from these
    # turns; each kind of template takes its own of the two.
    return columns | {"messages": before}


def _says(messages: Sequence[ChatMessage], columns: Row) -> bool:
    """Whether one of the messages is the prompt's text."""
    said = columns.get("prompt", columns.get("instruction", "")).strip()
    return any(message["content"].strip() == said for message in messages)


def _pair(chosen: Sequence, rejected: Sequence) -> Row:
    columns: Row = {"chosen": chosen[0], "rejected": rejected[0]}
    fields = {"chosen_fields": chosen[1], "rejected_fields": rejected[1]}
    return columns | {name: value for name, value in fields.items() if has_content(value)}
