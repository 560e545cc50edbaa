"""Places a model on AlpacaFarm's leaderboard in one call: its outputs are judged against a baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import rlhf_jax
from rlhf_jax.annotation import annotate_head2head, load_pool
from rlhf_jax.annotation.judges.random_choices import merged_instruction
from rlhf_jax.data.files.tables import read_table, require_columns
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.leaderboard import (
    LeaderboardRow,
    average_length,
    leaderboard_text,
    sort_rows,
)
from rlhf_jax.evaluation.leaderboards.published import read_published
from rlhf_jax.evaluation.measures.length_control import length_controlled_win_rate
from rlhf_jax.evaluation.measures.win_rate import win_rate
from rlhf_jax.feedback.judging import JudgingLine, judge_urls
from rlhf_jax.jobs.evaluate.evaluation_measures import pool_id

CONFIGS = Path(rlhf_jax.__file__).parents[1] / "configs"


def alpaca_leaderboard(
    outputs: str | Path | Sequence[Mapping],
    name: str = "",
    *,
    baseline: str | Path | Sequence[Mapping] = "tatsu-lab/alpaca_eval",
    judges: str | Path = CONFIGS / "judges" / "gpt4_ranking.yaml",
    published: str | Path | None = CONFIGS / "leaderboards" / "alpaca_eval_1.csv",
    cache_path: str | Path | None = "alpaca_leaderboard.sqlite",
    min_coverage: float = 0.8,
    base_urls: Mapping[str, str] | None = None,
) -> list[LeaderboardRow]:
    """Judges a model's outputs, prints them among the published rows, and returns all rows, best first.

        alpaca_leaderboard("outputs.json", name="My fancy model")

    outputs, baseline: a file, a dataset's name or rows, with instruction, output and optionally input and
    generator; an input is joined to its instruction, as AlpacaEval's baseline outputs have it. Instructions
    that one side lacks are left out, with their number printed. name: "" takes the outputs' generator.
    published: a leaderboard CSV with judge, baseline and n in every row; None shows the model alone. Numbers
    by another judge stand in the table with that judge's name: they do not compare. cache_path: answers,
    so that the same call asks nothing again. base_urls: addresses of symbolic base_urls.

    Raises UserError for a missing file or column, no instruction in common, or fewer than `min_coverage`
    of the judged rows with a label.
    """
    pool = load_pool(judges)
    others = [row.row() for row in read_published(published).values()] if published else []
    mine, base = _rows(outputs, "outputs"), _rows(baseline, "baseline")
    name = name or mine[0].get("generator") or "model"
    base_name = base[0].get("generator") or "baseline"
    # The baseline first: a preference of 2 then means that
    # the model is better, as in all of AlpacaEval's files.
    with judge_urls(pool) as urls:
        done = annotate_head2head(
            base,
            mine,
            pool,
            cache_path=cache_path,
            base_urls={**urls, **(base_urls or {})},
            progress=JudgingLine(),
        )
    counts, labels = done.summary, [row["preference"] for row in done.rows]
    print(
        f"{len(labels)} of {counts['rows_1']} instructions of {base_name} have an output of {name}; "
        f"{counts['dropped_2']} of its {counts['rows_2']} outputs are to none of them"
    )
    rate = win_rate(labels, min_coverage=min_coverage)
    try:
        controlled = length_controlled_win_rate(done.rows, min_coverage=min_coverage)
    # A length-controlled rate is more than was asked for: where it cannot be fitted, the row goes without.
    except UserError as error:
        controlled = None
        print(f"length control: {error}")
    row = LeaderboardRow(
        method=name,
        judge=pool.name,
        baseline=base_name,
        win_rate=rate,
        avg_length=average_length([one["output"] for one in mine]),
        n_outputs=len(mine),
        judge_id=pool_id(pool),
        length_controlled=controlled,
    )
    # A published row of the same name is the one that was computed again.
    rows = sort_rows([row, *(other for other in others if other.method != name)])
    print(leaderboard_text(rows))
    return rows


def _rows(source: str | Path | Sequence[Mapping], what: str) -> list[dict]:
    """Reads rows and joins the input to the instruction, by which outputs and baseline then meet."""
    named = isinstance(source, str | Path)
    rows = read_table(source) if named else [dict(row) for row in source]
    if not rows:
        raise UserError(f"{what}: no rows; give instruction and output of every answer")
    require_columns(rows, ("instruction", "output"), source if named else what)
    made = []
    for i, row in enumerate(rows):
        if not isinstance(row["instruction"], str) or not isinstance(row["output"], str):
            raise UserError(f"{what}[{i}]: instruction and output must be text; mend or drop the row")
        merged = merged_instruction(row["instruction"], row.get("input") or "")
        made.append({**row, "instruction": merged, "input": ""})
    return made
