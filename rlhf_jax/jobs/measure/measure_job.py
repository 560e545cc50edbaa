"""Measures labels that exist already: annotators against a gold crowd, models on one scale, ratings, rankings.

Asks nobody and needs no jax. Every part is measured whose files are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.annotation.formats import read_feedback
from rlhf_jax.data.files.tables import columns_of, read_table, require_columns, shown, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.benchmarks.response_style import STYLES
from rlhf_jax.evaluation.leaderboards import measure_tables as tables
from rlhf_jax.evaluation.leaderboards.leaderboard import (
    LeaderboardRow,
    average_length,
    leaderboard_csv,
)
from rlhf_jax.evaluation.measures.bradley_terry import bradley_terry, elo
from rlhf_jax.evaluation.measures.difficulty import difficulty_rows
from rlhf_jax.evaluation.measures.pair_order import one_way_round
from rlhf_jax.evaluation.measures.rating_win_rates import (
    consistency,
    ranking_preferences,
    rated_pairs,
    win_rate_from_rankings,
)
from rlhf_jax.evaluation.measures.win_rate import WinRate, win_rate
from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.jobs.evaluate.evaluation_results import as_json, write_files
from rlhf_jax.jobs.label_rows import usable_labels
from rlhf_jax.jobs.measure import measure_results as results
from rlhf_jax.jobs.measure.annotators import compare_annotators
from rlhf_jax.jobs.measure.arena import measure_arena
from rlhf_jax.jobs.measure.benchmark_scores import measure_benchmark
from rlhf_jax.jobs.measure.measure_results import Measured
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import FILE, NAMED_TABLES, TABLE, TABLES, Needs, Read, named_paths

PAIR = ("instruction", "output_1", "output_2")
DIFFICULTY = "difficulty.parquet"

ranges.own_rows(
    "measure",
    **dict.fromkeys(("benchmark", "benchmark_labels", "arena", "arena_answers", "reference"), ranges.TEXT),
    style=ranges.some_of(*STYLES),
    style_centred=ranges.FLAG,
    strong_weight=ranges.number(1),
)

NEEDS = Needs(
    reads=(
        Read("games", TABLES),
        Read("annotators", NAMED_TABLES),
        Read("gold", TABLE),
        Read("ratings", NAMED_TABLES),
        Read("baseline", TABLE, "", when=lambda page: bool(page["ratings"])),
        Read("rankings", TABLE),
        Read("benchmark", TABLE),
        Read("benchmark_labels", NAMED_TABLES),
        Read("arena", TABLES),
        Read("arena_answers", TABLES),
        Read("reference", FILE),
    )
)


def run(config: ConfigDict, workdir: str) -> None:
    """Writes measures.txt, summary.json, report.html and a CSV file per table to WORKDIR, and prints the text.

    Games of several models against one baseline also give difficulty.parquet, for evaluate's length control.
    Raises UserError when nothing is named, for files that are missing or lack a column, and for a number over
    a smaller share of its rows than config.min_coverage.
    """
    ranges.check_ranges(config.to_dict())
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        _run(config, Path(workdir))


def _run(config: ConfigDict, folder: Path) -> None:
    write_files(folder, {"config.json": as_json(config.to_dict())})
    found = Measured()
    if config.games:
        _rate(config, found)
    if config.annotators or config.gold:
        compare_annotators(config, found)
    if config.ratings or config.rankings:
        _ratings(config, found)
    if config.benchmark or config.benchmark_labels:
        measure_benchmark(config, found)
    if config.arena:
        measure_arena(config, found)
    if found == Measured():
        raise UserError(
            "games: nothing to measure; name games, annotators and gold, ratings and baseline, rankings, benchmark and "
            "benchmark_labels, or arena"
        )
    # The texts are made before the first of them is written,
    # so that an error leaves no mixture of old and new.
    text = results.measures_text(found)
    files = {"measures.txt": text, "summary.json": as_json(results.measures_summary(found))}
    if found.ratings:
        files["ratings.csv"] = tables.ratings_csv(found.ratings, found.elo)
    if found.evaluators:
        files["evaluators.csv"] = tables.evaluators_csv(found.evaluators)
    if found.board:
        files["leaderboard.csv"] = leaderboard_csv(found.board)
    if found.consistency:
        files["consistency.csv"] = tables.consistency_csv(found.consistency)
    write_files(folder, files | results.benchmark_files(found))
    if found.difficulty:
        write_parquet(folder / DIFFICULTY, found.difficulty)
    write_report(folder / "report.html", results.measures_report(found, config.title))
    print(f"{text}\nreport: {(folder / 'report.html').resolve()}", flush=True)


def _rate(config: ConfigDict, found: Measured) -> None:
    rows: list[dict] = []
    for path in (part.strip() for part in config.games.split(",")):
        new = read_table(path)
        require_columns(new, ("instruction", "generator_1", "generator_2", "preference"), path)
        usable = usable_labels(new, path, ("generator_1", "generator_2"))
        if line := usable.line(path):
            print(line, flush=True)
        # A model against itself says nothing about its strength.
        rows += [row for row in usable.rows if row["generator_1"] != row["generator_2"]]
    games = [
        {
            # The bootstrap resamples instructions, since the games on one of them are not independent.
            "instruction": (row["instruction"], row.get("input") or ""),
            "model_1": row["generator_1"],
            "model_2": row["generator_2"],
            "preference": row["preference"],
        }
        for row in rows
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
    # Only where the games are of several models against one baseline; empty otherwise, and then no file.
    texts = [row for row in rows if all(isinstance(row.get(name), str) for name in PAIR[1:])]
    if 0 < len(texts) < len(rows):
        print(
            f"{DIFFICULTY}: {len(rows) - len(texts)} games have outputs that are no text; left out",
            flush=True,
        )
    found.difficulty = difficulty_rows(texts)


def _ratings(config: ConfigDict, found: Measured) -> None:
    """Computes win rates by ratings and by rankings, and how consistent the two are."""
    rated = {name: _rated(path) for name, path in named_paths(config.ratings, "ratings").items()}
    if rated and config.baseline:
        base = _rated(config.baseline)
        for name, rows in rated.items():
            rate = _rate_by_ratings(name, rows, base, config.min_coverage)
            length = average_length([row["output"] for row in rows])
            found.board.append(LeaderboardRow(name, "ratings", config.baseline_name, rate, length, len(rows)))
        rated[config.baseline_name] = base
    if config.rankings:
        # The published files of sparse_feedback are CSV, a format that our own tables never have.
        sparse = config.rankings.endswith(".csv")
        rows = read_feedback(config.rankings, "sparse_rankings") if sparse else read_table(config.rankings)
        require_columns(rows, PAIR, config.rankings)
        rows = _ranked(rows, config.rankings)
        rate = win_rate_from_rankings(rows, min_coverage=config.min_coverage)
        length = average_length([row["output_2"] for row in rows])
        found.board.append(LeaderboardRow("output_2", "rankings", "output_1", rate, length, len(rows)))
        if rated:
            found.consistency = consistency([row for some in rated.values() for row in some], rows)
    elif rated and not config.baseline:
        raise UserError("baseline: names no file; ratings are compared with a baseline's, or with rankings")


def _rate_by_ratings(
    name: str, rows: Sequence[Mapping], base: Sequence[Mapping], min_coverage: float
) -> WinRate:
    """The win rate of a model by ratings; prints which ratings are not compared."""
    try:
        pairs = rated_pairs(rows, base)
        for line in pairs.lines(name):
            print(line, flush=True)
        return win_rate(pairs.preferences, min_coverage=min_coverage)
    except UserError as error:
        raise UserError(f"ratings: {name}: {error}") from None


def _ranked(rows: Sequence[Mapping], path: str) -> list[Mapping]:
    """Ranked pairs with their preferences, each in one order; prints what of the file is not used as it stands."""
    if "preference" not in columns_of(rows):
        # Only these: a ranking counts whatever other columns, such as a status, say beside it.
        names = (*PAIR, "input", "generator_1", "generator_2")
        rows = [
            {name: row.get(name) for name in names} | {"preference": label}
            for row, label in zip(rows, ranking_preferences(rows), strict=True)
        ]
    usable = usable_labels(rows, path)
    one_way = one_way_round(usable.rows, of_models=True)
    for line in (usable.line(path), *one_way.lines(path)):
        if line:
            print(line, flush=True)
    return one_way.rows


def _rated(path: str) -> list[dict]:
    """Reads rated outputs; a CSV file is sparse_feedback's."""
    rows = read_feedback(path, "sparse_ratings") if path.endswith(".csv") else read_table(path)
    require_columns(rows, ("output", "rating"), path)
    for i, row in enumerate(rows):
        if not isinstance(row.get("output"), str):
            raise UserError(f"{path}: row {i + 1}: output: found {shown(row.get('output'))}; it must be text")
    return rows
