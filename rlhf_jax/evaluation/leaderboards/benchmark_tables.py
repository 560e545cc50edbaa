"""Formats scores on benchmarks as terminal text and CSV: RewardBench 2, JudgeBench, Arena-Hard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from rlhf_jax.evaluation.benchmarks.arena_hard import ArenaBoard
from rlhf_jax.evaluation.benchmarks.judge_bench import JudgeBench
from rlhf_jax.evaluation.benchmarks.reward_bench import RewardBench
from rlhf_jax.evaluation.benchmarks.separability import Alignment
from rlhf_jax.evaluation.leaderboards.measure_tables import aligned, csv_text

_SIX = 6


def reward_bench_text(rows: Sequence[RewardBench]) -> str:
    """A line for each subset of each judge, its score with the interval, and what lacks."""
    body = [["model", "by", "subset", "score", "95 %", "chance", "rows", "missing"]]
    notes = []
    for row in rows:
        for one in row.subsets:
            name = one.name if one.in_score else f"({one.name})"
            cells = [
                _value(one.score),
                _ends(one.interval),
                _value(one.chance),
                str(one.n),
                str(one.n_missing),
            ]
            body.append([row.name, row.by, name, *cells])
            if one.why_not:
                notes.append(f"{row.name}: {one.name} {one.why_not}")
            if one.parts:
                said = ", ".join(f"{term} {value:.1f}" for term, value in one.parts.items())
                notes.append(f"{row.name}: {one.name}: {said}")
        whole = "score" if row.n_subsets == _SIX else f"mean of {row.n_subsets} of {_SIX} subsets"
        body.append([row.name, row.by, whole, _value(row.score), _ends(row.interval), "", "", ""])
    return aligned(body) + "".join(f"{note}\n" for note in notes)


def judge_bench_text(rows: Sequence[JudgeBench]) -> str:
    """A line for each part of JudgeBench and each judge."""
    body = [
        ["annotator", "part", "accuracy", "95 %", "pairs", "tied", "both right", "inconsistent", "missing"]
    ]
    for row in rows:
        for one in row.parts:
            counts = (one.n, one.n_tied, one.n_both, one.n_inconsistent, one.n_missing)
            body.append([row.name, one.name, _value(one.accuracy), _ends(one.interval), *map(str, counts)])
    notes = [f"{row.name}: judged in one order only\n" for row in rows if row.n_orders == 1]
    return aligned(body) + "".join(notes)


def arena_text(board: ArenaBoard, separable: float, n_pairs: int, agreed: Alignment | None) -> str:
    """A line for each model, the weights of the styles, and what the scores are worth."""
    styled = bool(board.styles)
    body = [
        ["#", "model", "score", "95 %", *(["no control"] if styled else []), "prompts", "games", "strong"]
    ]
    for rank, row in enumerate(board.scores, 1):
        counts = [str(n) for n in (row.n_prompts, row.n_games, row.n_strong)]
        plain = [_value(row.plain)] if styled else []
        body.append([str(rank), row.model, _value(row.score), _ends(row.interval), *plain, *counts])
    lines = [aligned(body)]
    for name, (gamma, ends) in board.styles.items():
        lines.append(f"{name}: {gamma:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}] per standard deviation\n")
    lines.append(f"separability: {_value(separable)} % of {n_pairs} pairs\n")
    if agreed is not None:
        lines.append(
            f"against the reference: agreement with confidence {_value(agreed.agreement)} %, Spearman "
            f"{agreed.spearman:.3f}, Kendall {agreed.kendall:.3f}, Brier {agreed.brier:.3f}, of {agreed.n_pairs} pairs "
            f"of {agreed.n_models} models\n"
        )
    return "".join(lines)


def reward_bench_csv(rows: Sequence[RewardBench]) -> str:
    """Write a record for each subset, and one for the score, at full precision."""
    columns = ("name", "by", "subset", "score", "score_low", "score_high", "chance", "n", "n_missing")
    records = []
    for row in rows:
        for one in row.subsets:
            counts = {"chance": _known(one.chance), "n": one.n, "n_missing": one.n_missing}
            records.append(_record(row, one.name, one.score, one.interval) | counts)
        records.append(_record(row, f"mean of {row.n_subsets}", row.score, row.interval))
    return csv_text(columns, records)


def judge_bench_csv(rows: Sequence[JudgeBench]) -> str:
    """Write a record for each part at full precision."""
    records = [
        {"judge": row.name, "n_orders": row.n_orders}
        | {name: value for name, value in asdict(one).items() if name != "interval"}
        | {"accuracy_low": one.interval[0], "accuracy_high": one.interval[1]}
        for row in rows
        for one in row.parts
    ]
    return csv_text(tuple(records[0]), records)


def arena_csv(boards: Sequence[ArenaBoard]) -> str:
    """Write a record for each model of each board; `model`, `score` and its ends are what a reference is read from."""
    records = [
        {"category": board.category, "rank": rank, "model": row.model, "score": _known(row.score)}
        | {"score_low": _known(row.interval[0]), "score_high": _known(row.interval[1])}
        | {"score_without_control": _known(row.plain), "n_prompts": row.n_prompts, "n_games": row.n_games}
        for board in boards
        for rank, row in enumerate(board.scores, 1)
    ]
    return csv_text(tuple(records[0]), records)


def _record(row: RewardBench, subset: str, score: float, interval: tuple[float, float]) -> dict[str, object]:
    low, high = (_known(end) for end in interval)
    named = {"name": row.name, "by": row.by, "subset": subset}
    return named | {"score": _known(score), "score_low": low, "score_high": high}


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _value(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _ends(interval: tuple[float, float]) -> str:
    return "-" if math.isnan(interval[0]) else f"[{interval[0]:.1f}, {interval[1]:.1f}]"
