"""Writes what the measure job found as terminal lines, as summary.json and as the content of the report."""

from __future__ import annotations

import dataclasses
import time

from rlhf_jax import __version__
from rlhf_jax.evaluation.benchmarks.arena_hard import ArenaBoard
from rlhf_jax.evaluation.benchmarks.judge_bench import JudgeBench
from rlhf_jax.evaluation.benchmarks.reward_bench import RewardBench
from rlhf_jax.evaluation.benchmarks.separability import Alignment
from rlhf_jax.evaluation.leaderboards import benchmark_tables
from rlhf_jax.evaluation.leaderboards import measure_tables as tables
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow, leaderboard_text
from rlhf_jax.evaluation.measures.bradley_terry import Rating
from rlhf_jax.evaluation.measures.evaluators import Evaluator
from rlhf_jax.evaluation.measures.rating_win_rates import Consistency
from rlhf_jax.evaluation.measures.reliability import Reliability
from rlhf_jax.evaluation.report.report_data import Report
from rlhf_jax.jobs.evaluate.evaluation_results import plain_numbers


@dataclasses.dataclass(frozen=True)
class ArenaResult:
    """A board, the share of its n_pairs pairs of models that it tells apart, in percent, and its agreement."""

    board: ArenaBoard
    separability: float
    n_pairs: int
    agreement: Alignment | None


@dataclasses.dataclass
class Measured:
    """What was measured; a part without files stays empty. difficulty: rows of a table for evaluate."""

    ratings: list[Rating] = dataclasses.field(default_factory=list)
    difficulty: list[dict] = dataclasses.field(default_factory=list)
    elo: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    evaluators: list[Evaluator] = dataclasses.field(default_factory=list)
    reliability: dict[str, Reliability] = dataclasses.field(default_factory=dict)
    board: list[LeaderboardRow] = dataclasses.field(default_factory=list)
    consistency: Consistency | None = None
    reward_benches: list[RewardBench] = dataclasses.field(default_factory=list)
    judge_benches: list[JudgeBench] = dataclasses.field(default_factory=list)
    arenas: list[ArenaResult] = dataclasses.field(default_factory=list)


def measures_text(found: Measured) -> str:
    """Writes measures.txt: a table or a line per measure, each with its n."""
    lines = []
    if found.ratings:
        lines += [
            "Bradley-Terry ratings; [ ] bootstrap over instructions, 95 %; Elo with its spread over orders"
        ]
        lines += [tables.ratings_text(found.ratings, found.elo)]
    if found.evaluators:
        lines += ["evaluators, % unless said; (n)", tables.evaluators_text(found.evaluators)]
        for name, value in found.reliability.items():
            lines.append(f"{name}: {value.value:.3f} ({value.n_items} pairs, {value.n_labels} labels)")
        lines.append("")
    if found.board:
        lines.append(leaderboard_text(found.board))
        lines += [
            f"{row.method} by {row.judge}: {row.win_rate.win_rate:.2f} ± {1.96 * row.win_rate.standard_error:.2f} "
            f"(1.96 standard errors), n {row.win_rate.n_total}"
            for row in found.board
        ]
        lines.append("")
    if (c := found.consistency) is not None:
        lines.append(
            f"consistency of ratings and rankings: {c.consistency:.1f} % [{c.interval[0]:.1f}, {c.interval[1]:.1f}] "
            f"of {c.n_total} pairs; {c.n_unrated} more without two ratings, {c.n_unranked} without a ranking"
            + (f", {c.n_other_judge} rated by different judges" if c.n_other_judge else "")
        )
    lines += _benchmark_lines(found)
    return "\n".join(lines).rstrip("\n") + "\n"


def _benchmark_lines(found: Measured) -> list[str]:
    lines = []
    if found.reward_benches:
        text = benchmark_tables.reward_bench_text(found.reward_benches)
        lines += ["RewardBench 2, %; [ ] bootstrap over rows, 95 %", text]
    if found.judge_benches:
        text = benchmark_tables.judge_bench_text(found.judge_benches)
        lines += ["JudgeBench, %; [ ] Wilson score interval, 95 %", text]
    for one in found.arenas:
        names = (("category", one.board.category), ("against", one.board.baseline))
        which = "".join(f", {what} {name}" for what, name in names if name)
        text = benchmark_tables.arena_text(one.board, one.separability, one.n_pairs, one.agreement)
        lines += [f"Arena-Hard{which}, %; [ ] bootstrap over prompts, 95 %", text]
    return lines


def benchmark_files(found: Measured) -> dict[str, str]:
    """Returns the CSV files of benchmarks: name -> text."""
    files = {}
    if found.reward_benches:
        files["reward_bench.csv"] = benchmark_tables.reward_bench_csv(found.reward_benches)
    if found.judge_benches:
        files["judge_bench.csv"] = benchmark_tables.judge_bench_csv(found.judge_benches)
    if found.arenas:
        files["arena_hard.csv"] = benchmark_tables.arena_csv([one.board for one in found.arenas])
    return files


def measures_summary(found: Measured) -> dict:
    """Returns the content of summary.json: every number with its n; null where a value does not exist."""
    return {
        "version": __version__,
        "ratings": plain_numbers(found.ratings),
        "elo": {name: {"rating": r, "spread": s} for name, (r, s) in found.elo.items()},
        "evaluators": plain_numbers(found.evaluators),
        "reliability": plain_numbers(found.reliability),
        "win_rates": [
            {"method": row.method, "by": row.judge, "baseline": row.baseline}
            | plain_numbers(row.win_rate)
            | {"normal_interval": plain_numbers(row.win_rate.normal_interval)}
            for row in found.board
        ],
        "consistency": plain_numbers(found.consistency),
        "reward_bench": plain_numbers(found.reward_benches),
        "judge_bench": plain_numbers(found.judge_benches),
        "arena_hard": [_arena_summary(one) for one in found.arenas],
    }


def _arena_summary(one: ArenaResult) -> dict:
    board = {field.name: getattr(one.board, field.name) for field in dataclasses.fields(one.board)}
    del board["draws"]
    return plain_numbers(board) | {
        "separability": plain_numbers(one.separability),
        "n_pairs": one.n_pairs,
        "agreement": plain_numbers(one.agreement),
    }


def measures_report(found: Measured, title: str) -> Report:
    """Returns the content of the report's page."""
    facts = {name: f"{value.value:.3f}, n {value.n_items}" for name, value in found.reliability.items()}
    if (c := found.consistency) is not None:
        facts["ratings against rankings"] = f"{c.consistency:.1f} % consistent, n {c.n_total}"
    for row in found.reward_benches:
        facts[f"{row.name}, RewardBench 2"] = f"{row.score:.1f} %, {row.n_subsets} of 6 subsets"
    for row in found.judge_benches:
        facts[f"{row.name}, JudgeBench"] = f"{row.parts[-1].accuracy:.1f} %, n {row.parts[-1].n}"
    for one in found.arenas:
        for row in one.board.scores:
            where = one.board.category or "Arena-Hard"
            facts[f"{row.model}, {where}"] = (
                f"{row.score:.1f} % [{row.interval[0]:.1f}, {row.interval[1]:.1f}]"
            )
    facts["made"] = f"{time.strftime('%Y-%m-%d')} by rlhf_jax {__version__}"
    return Report(
        title=title,
        leaderboard=found.board,
        facts=facts,
        ratings=found.ratings,
        evaluators=found.evaluators,
    )
