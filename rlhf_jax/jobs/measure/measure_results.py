"""Writes what the measure job found as terminal lines, as summary.json and as the content of the report."""

from __future__ import annotations

import dataclasses
import time

from rlhf_jax import __version__
from rlhf_jax.evaluation.leaderboards import measure_tables as tables
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow, leaderboard_text
from rlhf_jax.evaluation.measures.bradley_terry import Rating
from rlhf_jax.evaluation.measures.evaluators import Evaluator
from rlhf_jax.evaluation.measures.rating_win_rates import Consistency
from rlhf_jax.evaluation.measures.reliability import Reliability
from rlhf_jax.evaluation.report.report_data import Report
from rlhf_jax.jobs.evaluate.evaluation_results import plain_numbers


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
    return "\n".join(lines).rstrip("\n") + "\n"


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
    }


def measures_report(found: Measured, title: str) -> Report:
    """Returns the content of the report's page."""
    facts = {name: f"{value.value:.3f}, n {value.n_items}" for name, value in found.reliability.items()}
    if (c := found.consistency) is not None:
        facts["ratings against rankings"] = f"{c.consistency:.1f} % consistent, n {c.n_total}"
    facts["made"] = f"{time.strftime('%Y-%m-%d')} by rlhf_jax {__version__}"
    return Report(
        title=title,
        leaderboard=found.board,
        facts=facts,
        ratings=found.ratings,
        evaluators=found.evaluators,
    )
