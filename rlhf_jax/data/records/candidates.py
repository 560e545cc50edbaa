"""Reads prompts with several scored responses: what ranks them may be a reward model, a judge or a person.

Layouts: a prompt with `responses` (or `outputs`) and `scores`, as `score` writes them; `query`, `responses`, `scores`,
as RRHF has them; one `output` and its `rating` a row, as `annotate` writes them. Responses to the same prompt are put
together, also from several files, so that provided and sampled ones can be read beside each other.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_jax.data.files.tables import columns_of
from rlhf_jax.data.records.left_out import LeftOut, RowError, UsedColumns, counts_text
from rlhf_jax.data.records.records import FURTHER, USABLE_STATUS, Source, load_records
from rlhf_jax.data.records.row_parts import PROMPTS, RESPONSES, missing
from rlhf_jax.data.records.scored_responses import answers_of, list_in
from rlhf_jax.data.templates import mark_note
from rlhf_jax.errors import UserError

Row = dict[str, Any]
# Read by other jobs, or said of the responses by the one that wrote them.
_BESIDE = frozenset({"generator", "reasons", "beam_score", "beam_scores", "judge_id"})
_OF_A_RESPONSE = ("output", "ended", *FURTHER)


def read_candidates(
    source: Source, *, made_by: str = "", chat: bool = False, query: str = "instruction"
) -> tuple[list[Row], LeftOut]:
    """Reads one row per prompt: its columns and `candidates`, records with `output` and `score`; counts the rest.

    source: as other readers take it, or the paths of several files with commas between them. Scores of one prompt
    have to be on one scale. Ratings of two judges are not, so they make two rows; other scores are taken as they are.
    query: what RRHF's column of that name is: an instruction, which goes into the template, or a whole prompt.
    A response without a score, or that stands twice beside a prompt, is dropped. Raises UserError when none is left.
    """
    several = source.split(",") if isinstance(source, str) else [source]
    groups: dict[tuple, Row] = {}
    skipped, total = LeftOut(), 0
    for one in several:
        rows, name = _load(one.strip() if isinstance(one, str) else one, made_by, query)
        total += len(rows)
        for row in rows:
            fields = UsedColumns(row, _BESIDE)
            try:
                found = list(_scored(fields, skipped, chat))
            except RowError as reason:
                skipped[str(reason)] += 1
                continue
            if found:
                skipped.count_kept(fields)
                if note := mark_note(found[0], chat):
                    skipped.notes[note] += 1
            for record in found:
                _add(groups, record, row.get("judge_id") if "rating" in row else None, skipped)
    if not groups:
        raise UserError(f"{name}: none of its {total} rows can be used; {counts_text(skipped)}")
    return list(groups.values()), skipped


def _load(source: Source, made_by: str, query: str) -> tuple[list[Row], str]:
    rows, name, _ = load_records(source, None, None, made_by)
    found = set(columns_of(rows))
    if "query" in found and not found & set(PROMPTS):
        rows = [{(query if k == "query" else k): value for k, value in row.items()} for row in rows]
    elif not found & set(PROMPTS):
        raise UserError(
            f"{name}: no prompts; it has {', '.join(sorted(found))} (needed: prompt, instruction or query)"
        )
    scored = "scores" in found and found & {"responses", "outputs"}
    if not scored and not ("rating" in found and found & set(RESPONSES)):
        raise UserError(
            f"{name}: no scored responses; it has {', '.join(sorted(found))} (needed: responses and scores, as "
            "configs/score.py writes them, or output and rating, as configs/annotate.py:ratings does; it also turns "
            "pairs and rankings into formats=rrhf)"
        )
    return rows, name


def _scored(row: UsedColumns, skipped: LeftOut, chat: bool) -> Iterator[Row]:
    """The responses of a row that have a score, each a record with `output` and `score`."""
    if "scores" in row:
        scores = list_in(row["scores"], int | float)
    else:
        if "status" in row and row["status"] not in USABLE_STATUS:
            raise RowError(f"status={row['status'] or 'missing'}")
        scores = [row["rating"]]
    _, records = answers_of(row, chat)
    if not isinstance(scores, list | tuple) or len(scores) != len(records):
        raise RowError("not one score for each response")
    for record, score in zip(records, scores, strict=True):
        reason = record if isinstance(record, str) else _no_score(score)
        if reason:
            skipped[reason] += 1
        else:
            yield {**record, "score": float(score)}


def _no_score(score: Any) -> str:
    if missing(score):
        return "response without a score"
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return "score is not a finite number"
    return ""


def _add(groups: dict[tuple, Row], record: Row, judge: Any, skipped: LeftOut) -> None:
    columns = {name: x for name, x in record.items() if name not in (*_OF_A_RESPONSE, "score")}
    group = groups.setdefault((repr(columns), judge), columns | {"candidates": []})
    # The same words with the same score would only count every pair twice; with another score they contradict it.
    if any(_said(record) == _said(other) for other in group["candidates"]):
        skipped["same response to the same prompt again"] += 1
    else:
        group["candidates"].append(record)


def _said(record: Mapping[str, Any]) -> tuple:
    return tuple(repr(record.get(name)) for name in _OF_A_RESPONSE)
