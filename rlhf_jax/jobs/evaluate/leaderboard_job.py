"""Ranks methods: judges compare their outputs with a baseline's, and for the embedded world the truth is known, too.

Needs no jax: it reads files, asks judges and writes tables and the report.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.annotation.judges.specs import PoolSpec, load_pool
from rlhf_jax.annotation.kinds.asking import Annotations
from rlhf_jax.annotation.kinds.head2head import annotate_head2head
from rlhf_jax.annotation.labels.labels_file import write_labels
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow, average_length
from rlhf_jax.evaluation.measures.win_rate import (
    WinRate,
    read_preferences,
    utility_win_rate,
    win_rate,
)
from rlhf_jax.evaluation.report.plots import plot_curves
from rlhf_jax.evaluation.report.report_data import ReportStage
from rlhf_jax.feedback import judging
from rlhf_jax.feedback.judging import (
    JudgingLine,
    cancel,
    describe_estimate,
    describe_judges,
    judge_urls,
    kept_answers,
    limits_of,
)
from rlhf_jax.jobs.evaluate import evaluation_measures as measures
from rlhf_jax.jobs.evaluate import evaluation_results as results
from rlhf_jax.jobs.evaluate import label_agreement
from rlhf_jax.jobs.evaluate.evaluation_findings import examine_evaluation
from rlhf_jax.jobs.evaluate.evaluation_inputs import Outputs, read_outputs, read_stages
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import (
    FILE,
    NAMED_TABLES,
    TABLE,
    Needs,
    Page,
    Read,
    made_by,
    made_by_generate,
    named_paths,
)

ANNOTATIONS = "annotations.parquet"


class JudgedOutputs(NamedTuple):
    """One method against the baseline: the labelled rows, the judges' counts and costs, the win rate."""

    rows: list[dict]
    summary: dict
    win_rate: WinRate


def _check_judges(config: ConfigDict, workdir: str, prefix: str) -> None:
    if not config.judged:
        judging.check_judges(config, workdir, prefix)


def _asks(page: Page) -> bool:
    return not page["judged"]


def _knows_truth(page: Page) -> bool:
    return page["utility"] and not page["judged"]


NEEDS = Needs(
    reads=(
        Read("outputs", NAMED_TABLES, made_by_generate, _asks),
        Read("baseline", TABLE, made_by_generate, _asks),
        Read("judged", NAMED_TABLES),
        Read("difficulty", TABLE),
        Read("regulariser", TABLE),
        Read("published", FILE),
        Read(
            "labels", FILE, f"{made_by('annotate', 'labels')} (--config.labels= leaves it out)", _knows_truth
        ),
        Read("scored", FILE, f"{made_by('score', 'scores')} (--config.scored= leaves it out)", _knows_truth),
        Read("import_answers", FILE, "", _asks),
    ),
    writes=("cache", "export_answers"),
    also=_check_judges,
    reads_too=lambda page: judging.judge_ids(page) if _asks(page) else None,
)


def run(config: ConfigDict, workdir: str) -> None:
    """Writes the leaderboard (.csv, .md, .txt), summary.json, report.html and the rest to WORKDIR.

    The rest: annotations.parquet and length_weights.csv, by which any two models compare that were measured
    against one baseline, and per_instruction.parquet, what was found of every method on every one. Also draws
    RUN/plots/*.png of every run folder in config.runs. Answers of judges are kept in WORKDIR/answers.sqlite as they
    come, so that the same command continues. Raises UserError for inputs that
    are missing or do not fit together, a judge that cannot be reached, and one that fails on too many rows.
    """
    ranges.check_ranges(config.to_dict())
    folder = Path(workdir)
    # Before the lock is taken: another process here may be waiting for the batches to cancel.
    if config.transport == "cancel" and not config.judged:
        cancel(config, load_pool(config.judges), folder)
        return
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        results.write_files(folder, {"config.json": results.as_json(config.to_dict())})
        if config.judged:
            label_agreement.run_label_agreement(config, folder)
        else:
            _run(config, folder)


def _run(config: ConfigDict, folder: Path) -> None:
    """Asks the judges, and writes what they say."""
    started, pool = time.monotonic(), load_pool(config.judges)
    outputs = read_outputs(config)
    print(outputs.line(), flush=True)
    # Small files that may be wrong, so they are read before a judge is paid.
    extras = measures.read_extras(config)
    if config.dry_run:
        with kept_answers(config, folder) as cache, judge_urls(pool) as urls:
            for method in outputs.rivals:
                print(f"{method} against {outputs.baseline}, judge {pool.name}")
                done = _compare(config, pool, outputs, method, cache, urls, 0.0)
                print(describe_estimate(done.summary), flush=True)
        return
    stages, notes = read_stages(config.runs)
    # The truth first: it costs nothing, and errors in its files should not come after the judges.
    truth = _truth(config, outputs) if config.utility else {}
    judged = _judge(config, pool, outputs, folder)
    asked = f"{len(outputs.prompts):,} instructions x {len(judged)} methods judged"
    notes += _plots(config, stages)
    preferences = {name: _preferences(one.rows) for name, one in judged.items()}
    measured = measures.measure(
        {name: one.rows for name, one in judged.items()},
        # The best method first, so that differences are those of a better one over a worse one.
        dict(sorted(preferences.items(), key=lambda item: -judged[item[0]].win_rate.win_rate)),
        outputs.baseline,
        extras,
        length_control=config.length_control,
        min_coverage=config.min_coverage,
        seed=config.seed,
    )
    notes += measured.notes
    rows = _leaderboard(config, pool, outputs, judged, truth.get("utilities", {}), measured)
    examined = examine_evaluation(
        config,
        board=rows,
        judged={name: one.rows for name, one in judged.items()},
        judges=truth.get("judges", ()),
        reward_model=truth.get("reward_model"),
        stages=stages,
    )
    found = results.Results(
        outputs=outputs,
        rows=[*rows, *extras.published],
        preferences=preferences,
        measured=measured,
        statuses={name: one.summary["status"] for name, one in judged.items()},
        costs=_costs([one.summary for one in judged.values()]),
        stages=[*stages, ReportStage("evaluate", (), time.monotonic() - started, asked)],
        notes=notes,
        examined=examined,
        **truth,
    )
    results.write_results(found, config, _judged_by(pool), folder)


def _truth(config: ConfigDict, outputs: Outputs) -> dict:
    """Computes what only the embedded world knows, as fields of `Results`."""
    # Imported here: with somebody's own data this part of the package is not needed.
    from rlhf_jax.jobs.evaluate import true_utility as truth

    found: dict = {"utilities": truth.utilities(outputs.prompts, outputs.texts)}
    found["kinds"] = truth.families(outputs.prompts)
    how = {"margin": config.clear_margin, "seed": config.seed}
    if config.labels:
        found["judges"], line = truth.judge_agreement(config.labels, **how)
        print(line, flush=True)
    if config.scored:
        found["reward_model"], line = truth.reward_model(config.scored, **how)
        print(line, flush=True)
    return found


def _judge(config: ConfigDict, pool: PoolSpec, outputs: Outputs, folder: Path) -> dict[str, JudgedOutputs]:
    """Judges every method but the baseline against the baseline; all judgments go to annotations.parquet."""
    judged: dict[str, JudgedOutputs] = {}
    rows: list[dict] = []
    with kept_answers(config, folder) as cache, judge_urls(pool) as urls:
        for method in outputs.rivals:
            print(f"{method} against {outputs.baseline}, judge {pool.name}", flush=True)
            spent = sum(one.summary["cost_usd"] or 0.0 for one in judged.values())
            done = _compare(config, pool, outputs, method, cache, urls, spent)
            statuses = Counter(done.summary["status"]).most_common()
            print(f"  {describe_judges(done.summary, statuses)}", flush=True)
            rows += done.rows
            # Written after every method, so that what is paid for is readable even when the next one fails.
            write_labels(folder / ANNOTATIONS, rows, config.to_dict())
            # A judge that fails is found out before it is paid for the other methods.
            rate = _win_rate(method, done.rows, statuses, config.min_coverage, folder)
            judged[method] = JudgedOutputs(done.rows, done.summary, rate)
    return judged


def _compare(
    config: ConfigDict,
    pool: PoolSpec,
    outputs: Outputs,
    method: str,
    cache: Path,
    urls: dict[str, str],
    spent_usd: float,
) -> Annotations:
    """Judges one method against the baseline; `spent_usd` of max_usd went to methods before it."""
    return annotate_head2head(
        outputs.records(outputs.baseline),
        outputs.records(method),
        pool,
        seed=config.seed,
        p_label_flip=0.0,
        cache_path=cache,
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout_s,
        limits=replace(limits_of(config), spent_usd=spent_usd),
        dry_run=config.dry_run,
        base_urls=urls,
        progress=JudgingLine(),
    )


def _leaderboard(
    config: ConfigDict,
    pool: PoolSpec,
    outputs: Outputs,
    judged: dict[str, JudgedOutputs],
    utilities: dict[str, np.ndarray],
    measured: measures.Measures,
) -> list[LeaderboardRow]:
    """Makes a row of the leaderboard for every method, and one for the baseline."""
    base = utilities.get(config.reference_method)
    return [
        LeaderboardRow(
            method=name,
            judge=pool.name,
            baseline=outputs.baseline,
            win_rate=judged[name].win_rate if name in judged else None,
            avg_length=average_length(texts),
            n_outputs=len(texts),
            utility=None if base is None else utility_win_rate(utilities[name], base, seed=config.seed),
            utility_base="" if base is None else config.reference_method,
            judge_id=measures.pool_id(pool),
            length_controlled=measured.controlled.get(name),
        )
        for name, texts in outputs.texts.items()
    ]


def _win_rate(
    method: str, rows: list[dict], statuses: list[tuple[str, int]], min_coverage: float, folder: Path
) -> WinRate:
    """Computes the win rate, or raises a UserError that says how the judge failed and where its answers are."""
    try:
        return win_rate(_preferences(rows), min_coverage=min_coverage)
    except UserError as error:
        counts = ", ".join(f"{n} {status}" for status, n in statuses)
        raise UserError(f"{method}: {error} ({counts}; the answers: {folder / ANNOTATIONS})") from None


def _preferences(rows: list[dict]) -> np.ndarray:
    """Returns the labels of all rows [N], NaN where there is none."""
    return read_preferences([row["preference"] for row in rows])


def _costs(summaries: list[dict]) -> dict[str, float | None]:
    """Adds up requests, seconds and dollars over all methods; dollars are null when a price is unknown."""
    names = ("asked", "cached", "failed", "seconds")
    total: dict[str, float | None] = {name: sum(s[name] for s in summaries) for name in names}
    costs = [s["cost_usd"] for s in summaries]
    # One unknown price makes the sum unknown; a sum of the known ones would look like the whole.
    return total | {"cost_usd": None if None in costs else sum(costs)}


def _plots(config: ConfigDict, stages: list[ReportStage]) -> list[str]:
    """Draws RUN/plots/*.png of the runs that have metrics, and returns notes on those that could not be drawn."""
    # matplotlib is optional: a leaderboard should not fail for want of plots, which come as files beside it.
    if stages and importlib.util.find_spec("matplotlib") is None:
        return ["runs: matplotlib is not installed; no plots/*.png were drawn"]
    notes, folders = [], named_paths(config.runs, "runs")
    for stage in stages:
        try:
            plot_curves(stage.rows, Path(folders[stage.name]) / "plots")
        # Run folders may belong to somebody else and be read-only.
        except OSError as error:
            notes.append(f"runs: no plots in {folders[stage.name]} ({error.strerror or error})")
    return notes


def _judged_by(pool: PoolSpec) -> results.Judged:
    ids = [judge.judge_id for judge in pool.judges]
    one = f"{pool.name} (model {pool.judges[0].model}, id {ids[0]})"
    return results.Judged(pool.name, ids, one if len(ids) == 1 else f"{pool.name} ({len(ids)} judges)")
