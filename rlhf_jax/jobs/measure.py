"""Measures labels that exist already: annotators against a gold crowd, models on one scale, ratings, rankings.

Asks nobody and needs no jax. Every part is measured whose files are named.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import __version__
from rlhf_jax.annotation.formats import read_feedback
from rlhf_jax.data.tables import read_table, require_columns
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import measure_tables as tables
from rlhf_jax.evaluation.agreement import labels_from_scores
from rlhf_jax.evaluation.evaluators import Evaluator, evaluator
from rlhf_jax.evaluation.leaderboard import LeaderboardRow, average_length, leaderboard_csv, leaderboard_text
from rlhf_jax.evaluation.rankings import Rating, bradley_terry, elo
from rlhf_jax.evaluation.ratings import (
    Consistency,
    consistency,
    win_rate_from_rankings,
    win_rate_from_ratings,
)
from rlhf_jax.evaluation.reliability import Reliability, cohen_kappa, fleiss_kappa, krippendorff_alpha
from rlhf_jax.evaluation.report import write_report
from rlhf_jax.evaluation.report_data import Report
from rlhf_jax.jobs.evaluation_inputs import named
from rlhf_jax.jobs.evaluation_results import as_json, plain, write_files

PAIR = ("instruction", "output_1", "output_2")
GOLD, LONGEST = "gold", "longer output wins"


@dataclasses.dataclass
class Found:
    """What was measured; a part without files stays empty."""

    ratings: list[Rating] = dataclasses.field(default_factory=list)
    elo: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    evaluators: list[Evaluator] = dataclasses.field(default_factory=list)
    reliability: dict[str, Reliability] = dataclasses.field(default_factory=dict)
    board: list[LeaderboardRow] = dataclasses.field(default_factory=list)
    consistency: Consistency | None = None


def run(config: ConfigDict, workdir: str) -> None:
    """Writes measures.txt, summary.json, report.html and a CSV file per table to WORKDIR, and prints the text.

    Raises UserError when nothing is named, for files that are missing or lack a column, and for a number over
    a smaller share of its rows than config.min_coverage.
    """
    folder = Path(workdir)
    write_files(folder, {"config.json": as_json(config.to_dict())})
    found = Found()
    if config.games:
        _rate(config, found)
    if config.annotators or config.gold:
        _compare_annotators(config, found)
    if config.ratings or config.rankings:
        _ratings(config, found)
    if found == Found():
        raise UserError(
            "games: nothing to measure; name games, annotators and gold, ratings and baseline, or rankings"
        )
    text = _text(found)
    files = {"measures.txt": text, "summary.json": as_json(_summary(found))}
    if found.ratings:
        files["ratings.csv"] = tables.ratings_csv(found.ratings, found.elo)
    if found.evaluators:
        files["evaluators.csv"] = tables.evaluators_csv(found.evaluators)
    if found.board:
        files["leaderboard.csv"] = leaderboard_csv(found.board)
    write_files(folder, files)
    write_report(folder / "report.html", _report(found, config.title))
    print(f"{text}\nreport: {(folder / 'report.html').resolve()}", flush=True)


def _rate(config: ConfigDict, found: Found) -> None:
    games = []
    for path in (part.strip() for part in config.games.split(",")):
        rows = read_table(path)
        require_columns(rows, ("instruction", "generator_1", "generator_2", "preference"), path)
        games += [
            {
                "instruction": (row["instruction"], row.get("input") or ""),
                "model_1": row["generator_1"],
                "model_2": row["generator_2"],
                "preference": row["preference"],
            }
            for row in rows
            if row["generator_1"] != row["generator_2"]
        ]
    labelled = sum(game["preference"] is not None for game in games)
    if labelled < config.min_coverage * len(games):
        raise UserError(
            f"games: {labelled} of {len(games)} have a label, fewer than {100 * config.min_coverage:g} %; "
            "annotate the missing ones again, or lower min_coverage"
        )
    found.ratings = bradley_terry(
        games, anchor=config.anchor, seed=config.seed, n_bootstrap=config.n_bootstrap
    )
    found.elo = elo(games, seed=config.seed)


def _compare_annotators(config: ConfigDict, found: Found) -> None:
    """The evaluator table, and chance-corrected agreement of every annotator with the first gold labels."""
    if not (config.annotators and config.gold):
        lacking = "gold" if config.annotators else "annotators"
        raise UserError(f"{lacking}: names no file; annotators are measured against gold labels, name both")
    gold = _labels(config.gold)
    how = {"min_per_generator": config.min_per_generator, "min_coverage": config.min_coverage}
    for name, path in named(config.annotators, "annotators").items():
        rows = _labels(path)
        found.evaluators.append(evaluator(name, rows, gold, **how))
        mine, theirs = _first(rows), _first(gold)
        shared = [pair for pair in mine if pair in theirs]
        columns = [[labels[pair] for pair in shared] for labels in (mine, theirs)]
        # By squared distance: labels of 1 and 2 alone give the plain kappa, graded ones are not all different.
        found.reliability[f"Cohen's kappa, {name} and {GOLD}"] = cohen_kappa(*columns, level="interval")
    found.evaluators.append(evaluator(GOLD, gold, gold, is_gold=True, **how))
    by_length = labels_from_scores(*([len(row[f"output_{k}"]) for row in gold] for k in (1, 2)))
    longest = [
        {name: row.get(name) for name in (*PAIR, "input", "generator", "generator_2")} | {"preference": label}
        for row, label in zip(gold, by_length, strict=True)
    ]
    found.evaluators.append(evaluator(LONGEST, longest, gold, **how))
    found.evaluators.sort(key=lambda row: -row.human_agreement.value)
    if (crowd := _crowd(gold)) is not None:
        if all(label in (1, 2) for labels in crowd for label in labels):
            found.reliability[f"Fleiss' kappa within {GOLD}"] = fleiss_kappa(crowd)
        found.reliability[f"Krippendorff's alpha within {GOLD}"] = krippendorff_alpha(crowd, level="interval")


def _ratings(config: ConfigDict, found: Found) -> None:
    """Win rates by ratings and by rankings, and whether the two agree."""
    rated = {name: _rated(path) for name, path in named(config.ratings, "ratings").items()}
    if rated and config.baseline:
        base = _rated(config.baseline)
        for name, rows in rated.items():
            rate = win_rate_from_ratings(rows, base, min_coverage=config.min_coverage)
            length = average_length([row["output"] for row in rows])
            found.board.append(LeaderboardRow(name, "ratings", config.baseline_name, rate, length, len(rows)))
        rated[config.baseline_name] = base
    if config.rankings:
        sparse = config.rankings.endswith(".csv")  # sparse_feedback's
        rows = read_feedback(config.rankings, "sparse_rankings") if sparse else read_table(config.rankings)
        require_columns(rows, PAIR, config.rankings)
        rate = win_rate_from_rankings(rows, min_coverage=config.min_coverage)
        length = average_length([row["output_2"] for row in rows])
        found.board.append(LeaderboardRow("output_2", "rankings", "output_1", rate, length, len(rows)))
        if rated:
            found.consistency = consistency([row for some in rated.values() for row in some], rows)
    elif rated and not config.baseline:
        raise UserError("baseline: names no file; ratings are compared with a baseline's, or with rankings")


def _labels(path: str) -> list[dict]:
    rows = read_table(path)
    require_columns(rows, (*PAIR, "preference"), path)
    return rows


def _rated(path: str) -> list[dict]:
    """Rated outputs; a CSV file is sparse_feedback's."""
    rows = read_feedback(path, "sparse_ratings") if path.endswith(".csv") else read_table(path)
    require_columns(rows, ("output", "rating"), path)
    return rows


def _pair(row: Mapping) -> tuple[str, ...]:
    return (row["instruction"], row.get("input") or "", row["output_1"], row["output_2"])


def _first(rows: Sequence[Mapping]) -> dict[tuple[str, ...], object]:
    """The first label of every pair."""
    return {_pair(row): row["preference"] for row in reversed(rows)}


def _crowd(rows: Sequence[Mapping]) -> list[list[object]] | None:
    """Labels [annotation number][pair], None where missing; None for a crowd of one."""
    by: dict[tuple[str, ...], list[object]] = {}
    for row in rows:
        by.setdefault(_pair(row), []).append(row["preference"])
    width = max(map(len, by.values()))
    return [[x[k] if k < len(x) else None for x in by.values()] for k in range(width)] if width > 1 else None


def _text(found: Found) -> str:
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
        )
    return "\n".join(lines).rstrip("\n") + "\n"


def _summary(found: Found) -> dict:
    return {
        "version": __version__,
        "ratings": plain(found.ratings),
        "elo": {name: {"rating": r, "spread": s} for name, (r, s) in found.elo.items()},
        "evaluators": plain(found.evaluators),
        "reliability": plain(found.reliability),
        "win_rates": [
            {"method": row.method, "by": row.judge, "baseline": row.baseline}
            | plain(row.win_rate)
            | {"normal_interval": plain(row.win_rate.normal_interval)}
            for row in found.board
        ],
        "consistency": plain(found.consistency),
    }


def _report(found: Found, title: str) -> Report:
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
