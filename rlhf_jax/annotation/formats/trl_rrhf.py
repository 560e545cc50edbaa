"""What other trainers read, a JSON object per line: TRL's preferences and RRHF's scored responses.

TRL: prompt, chosen, rejected, as texts or as lists of chat messages. The explicit-prompt layouts are written; those,
the implicit ones (both sides hold the whole conversation) and transcripts like hh-rlhf's are read.
RRHF: {"query", "responses", "scores"}, the two lists of equal lengths.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import column, labelled, pair, prompt_of_row, rated, write_lines
from rlhf_jax.annotation.kinds.pairs import ended_sides
from rlhf_jax.annotation.labels.expansion import scored_of
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError
from rlhf_jax.annotation.parsing.contracts import PAIRWISE
from rlhf_jax.data.files.tables import read_table, require_columns
from rlhf_jax.data.records.records import counts_text, read_pairs
from rlhf_jax.errors import UserError


def read_trl(path: str | Path) -> list[dict]:
    """Read labelled pairs, the chosen response as output_1; print how many `read_pairs` has left out."""
    pairs, left_out = read_pairs(path)
    print(f"{path}: {len(pairs)} pairs read; {counts_text(left_out)}", flush=True)
    rows = []
    for one in pairs:
        instruction = one["instruction"] if "instruction" in one else one["prompt"]
        made = pair(instruction, one.get("input", ""), (one["chosen"], one["rejected"]), 1.0)
        rows.append(made | ended_sides(one.get("chosen_ended"), one.get("rejected_ended")))
    return rows


def write_trl(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write prompt, chosen and rejected as texts, and margin, how far the preference is from a tie (0 to 1).

    Ties and rows without a label are left out. chosen_ended, rejected_ended: where the labels know whether the
    outputs ended by themselves (TRL does not read them; a reader here does).
    """
    return write_lines(
        path, [dict(zip(_NAMES, one, strict=True)) | ended for *one, ended in _decided(rows, path)]
    )


def write_conversational(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write as `write_trl`, each of prompt, chosen and rejected as a list of one chat message."""
    lines = []
    for prompt, chosen, rejected, margin, ended in _decided(rows, path):
        sides = (_message("user", prompt), _message("assistant", chosen), _message("assistant", rejected))
        lines.append(dict(zip(_NAMES, (*sides, margin), strict=True)) | ended)
    return write_lines(path, lines)


_NAMES = ("prompt", "chosen", "rejected", "margin")


def _message(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def _decided(rows: Sequence[Mapping], path: str | Path) -> list[tuple[str, str, str, float, dict[str, bool]]]:
    made = []
    for row in labelled(rows, PAIRWISE, path):
        one, two, p_2 = row["output_1"], row["output_2"], row["preference"] - 1.0
        # A tie has no chosen side.
        if p_2 != 0.5:
            chosen, rejected = (two, one) if p_2 > 0.5 else (one, two)
            # The flags go with their outputs when the second is the chosen one.
            names = ("rejected_ended", "chosen_ended") if p_2 > 0.5 else ("chosen_ended", "rejected_ended")
            found = zip(names, (row.get("ended_1"), row.get("ended_2")), strict=True)
            ended = {name: value for name, value in found if value is not None}
            made.append((prompt_of_row(row), chosen, rejected, abs(2.0 * p_2 - 1.0), ended))
    if not made:
        raise NothingToWriteError(f"{path}: all labelled pairs are ties; nothing is chosen over anything")
    return made


def read_rrhf(path: str | Path) -> list[dict]:
    """Read one rated row per response."""
    table = read_table(path)
    require_columns(table, ("query", "responses", "scores"), path)
    rows = []
    for i, row in enumerate(table):
        where = f"{path}: row {i + 1}"
        query, responses, scores = column(row, "query", where), row["responses"], row["scores"]
        if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
            raise UserError(
                f"{where}: scores: need one for each of the responses, in two lists of equal length"
            )
        for k, (response, score) in enumerate(zip(responses, scores, strict=True)):
            if not isinstance(score, int | float) or isinstance(score, bool):
                raise UserError(f"{where}: scores[{k}]: found {score!r}; it must be a number")
            if not isinstance(response, str):
                raise UserError(f"{where}: responses[{k}]: found {response!r}; it must be text")
            # Each response is a rating of its own; `scored_of` puts them together again by their prompt.
            rows.append(rated(query, "", response, float(score)) | {"sample_id": k})
    return rows


def write_rrhf(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write ratings, rankings or pairs as scored responses (`expansion.scored_of`); return how many prompts."""
    scored = [
        {"query": prompt_of_row(one), "responses": one["responses"], "scores": one["scores"]}
        for one in scored_of(rows)
    ]
    if not scored:
        raise NothingToWriteError(f"{path}: no prompt has two scored responses")
    return write_lines(path, scored)
