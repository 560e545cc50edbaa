"""Reads records whose responses are to be scored: every row stays, and what cannot be scored says why.

Unlike the readers of `records` this one drops nothing, since scores are joined to the rows of their file again.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlhf_jax.data.files.tables import columns_of
from rlhf_jax.data.records.benchmark_rows import OF_BENCHMARK, rows_to_rate
from rlhf_jax.data.records.label_columns import about_label
from rlhf_jax.data.records.left_out import LeftOut, RowError, UsedColumns
from rlhf_jax.data.records.messages import from_text
from rlhf_jax.data.records.records import USABLE_STATUS, Source, load_records, usable
from rlhf_jax.data.records.row_parts import (
    CONVERSATIONS,
    PROMPTS,
    RESPONSES,
    conversation,
    ended,
    explicit_pair,
    implicit_pair,
    last_turn,
    of_messages,
    own_words,
    prompt,
    response,
)
from rlhf_jax.errors import UserError

Row = dict[str, Any]
_LISTS = ("outputs", "responses")
_KEPT = ("instruction", "input", "prompt", "messages", "ended", "generator", *OF_BENCHMARK)


class Answered(NamedTuple):
    """A row of a file with its responses.

    Attributes:
    columns: what is kept of it beside its responses.
    responses: their texts, None where there is none.
    records: for each a record with `output`, or the reason why it cannot be scored.
    label: of a labelled pair which response is better, `better` (0 or 1), with what `about_label` reads; else empty.
    """

    columns: Row
    responses: list[str | None]
    records: list[Row | str]
    label: Row


def read_responses(
    source: Source, *, made_by: str = "", chat: bool = False
) -> tuple[list[Answered], LeftOut]:
    """Reads all rows with their prompts and responses, and counts the responses that cannot be scored by reason.

    Layouts: those of `read_instructions`; a list in `outputs` or `responses`; output_1 and output_2; chosen and
    rejected; the files of RewardBench 2 and JudgeBench, whose prompts are taken as instructions. Raises UserError when
    the file has none of them.
    """
    rows, name, _ = load_records(source, None, None, made_by)
    rows = rows_to_rate(rows, name)
    found = set(columns_of(rows))
    needed = {*RESPONSES, *_LISTS, *CONVERSATIONS, "output_1", "chosen"}
    if not found & needed or not found & {*PROMPTS, "chosen"}:
        raise UserError(
            f"{name}: no responses to score; it has {', '.join(sorted(found))} (needed: a prompt, instruction or "
            "messages, and output, outputs, output_1 and output_2, or chosen and rejected)"
        )
    read, skipped = [], LeftOut()
    for row in rows:
        fields = UsedColumns(row, frozenset({"generator", *OF_BENCHMARK}))
        texts, records = answers_of(fields, chat)
        skipped.update(reason for reason in records if isinstance(reason, str))
        label = _label(fields, len(texts))
        if any(isinstance(record, dict) for record in records):
            skipped.count_kept(fields)
        first = next((record for record in records if isinstance(record, dict)), {})
        # The prompt as it was read replaces the row's own, which may be a list of messages or JSON text.
        columns = {name: row[name] for name in _KEPT if name in row and not (name == "prompt" and first)}
        columns |= {name: first[name] for name in ("instruction", "input", "prompt") if name in first}
        read.append(Answered(columns, texts, records, label))
    return read, skipped


def _label(row: UsedColumns, responses: int) -> Row:
    """Which of a pair's two responses its row says to be better; empty where there is no usable label."""
    if responses != 2 or row.first_with_content(*_LISTS):
        return {}
    if row.first_with_content("chosen") and row.first_with_content("rejected"):
        return {"better": 0} | about_label(row)
    preference = row.peek("preference")
    number = isinstance(preference, int | float) and not isinstance(preference, bool)
    # A tie says of neither that it is better, and a judgment that failed says nothing.
    if not number or not 1 <= preference <= 2 or preference == 1.5:
        return {}
    if "status" in row and row.get("status") not in USABLE_STATUS:
        return {}
    # Read and not looked at from here on, so that it is not told as a column that nobody used.
    return {"better": int(row["preference"] > 1.5)} | about_label(row)


def answers_of(row: UsedColumns, chat: bool) -> tuple[list[str | None], list[Row | str]]:
    """Reads a row's responses: (their texts, for each a record with `output` or the reason why there is none)."""
    try:
        columns, values, fields = _prompt_and_values(row)
    # Without a prompt none of the row's responses can be scored, for the same reason.
    except RowError as reason:
        texts = [value if isinstance(value, str) else None for value in _values(row)]
        return texts, [str(reason)] * len(texts)
    records = [
        _record(row, columns, value, beside, whole, chat)
        for value, beside, whole in zip(values, fields, _ended(row, values), strict=True)
    ]
    said = [
        record["output"] if isinstance(record, dict) else value
        for record, value in zip(records, values, strict=True)
    ]
    return [text if isinstance(text, str) else None for text in said], records


def _prompt_and_values(row: UsedColumns) -> tuple[Row, list[Any], list[Row]]:
    """Reads (the prompt's columns, the responses, for each the further fields of its message that are known by now)."""
    if row.has("chosen") and row.has("rejected"):
        pair = (explicit_pair if row.first_with_content(*PROMPTS) else implicit_pair)(row)
        values = [pair.pop("chosen"), pair.pop("rejected")]
        fields = [pair.pop(f"{side}_fields", {}) for side in ("chosen", "rejected")]
        return {name: x for name, x in pair.items() if not name.endswith("_ended")}, values, fields
    named = (*RESPONSES, *_LISTS, "output_1", "output_2", "chosen", "rejected")
    # Without a column of responses the conversation's last turn is the response.
    if row.first_with_content(*CONVERSATIONS) and not row.first_with_content(*named):
        before, said, fields = last_turn(conversation(row))
        return of_messages(before), [said], [fields]
    values = _values(row)
    return prompt(row), values, [{} for _ in values]


def _values(row: UsedColumns) -> list[Any]:
    """Finds the responses of a row: one, two, or all of a list."""
    for name in _LISTS:
        if row.has(name):
            value = list_in(row[name], str)
            return list(value) if isinstance(value, list) else [value]
    for pair in (("output_1", "output_2"), ("chosen", "rejected")):
        if row.first_with_content(*pair):
            return [row.get(name) for name in pair]
    named = row.first_with_content(*RESPONSES) or next((name for name in RESPONSES if name in row), "output")
    return [row.get(named)]


def list_in(value: Any, kind: type | tuple[type, ...]) -> Any:
    """Parses a list of texts, marks or numbers that stands as JSON, as a column of several kinds does in parquet."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not isinstance(found, list) or not all(x is None or isinstance(x, kind) for x in found):
        return value
    return found


def _ended(row: UsedColumns, values: list[Any]) -> list[Any]:
    """What the row says of the end of each response: `ended`, a list of it, or ended_1 and ended_2."""
    # A list of another length does not say which response it speaks of.
    marks = list_in(row.peek("ended"), bool)
    if isinstance(marks, list) and len(marks) == len(values):
        # Read here, so that it counts as used.
        return list(list_in(row["ended"], bool))
    sides = [row.get(name) for name in ("ended_1", "ended_2") if name in row]
    return sides if len(sides) == len(values) else [row.get("ended")] * len(values)


def _record(
    row: UsedColumns, columns: Mapping[str, Any], value: Any, fields: Row, whole: Any, chat: bool
) -> Row | str:
    try:
        said = from_text(value)
        # A text is taken as it is: a model may say nothing, and an empty response has a score, too.
        if not isinstance(said, str):
            said, fields = response(value, row)
        (said,) = own_words(columns, said)
        # A weight says what is trained; scores are of any response.
        fields = {name: x for name, x in fields.items() if name != "train"}
        mark = ended(UsedColumns({"ended": whole}), "ended", "ended")
        record = {**columns, "output": said, **mark} | ({"output_fields": fields} if fields else {})
        return usable(record, row, chat)
    except RowError as reason:
        return str(reason)
