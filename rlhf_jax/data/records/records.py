"""Reads rows of any known layout as demonstrations, prompts or preference pairs, and counts every row it drops.

Each reader takes a source (anything `read_table` reads, or a list of rows) and returns (rows, skipped):
plain dicts with the columns named below, and a Counter reason -> rows dropped. The prompt of a row is either
`prompt` (a text used as it is) or `instruction` and `input` (which go into a template).

    mapping  renames columns first: {"chosen": "better_answer"} reads `chosen` from column `better_answer`.
    chat     adds `messages`, the prompt as chat messages {role, content}, for the tokenizer's chat template.
    where    keeps only rows whose columns have these values, {"split": "train"}; the others are not counted.
    made_by  the command that makes a missing file, shown in the error.
    beside   reads further columns, which a row then has in a dict `beside` (see `label_columns`).

All raise UserError when the source cannot be read, its layout is unknown, or no usable row is left.
Reading and writing of the files themselves is offered here too, from `tables`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.chat import tools
from rlhf_jax.data.files.tables import (
    columns_of,
    read_rows,
    read_table,
    require_columns,
    write_jsonl,
    write_parquet,
)
from rlhf_jax.data.records.left_out import LeftOut, RowError, UsedColumns, counts_text, has_content
from rlhf_jax.data.records.messages import THOUGHTS, ChatMessage, flag, liked_column, messages_of
from rlhf_jax.data.records.row_parts import (
    CONVERSATIONS,
    INSTRUCTIONS,
    PROMPTS,
    RESPONSES,
    check_preferences,
    conversation,
    ended,
    explicit_pair,
    implicit_pair,
    labelled_pair,
    last_turn,
    of_messages,
    own_words,
    prompt,
    response,
    says_more,
    text_of,
)
from rlhf_jax.data.templates import mark_note
from rlhf_jax.errors import UserError

__all__ = [
    "USABLE_STATUS",
    "counts_text",
    "read_instructions",
    "read_pairs",
    "read_prompts",
    "read_table",
    "write_jsonl",
    "write_parquet",
]

Row = dict[str, Any]
Source = str | Path | Sequence[Mapping[str, Any]]
# Reads what else is wanted of a row, such as a rating; RowError where the row cannot be used without it.
Beside = Callable[[UsedColumns], Row]

# The statuses in labels.parquet of labels to train on; "noise" is a label that was flipped on purpose.
USABLE_STATUS = ("ok", "noise")
# The columns with further fields of a response's message,
# such as thoughts and calls, which chat templates write.
FURTHER = ("output_fields", "chosen_fields", "rejected_fields")


def read_instructions(
    source: Source,
    *,
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    made_by: str = "",
    chat: bool = False,
    beside: Beside | None = None,
    verdict: Callable[[UsedColumns], bool] | None = None,
) -> tuple[list[Row], LeftOut]:
    """Reads demonstrations: rows with `output` and a prompt.

    Layouts: instruction, input (optional), output; prompt with output, completion or response; messages or
    conversations whose last turn is the assistant's. `ended` False of a response that did not end stays.
    verdict: says of every row whether its response is liked, which it then has as `liked`; both kinds stay.
    """
    rows, name, used = load_records(source, mapping, where, made_by)
    found = set(columns_of(rows))
    if not (found & set(CONVERSATIONS) or (found & {"prompt", *INSTRUCTIONS} and found & set(RESPONSES))):
        raise _unknown_layout(rows, name, "instruction", "output", "messages, or prompt and completion")
    liked = liked_column(rows, found)

    def convert(row: UsedColumns) -> Row:
        answered = row.first_with_content(*RESPONSES)
        # Beside a response of its own, a row's conversation is
        # the prompt; without one, its last turn is the response.
        if answered is None and row.first_with_content(*CONVERSATIONS):
            before, said, fields = last_turn(conversation(row))
            columns = of_messages(before)
        else:
            columns = prompt(row)
            named = answered or next((column for column in RESPONSES if column in row), "output")
            said, fields = response(row.get(named), row)
            (said,) = own_words(columns, said)
            if not fields:
                text_of(said, "response")
        # Files for KTO hold disliked completions, too, which nobody should imitate.
        if verdict is not None:
            columns |= {"liked": verdict(row)}
        elif liked and flag(row.get(liked)) is not True:
            value = row.get(liked)
            raise RowError(f"{liked}={value if has_content(value) else 'missing'}")
        beside = {"output_fields": fields} if fields else {}
        return columns | {"output": said} | ended(row, "ended", "ended") | beside

    kept, left_out = _convert_all(rows, convert, name, used, chat=chat, beside=beside)
    if liked and kept and verdict is None:
        left_out.notes[f"the column {liked} decides: rows where it is true are demonstrations"] = len(kept)
    return kept, left_out


def read_prompts(
    source: Source,
    *,
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    made_by: str = "",
    unique: bool = True,
    chat: bool = False,
) -> tuple[list[Row], LeftOut]:
    """Reads prompts alone, from any layout with instruction (and input), prompt, messages or conversations.

    A conversation's last assistant turns are left off. unique: drop and count repeated prompts.
    """
    rows, name, used = load_records(source, mapping, where, made_by)
    if not set(columns_of(rows)) & set(PROMPTS):
        raise _unknown_layout(rows, name, "instruction", "prompt", "messages")

    def convert(row: UsedColumns) -> Row:
        if row.first_with_content("prompt", *INSTRUCTIONS) or not row.first_with_content(*CONVERSATIONS):
            return prompt(row)
        messages = conversation(row)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return of_messages(messages)

    return _convert_all(rows, convert, name, used, unique=unique, chat=chat)


def read_pairs(
    source: Source,
    *,
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    made_by: str = "",
    chat: bool = False,
    beside: Beside | None = None,
) -> tuple[list[Row], LeftOut]:
    """Reads preference pairs: rows with `chosen`, `rejected` and a prompt.

    Layouts: chosen and rejected as texts, message lists or whole hh-rlhf transcripts, the prompt in its own
    column or as their common beginning; or output_1, output_2 and preference in [1, 2] (1: output_1 is
    better, 2: output_2, 1.5: a tie). With a `status` column only usable labels stay. Also dropped: ties,
    missing or out-of-range preferences, empty or identical responses, exact duplicates.
    A side that did not end by itself (`chosen_ended`, `ended_1`, ... is False) has `chosen_ended` or
    `rejected_ended` False.
    """
    rows, name, used = load_records(source, mapping, where, made_by)
    found = set(columns_of(rows))
    if "chosen" in found or "rejected" in found:
        require_columns(rows, ("chosen", "rejected"), name)
    elif "output_1" in found or "output_2" in found:
        require_columns(rows, ("output_1", "output_2", "preference"), name)
        if not found & set(PROMPTS):
            require_columns(rows, ("instruction",), name)
    elif found & set(RESPONSES) and liked_column(rows, found):
        raise UserError(
            f"{name}: one completion a row with a label is no pair; train with configs/kto.py, which takes such "
            "rows, or those that are liked with configs/sft.py; or put two of one prompt into chosen and rejected"
        )
    else:
        raise _unknown_layout(rows, name, "chosen", "rejected", "output_1, output_2 and preference")

    check_preferences([row for row in rows if _is_labelled(row)], name)

    def convert(row: UsedColumns) -> Row:
        if "status" in found and row.get("status") not in USABLE_STATUS:
            raise RowError(f"status={row.get('status') or 'missing'}")
        pair = _pair_of(row)(row)
        for column in ("chosen_ended", "rejected_ended"):
            pair |= ended(row, column, column)
        sides = [(pair[side], pair.get(f"{side}_fields", {})) for side in ("chosen", "rejected")]
        if not all(said.strip() or fields.get("tool_calls") for said, fields in sides):
            raise RowError("empty response")
        # Only a chat template writes thoughts and calls. Without
        # one, sides that differ in nothing else are equal.
        if sides[0] == sides[1] or (sides[0][0] == sides[1][0] and not chat):
            raise RowError("identical outputs")
        return pair

    return _convert_all(rows, convert, name, used, unique=True, chat=chat, beside=beside)


def _is_labelled(row: Mapping[str, Any]) -> bool:
    return not ("chosen" in row or "rejected" in row)


def _pair_of(row: UsedColumns) -> Callable[[UsedColumns], Row]:
    if _is_labelled(row):
        return labelled_pair
    return explicit_pair if row.first_with_content(*PROMPTS) else implicit_pair


def load_records(
    source: Source, mapping: Mapping[str, str] | None, where: Mapping[str, Any] | None, made_by: str
) -> tuple[list[Row], str, frozenset[str]]:
    """Reads the rows: (rows, a name for messages, the columns that `mapping` and `where` use up)."""
    if isinstance(source, str | Path):
        rows, name = read_rows(source, made_by=made_by), str(source)
    else:
        # Copies, because `mapping` writes into the rows, and these are the caller's.
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
    return rows, name, frozenset([*(mapping or {}).values(), *(where or {})])


def _convert_all(
    rows: list[Row],
    convert: Callable[[UsedColumns], Row],
    name: str,
    used: frozenset[str],
    *,
    unique: bool = False,
    chat: bool = False,
    beside: Beside | None = None,
) -> tuple[list[Row], LeftOut]:
    kept: list[Row] = []
    skipped = LeftOut()
    seen = set()
    for i, row in enumerate(rows):
        # Of each row one form in memory is enough; this list is nobody else's.
        rows[i] = {}
        fields = UsedColumns(row, used)
        try:
            found = convert(fields)
            record = usable(found, fields, chat)
            if beside is not None:
                # A dict of its own: what is said of a label does not make two equal pairs different ones.
                record |= {"beside": beside(fields)}
        except RowError as e:
            skipped[str(e)] += 1
            continue
        if unique:
            key = _key(record, chat)
            if key in seen:
                skipped["duplicate"] += 1
                continue
            seen.add(key)
        # Only now: the columns of a dropped row are lost with it, and would be counted twice.
        skipped.count_kept(fields)
        if note := mark_note(found, chat):
            skipped.notes[note] += 1
        kept.append(record)
    if not kept:
        raise UserError(f"{name}: none of its {len(rows)} rows can be used; {counts_text(skipped)}")
    return kept, skipped


def _key(record: Row, chat: bool) -> tuple:
    """What makes two rows duplicates: equal texts, equal further fields of responses, with `chat` equal messages."""
    texts = [x for x in record.items() if isinstance(x[1], str | bool)]
    fields = [repr(record[name]) for name in FURTHER if name in record]
    return (*texts, *fields, repr(record["messages"]) if chat else "")


def usable(record: Row, row: UsedColumns, chat: bool) -> Row:
    """Returns a record with what the kind of template takes, or raises RowError when it cannot be used.

    The tokenizer's own takes messages with all their fields; the others take texts, so the fields are named as unused.
    """
    messages = messages_of(record)
    if chat:
        messages = _with_tools(messages, row)
    # Every text that may be written is checked: the tokenizer's own error would come late and name no row.
    said = [*messages, *(record[name] for name in FURTHER if name in record)]
    for value in [
        *(x for x in record.values() if isinstance(x, str)),
        *(x for m in said for x in m.values()),
        *(x for m in said for call in m.get("tool_calls", ()) for x in call["function"].values()),
    ]:
        if isinstance(value, str) and not _is_unicode(value):
            raise RowError("text that is not valid Unicode")
    if chat:
        return record | {"messages": messages}
    # The other templates cannot write tool calls, and without them such a conversation would make no sense.
    if any(m.get("tool_calls") or m.get("role") == "tool" for m in said):
        raise RowError(tools.NEED_CHAT)
    if any(record.get(name, {}).get("train") is False for name in FURTHER):
        raise RowError("response with weight 0")
    if says_more(record):
        row.dropped.add("messages beside the prompt")
    row.dropped.update(f"{name} of messages" for m in said for name in m if name in (*THOUGHTS, "tools"))
    return {name: value for name, value in record.items() if name not in ("messages", *FURTHER)}


def _with_tools(messages: list[ChatMessage], row: UsedColumns) -> list[ChatMessage]:
    """Puts the definitions of tools that stand beside a conversation into its first message."""
    name = row.first_with_content(*tools.DEFINITIONS)
    if not name:
        return messages
    found = tools.definitions(row[name])
    held = [m["tools"] for m in messages if m.get("tools")]
    if held and found and held != [found]:
        raise RowError("two lists of tools")
    first = messages[0] | {"tools": found} if found else messages[0]
    return [first, *messages[1:]]


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no tokenizer reads."""
    # isascii is a look at a flag, and encode a copy; most texts need only the former.
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown_layout(rows: Sequence[Row], name: str, first: str, second: str, others: str) -> UserError:
    # Its error names the columns that there are, and the one that is most like the missing one.
    try:
        require_columns(rows, (first, second), name)
    except UserError as e:
        return UserError(f"{e} (needed: {first} and {second}, or {others})")
    return UserError(f"{name}: unknown layout; needed: {first} and {second}, or {others}")
