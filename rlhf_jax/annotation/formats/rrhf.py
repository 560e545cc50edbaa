"""RRHF's training file: one JSON object per line, {"query", "responses", "scores"} of equal lengths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import column, prompt_of_row, rated, write_lines
from rlhf_jax.annotation.labels.expansion import scored_of
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError
from rlhf_jax.data.files.tables import read_table, require_columns
from rlhf_jax.errors import UserError


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
