"""Record schemas: rows of any known layout -> instructions, prompts or preference pairs, every drop counted.

Each reader takes a source (anything `read_table` reads, or a list of rows) and returns (rows, skipped):
plain dicts with the columns named below, and a Counter reason -> rows dropped. The prompt of a row is either
`prompt` (a text used as it is) or `instruction` and `input` (which go into a template).

    mapping  renames columns first: {"chosen": "better_answer"} reads `chosen` from column `better_answer`.
    chat     adds `messages`, the prompt as chat messages {role, content}, for the tokenizer's chat template.
    where    keeps only rows whose columns have these values, {"split": "train"}; the others are not counted.
    made_by  the command that makes a missing file, shown in the error.

All raise UserError when the source cannot be read, its layout is unknown, or no usable row is left.
Reading and writing of the files themselves is offered here too, from `tables`.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.messages import (
    Message,
    RowError,
    chat_messages,
    is_messages,
    messages_of,
    parse_messages,
    prompt_columns,
    split_last,
    split_transcript,
)
from rlhf_jax.data.tables import columns_of, read_table, require_columns, write_jsonl, write_parquet
from rlhf_jax.errors import UserError

__all__ = [
    "USABLE_STATUS",
    "describe",
    "read_instructions",
    "read_pairs",
    "read_prompts",
    "read_table",
    "write_jsonl",
    "write_parquet",
]

Row = dict[str, Any]
Source = str | Path | Sequence[Mapping[str, Any]]

USABLE_STATUS = ("ok", "noise")  # of labels.parquet; "noise" is a label flipped on purpose
_CONVERSATIONS = ("messages", "conversations")
_RESPONSES = ("output", "completion", "response")


def read_instructions(
    source: Source,
    *,
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    made_by: str = "",
    chat: bool = False,
) -> tuple[list[Row], Counter[str]]:
    """Demonstrations: rows with `output` and a prompt.

    Layouts: instruction, input (optional), output; prompt with output, completion or response; messages or
    conversations whose last turn is the assistant's. `ended` False of a response that did not end stays.
    """
    rows, name = _load(source, mapping, where, made_by)
    found = columns_of(rows)
    conversation = next((column for column in _CONVERSATIONS if column in found), None)
    response = next((column for column in _RESPONSES if column in found), None)
    if ("instruction" in found or "prompt" in found) and response:

        def convert(row: Row) -> Row:
            return _prompt(row) | {"output": _completion(row.get(response))} | _ended(row, "ended", "ended")

    elif conversation:

        def convert(row: Row) -> Row:
            before, output = split_last(parse_messages(row.get(conversation)))
            return _columns(before) | {"output": _text(output, "response")} | _ended(row, "ended", "ended")

    else:
        raise _unknown_layout(rows, name, "instruction", "output", "messages, or prompt and completion")
    return _convert_all(rows, convert, name, chat=chat)


def read_prompts(
    source: Source,
    *,
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    made_by: str = "",
    unique: bool = True,
    chat: bool = False,
) -> tuple[list[Row], Counter[str]]:
    """Prompts alone, from any layout with instruction (and input), prompt, messages or conversations.

    A conversation's last assistant turns are left off. unique: drop and count repeated prompts.
    """
    rows, name = _load(source, mapping, where, made_by)
    found = columns_of(rows)
    conversation = next((column for column in _CONVERSATIONS if column in found), None)
    if "instruction" in found or "prompt" in found:
        convert = _prompt
    elif conversation:

        def convert(row: Row) -> Row:
            messages = parse_messages(row.get(conversation))
            while messages and messages[-1][0] == "assistant":
                messages.pop()
            return _nonempty_prompt(_columns(messages))

    else:
        raise _unknown_layout(rows, name, "instruction", "prompt", "messages")
    return _convert_all(rows, convert, name, unique=unique, chat=chat)


def read_pairs(
    source: Source,
    *,
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    made_by: str = "",
    chat: bool = False,
) -> tuple[list[Row], Counter[str]]:
    """Preference pairs: rows with `chosen`, `rejected` and a prompt.

    Layouts: chosen and rejected as texts, message lists or whole hh-rlhf transcripts, the prompt in its own
    column or as their common beginning; or output_1, output_2 and preference in [1, 2] (1: output_1 is
    better, 2: output_2, 1.5: a tie). With a `status` column only usable labels stay. Also dropped: ties,
    missing or out-of-range preferences, empty or identical responses, exact duplicates.
    A side that did not end by itself (`chosen_ended`, `ended_1`, ... is False) has `chosen_ended` or
    `rejected_ended` False.
    """
    rows, name = _load(source, mapping, where, made_by)
    found = columns_of(rows)
    if "chosen" in found or "rejected" in found:
        require_columns(rows, ("chosen", "rejected"), name)
        explicit = bool({"prompt", "instruction", *_CONVERSATIONS} & set(found))
        oriented = _explicit_pair if explicit else _implicit_pair
    elif "output_1" in found or "output_2" in found:
        require_columns(rows, ("output_1", "output_2", "preference"), name)
        if "prompt" not in found:
            require_columns(rows, ("instruction",), name)
        oriented = _labelled_pair
    else:
        raise _unknown_layout(rows, name, "chosen", "rejected", "output_1, output_2 and preference")

    def convert(row: Row) -> Row:
        if "status" in found and row.get("status") not in USABLE_STATUS:
            raise RowError(f"status={row.get('status') or 'missing'}")
        pair = oriented(row)
        for column in ("chosen_ended", "rejected_ended"):
            pair |= _ended(row, column, column)
        if not pair["chosen"].strip() or not pair["rejected"].strip():
            raise RowError("empty response")
        if pair["chosen"] == pair["rejected"]:
            raise RowError("identical outputs")
        return pair

    return _convert_all(rows, convert, name, unique=True, chat=chat)


def describe(skipped: Mapping[str, int], kept: int | None = None) -> str:
    """Counted drops in one line, most frequent first: "kept 60; skipped 15: tie 12, duplicate 3"."""
    total = sum(skipped.values())
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(skipped).most_common())
    line = f"skipped {total}: {reasons}" if total else "skipped none"
    return line if kept is None else f"kept {kept}; {line}"


def _load(
    source: Source, mapping: Mapping[str, str] | None, where: Mapping[str, Any] | None, made_by: str
) -> tuple[list[Row], str]:
    if isinstance(source, str | Path):
        rows, name = read_table(source, made_by=made_by), str(source)
    else:
        rows, name = [dict(row) for row in source], "rows"
        if not rows:
            raise UserError("rows: there are none")
    if mapping:
        require_columns(rows, mapping.values(), name)
        for row in rows:
            row.update({ours: row.get(theirs) for ours, theirs in mapping.items()})
    if where:
        require_columns(rows, where, name)
        rows = [row for row in rows if all(row.get(column) == value for column, value in where.items())]
        if not rows:
            wanted = ", ".join(f"{column}={value!r}" for column, value in where.items())
            raise UserError(f"{name}: no row has {wanted}")
    return rows, name


def _convert_all(
    rows: Sequence[Row], convert: Callable[[Row], Row], name: str, *, unique: bool = False, chat: bool = False
) -> tuple[list[Row], Counter[str]]:
    kept: list[Row] = []
    skipped: Counter[str] = Counter()
    seen = set()
    for row in rows:
        try:
            record = convert(row)
            messages = messages_of(record) if chat else None
        except RowError as e:
            skipped[str(e)] += 1
            continue
        record.pop("messages", None)  # so that rows compare by their texts
        if unique:
            key = tuple(record.items())
            if key in seen:
                skipped["duplicate"] += 1
                continue
            seen.add(key)
        kept.append(record | {"messages": messages} if chat else record)
    if not kept:
        raise UserError(f"{name}: none of its {len(rows)} rows can be used; {describe(skipped)}")
    return kept, skipped


def _columns(messages: list[Message]) -> Row:
    """The prompt columns of a conversation, with the conversation itself."""
    return prompt_columns(messages) | {"messages": chat_messages(messages)}


def _prompt(row: Row) -> Row:
    """The prompt columns of a row that has `prompt` or `instruction`."""
    prompt = row.get("prompt")
    if is_messages(prompt):
        return _nonempty_prompt(_columns(parse_messages(prompt)))
    if prompt is not None:
        return {"prompt": _text(prompt, "prompt")} | _messages_beside(row)
    extra = row.get("input")
    if _missing(extra):
        extra = ""
    if not isinstance(extra, str):
        raise RowError("input is not text")
    columns = {"instruction": _text(row.get("instruction"), "instruction"), "input": extra}
    return columns | _messages_beside(row)


def _messages_beside(row: Row) -> Row:
    """The conversation that `generate` writes beside a text prompt; one that ends with a response is no prompt."""
    try:
        messages = parse_messages(row.get("messages"))
    except RowError:
        return {}
    return {"messages": chat_messages(messages)} if messages[-1][0] == "user" else {}


def _nonempty_prompt(columns: Row) -> Row:
    for column in ("prompt", "instruction"):
        if column in columns:
            _text(columns[column], column)
    return columns


def _completion(value: Any) -> str:
    """A response given as text or as a list with one assistant message."""
    return _text(split_last(parse_messages(value))[1] if is_messages(value) else value, "response")


def _text(value: Any, what: str) -> str:
    if _missing(value):
        raise RowError(f"missing {what}")
    if not isinstance(value, str):
        raise RowError(f"{what} is not text")
    if not value.strip():
        raise RowError(f"empty {what}")
    return value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _labelled_pair(row: Row) -> Row:
    preference = row.get("preference")
    if _missing(preference):
        raise RowError("missing preference")
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise RowError("preference is not a number")
    if not 1 <= preference <= 2:
        raise RowError("preference out of [1, 2]")
    if preference == 1.5:
        raise RowError("tie")
    prompt, first, second = _prompt(row), _answer(row["output_1"]), _answer(row["output_2"])
    sides = [(first, "ended_1"), (second, "ended_2")]
    (chosen, one), (rejected, two) = sides if preference < 1.5 else sides[::-1]
    ended = _ended(row, one, "chosen_ended") | _ended(row, two, "rejected_ended")
    return prompt | {"chosen": chosen, "rejected": rejected} | ended


def _ended(row: Row, column: str, name: str) -> dict[str, bool]:
    """{name: False} of a response that did not end by itself; nothing of one that did, or that nobody speaks of."""
    value = row.get(column)
    if _missing(value) or value is True:
        return {}
    if value is not False:
        raise RowError(f"{column} is neither true nor false")
    return {name: False}


def _answer(value: Any) -> str:
    if _missing(value):
        raise RowError("missing response")
    if not isinstance(value, str):
        raise RowError("response is not text")
    return value


def _explicit_pair(row: Row) -> Row:
    conversation = next((row[column] for column in _CONVERSATIONS if row.get(column) is not None), None)
    if conversation is not None and row.get("prompt") is None and row.get("instruction") is None:
        prompt = _nonempty_prompt(_columns(parse_messages(conversation)))
    else:
        prompt = _prompt(row) | _turns_before(row)
    return prompt | {side: _side(row.get(side)) for side in ("chosen", "rejected")}


def _turns_before(row: Row) -> Row:
    """The conversation as messages, where the prompt is a text and both sides repeat the turns before them."""
    sides = [row.get("chosen"), row.get("rejected")]
    if is_messages(row.get("prompt")) or not all(is_messages(side) for side in sides):
        return {}
    (before, _), (other, _) = (split_last(parse_messages(side)) for side in sides)
    return {"messages": chat_messages(before)} if before and before == other else {}


def _side(value: Any) -> str:
    """A response as text, one message, or a conversation that ends with it."""
    if isinstance(value, Mapping) or is_messages(value):
        return split_last(parse_messages(value))[1]
    return _answer(value)


def _implicit_pair(row: Row) -> Row:
    """Both sides are whole conversations; what comes before their last turn must be the same."""
    if is_messages(row.get("chosen")):
        (before, chosen), (other, rejected) = (
            split_last(parse_messages(row.get(side))) for side in ("chosen", "rejected")
        )
        prompt = _nonempty_prompt(_columns(before))
    else:
        (before, chosen), (other, rejected) = (split_transcript(row.get(s)) for s in ("chosen", "rejected"))
        prompt = {"prompt": before}
    if before != other:
        raise RowError("chosen and rejected have different prompts")
    return prompt | {"chosen": chosen, "rejected": rejected}


def _unknown_layout(rows: Sequence[Row], name: str, first: str, second: str, others: str) -> UserError:
    try:
        require_columns(rows, (first, second), name)
    except UserError as e:
        return UserError(f"{e} (needed: {first} and {second}, or {others})")
    return UserError(f"{name}: unknown layout; needed: {first} and {second}, or {others}")
