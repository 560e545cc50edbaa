"""`annotate_pairs`: rows with two outputs in, the same rows with a preference and its provenance out."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.annotation import seeding
from rlhf_jax.annotation.answers import NOISE, TIE_IDENTICAL
from rlhf_jax.annotation.cache import AnswerCache
from rlhf_jax.annotation.counters import Counters
from rlhf_jax.annotation.engine import answer_all
from rlhf_jax.annotation.estimates import estimate
from rlhf_jax.annotation.judges import Job, Judge
from rlhf_jax.annotation.limits import Limits
from rlhf_jax.annotation.parsing import Parsed
from rlhf_jax.annotation.retries import RetryPolicy
from rlhf_jax.annotation.rows import Plan, labelled_row, summary
from rlhf_jax.annotation.specs import PoolSpec, load_pool
from rlhf_jax.errors import UserError

Progress = Callable[[int, int, dict], None]


class Annotations(NamedTuple):
    """rows: one dict per judgment, in the order of the input. summary: counts, cost and rates of the run."""

    rows: list[dict]
    summary: dict


def annotate_pairs(
    rows: Sequence[Mapping],
    pool: PoolSpec | str | Path,
    *,
    seed: int = 0,
    p_label_flip: float = 0.0,
    cache_path: str | Path | None = None,
    max_concurrency: int = 32,
    base_urls: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    retry: RetryPolicy | None = None,
    timeout_s: float = 120.0,
    limits: Limits | None = None,
    dry_run: bool = False,
) -> Annotations:
    """Ask the pool which output of each row is better.

    rows: dicts with `instruction`, `output_1`, `output_2` and optionally `input`; other columns are kept.
    pool: a PoolSpec, or the path of a pool or judge file.
    seed, p_label_flip: order, pool choice and noise as AlpacaFarm's (`seeding`); a share p_label_flip in
        [0, 0.5] of the labels is flipped, without asking.
    cache_path: SQLite file of answers; what is in it is not asked again. None keeps them in memory only.
    base_urls: addresses of symbolic base_urls, e.g. {"local": server.url}.
    progress: called as (rows done, rows, counters) at the start, after every answer and at the end; the
        counters hold the cost, the rate and the seconds left.
    limits: the transport (online, batch, replay), the most dollars and the rates (`limits.Limits`);
        max_concurrency, timeout_s and retry go before its own.
    dry_run: asks nobody and labels nothing; the summary is that of `estimates.estimate`.

    Returns rows with `preference` in [1, 2] (1: output_1 is better, 1.5: identical outputs) or None, `status`
    (see `answers`) and the columns of `labels.SCHEMA`; and a summary.
    Errors: UserError for a bad row, file or setting, a refused key, an endpoint that cannot be reached. The
    answers until then are in the cache, and the same call continues.
    """
    pool = pool if isinstance(pool, PoolSpec) else load_pool(pool)
    _check_settings(p_label_flip)
    limits = replace(limits or Limits(), max_concurrency=max_concurrency, timeout_s=timeout_s)
    limits = replace(limits, retry=retry or limits.retry)
    limits.check()
    started = time.monotonic()
    rows = [_checked(row, i) for i, row in enumerate(rows)]
    judges = [Judge(spec, base_urls or {}) for spec in pool.judges]
    plans = [_plan(row, judges, pool.weights, seed, p_label_flip) for row in rows]
    jobs, n_rows = _distinct_jobs(plans)
    counters = Counters()
    reporter = _Reporter(progress, counters, len(rows), len(jobs), n_rows)
    with AnswerCache(cache_path) as cache:
        if dry_run:
            return Annotations([], estimate(jobs, cache, limits) | {"rows": len(rows)})
        reporter.report()
        outcomes = answer_all(jobs, cache, limits, counters, reporter.job_done, reporter.report)
    settings = {"pool": pool.name, "seed": seed, "p_label_flip": p_label_flip}
    labelled = [
        labelled_row(row, plan, outcomes.get(plan.job.key) if plan.job else None) | settings
        for row, plan in zip(rows, plans, strict=True)
    ]
    totals = counters.as_dict(0) | {"seconds": time.monotonic() - started}
    return Annotations(labelled, settings | summary(labelled) | totals)


def _check_settings(p_label_flip: float) -> None:
    if not 0.0 <= p_label_flip <= 0.5:
        raise UserError(
            f"p_label_flip: found {p_label_flip}; give a share between 0 and 0.5 (0.5 is all noise)"
        )


def _checked(row: Mapping, i: int) -> dict:
    """A copy of the row with text in every column that matters; a missing or null input becomes ""."""
    row = dict(row)
    row["input"] = row.get("input") if row.get("input") is not None else ""
    for column in ("instruction", "output_1", "output_2", "input"):
        if column not in row:
            there = ", ".join(map(repr, row))
            raise UserError(f"rows[{i}]: {column}: missing; the row has {there}")
        if not isinstance(row[column], str):
            raise UserError(f"rows[{i}]: {column}: found {row[column]!r}; it must be text")
    return row


def _plan(
    row: dict, judges: Sequence[Judge], weights: Sequence[float], seed: int, p_label_flip: float
) -> Plan:
    if row["output_1"] == row["output_2"]:
        return Plan(Parsed(1.5, TIE_IDENTICAL))
    merged = seeding.merged_instruction(row["instruction"], row["input"])
    text = seeding.seed_text(row["instruction"], row["input"])
    noise = seeding.noisy_preference(text, p_label_flip, seed)
    if noise is not None:
        return Plan(Parsed(float(noise), NOISE))
    index = seeding.pool_index(text, weights, seed)
    switched = seeding.is_switched(merged, seed)
    first, second = ("output_2", "output_1") if switched else ("output_1", "output_2")
    judge = judges[index]
    key = judge.request_hash(judge.body(merged, row[first], row[second]))
    return Plan(None, switched, index, Job(judge, key, merged, row[first], row[second]))


def _distinct_jobs(plans: Sequence[Plan]) -> tuple[list[Job], Counter]:
    """The jobs without repetition, in order, and how many rows wait for each."""
    jobs = [plan.job for plan in plans if plan.job is not None]
    return list({job.key: job for job in jobs}.values()), Counter(job.key for job in jobs)


class _Reporter:
    """Turns finished jobs into finished rows for the progress callback."""

    def __init__(
        self, progress: Progress | None, counters: Counters, rows: int, jobs: int, n_rows: Counter
    ) -> None:
        self._progress, self._counters, self._rows, self._n_rows = progress, counters, rows, n_rows
        self._done, self._jobs_left = rows - n_rows.total(), jobs

    def job_done(self, job: Job) -> None:
        self._done += self._n_rows[job.key]
        self._jobs_left -= 1
        self.report()

    def report(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._rows, self._counters.as_dict(self._jobs_left))
