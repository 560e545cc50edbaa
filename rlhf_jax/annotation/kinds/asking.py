"""From questions about rows to labelled rows: packed into requests, asked or found in the cache, read and labelled.

An `Ask` is one question about one example. Equal asks are asked once; where a judge takes several examples in one
request, asks are packed together in a seeded order. What comes back is a `Reply` per ask. `annotate`, the last step of
every kind of annotation, makes rows of the replies and a summary of the rows.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.calls.engine import Limits, answer_all
from rlhf_jax.annotation.calls.retries import RetryPolicy
from rlhf_jax.annotation.costs.run_costs import Counters, Outcome, estimate
from rlhf_jax.annotation.judges.prompts import Data
from rlhf_jax.annotation.judges.requests import Job, Judge
from rlhf_jax.annotation.judges.specs import PoolSpec, load_pool
from rlhf_jax.annotation.labels.judgment_rows import rows_summary
from rlhf_jax.annotation.parsing.contracts import KINDS, RANKING, Parsed, failed
from rlhf_jax.annotation.parsing.parsers import parse_all
from rlhf_jax.errors import UserError

Progress = Callable[[int, int, dict], None]


# A NamedTuple for its equality: rows with the same question share one request and one answer.
class Ask(NamedTuple):
    """One question: the judge of the pool, the order of the outputs ("" where there is none), and the data.

    sample: which of several answers to the same question this is.
    """

    pool_index: int
    order: str
    data: Data
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of an ask: `parsed` from `outcome`, the answer to `job`, whose example number `slot` it was."""

    parsed: Parsed
    job: Job
    slot: int
    outcome: Outcome
    pool_index: int


@dataclass(frozen=True)
class Options:
    """How questions are asked, for all kinds of them.

    cache_path: SQLite file of answers; what is in it is not asked again. None keeps them in memory only.
    base_urls: addresses of symbolic base_urls, e.g. {"local": server.url}.
    progress: called as (rows done, rows, counters) at the start, after every answer and at the end; the
        counters hold the cost, the rate, the seconds left and, in `waiting`, what is waited for. It is also called
        every second while nothing comes.
    limits: the transport (online, batch, replay), the most dollars and the rates (`engine.Limits`);
        max_concurrency, timeout_s and retry go before its own.
    reparse: ask nobody; read the cached answers again. What is not cached is not_recorded.
    dry_run: ask nobody and label nothing; the summary is that of `run_costs.estimate`.
    """

    cache_path: str | Path | None = None
    max_concurrency: int = 32
    base_urls: Mapping[str, str] | None = None
    progress: Progress | None = None
    retry: RetryPolicy | None = None
    timeout_s: float = 120.0
    limits: Limits | None = None
    reparse: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.reparse and self.cache_path is None:
            raise UserError("reparse: needs the cache of an earlier run; give cache_path")
        # Not only in `answer_all`, which a dry run never calls.
        self.effective_limits().check()

    def effective_limits(self) -> Limits:
        """Return `limits` with max_concurrency, timeout_s and retry taken from these options."""
        limits = self.limits or Limits()
        transport = "replay" if self.reparse else limits.transport
        return replace(
            limits,
            max_concurrency=self.max_concurrency,
            timeout_s=self.timeout_s,
            retry=self.retry or limits.retry,
            transport=transport,
        )


def pool_of_kind(pool: PoolSpec | str | Path, *kinds: str) -> PoolSpec:
    """Load a pool, unless it is loaded already. Errors: UserError unless all its judges are of one of `kinds`."""
    pool = pool if isinstance(pool, PoolSpec) else load_pool(pool)
    found = {judge.kind for judge in pool.judges}
    wrong = next((judge for judge in pool.judges if judge.kind not in kinds), None)
    if wrong is not None:
        raise UserError(f"judge {wrong.name}: kind: found {wrong.kind!r}; this needs {' or '.join(kinds)}")
    if len(found) > 1:
        of_pool = ", ".join(kind for kind in KINDS if kind in found)
        raise UserError(f"pool {pool.name}: its judges are of several kinds ({of_pool}); give a pool of one")
    return pool


class Annotations(NamedTuple):
    """rows: one dict per judgment, in the order of the input. summary: counts, cost and rates of the run."""

    rows: list[dict]
    summary: dict


def annotate(
    asks_of_rows: Sequence[Sequence[Ask]],
    pool: PoolSpec,
    seed: int,
    options: Options,
    label: Callable[[Mapping[Ask, Reply]], list[dict]],
    **settings: object,
) -> Annotations:
    """Ask, turn the replies into rows with `label`, and count. A dry run gives no rows, and an estimate."""
    replies, totals = answer_asks(asks_of_rows, pool, seed, options)
    if options.dry_run:
        return Annotations([], totals)
    settings = {"pool": pool.name, "seed": seed, **settings}
    rows = label(replies)
    # In every row, so that label files of several runs can be put together.
    for row in rows:
        row.update(settings)
    return Annotations(rows, settings | rows_summary(rows) | totals)


def answer_asks(
    asks_of_rows: Sequence[Sequence[Ask]], pool: PoolSpec, seed: int, options: Options
) -> tuple[dict[Ask, Reply], dict]:
    """Answer all asks: a reply to each, and the run's counters. Rows without asks count as done.

    A dry run gives no replies, and the estimate instead of the counters. Errors: UserError for a refused key,
    an endpoint that cannot be reached or the money used up. The answers until then are in the cache, and the
    same call continues.
    """
    started = time.monotonic()
    judges = [Judge(spec, options.base_urls or {}) for spec in pool.judges]
    # dict.fromkeys drops repeated asks and keeps the order of the rows, on which the packing depends.
    places = _pack(dict.fromkeys(ask for asks in asks_of_rows for ask in asks), judges, seed)
    # One job per request: examples that were packed together share it.
    jobs = list({job.key: job for job, _ in places.values()}.values())
    limits, counters = options.effective_limits(), Counters()
    with AnswerCache(options.cache_path) as cache:
        if options.dry_run:
            return {}, estimate(jobs, cache, limits) | {"rows": len(asks_of_rows)}
        # The requests that each row waits for: both orders of a pair are two, and packed rows share one.
        waiting = [{places[ask][0].key for ask in asks} for asks in asks_of_rows]
        reporter = _Reporter(options.progress, counters, waiting, len(jobs))
        cache.told = reporter.waits
        reporter.report()
        outcomes = answer_all(jobs, cache, limits, counters, reporter.job_done, reporter.report)
    # Parsing needs the stored answer only: with a new parser, cached answers are read again without asking.
    parsed = {job.key: _parse(job, outcomes[job.key]) for job in jobs}
    replies = {
        ask: Reply(parsed[job.key][slot], job, slot, outcomes[job.key], ask.pool_index)
        for ask, (job, slot) in places.items()
    }
    # The time of the whole call; the counters' own clock starts with the first request.
    return replies, counters.as_dict(0) | {"seconds": time.monotonic() - started}


def _parse(job: Job, outcome: Outcome) -> list[Parsed]:
    spec, n = job.judge.spec, len(job.examples)
    if not isinstance(outcome, Answer):
        return [failed(outcome.reason, outcome.status)] * n
    # A ranking example is (instruction, outputs); pairs always show two.
    k = len(job.examples[0][1]) if spec.kind == RANKING else 2
    return parse_all(outcome, spec.parser, n, k)


def _pack(
    asks: Sequence[Ask] | Mapping[Ask, None], judges: Sequence[Judge], seed: int
) -> dict[Ask, tuple[Job, int]]:
    """Pack asks into requests: the request of every ask, and its place in it.

    Only asks of the same judge, order and sample share a request, so that none shows a pair in both orders.
    Which ones meet is drawn by the seed, as AlpacaFarm shuffles rows before packing them.
    """
    groups: dict[tuple, list[Ask]] = defaultdict(list)
    # With one example per request nothing has to be kept apart by order.
    for ask in asks:
        groups[
            ask.pool_index, ask.order if judges[ask.pool_index].spec.batch_size > 1 else "", ask.sample
        ].append(ask)
    places: dict[Ask, tuple[Job, int]] = {}
    for (index, order, sample), members in groups.items():
        judge = judges[index]
        size = judge.spec.batch_size
        if size > 1:
            random.Random(f"batch{order}{seed}").shuffle(members)
        for start in range(0, len(members), size):
            together = members[start : start + size]
            examples = tuple(ask.data for ask in together)
            job = Job(judge, judge.request_hash(judge.body(examples), sample), examples)
            places.update((ask, (job, slot)) for slot, ask in enumerate(together))
    return places


class _Reporter:
    """Turns finished jobs into finished rows for the progress callback."""

    def __init__(
        self, progress: Progress | None, counters: Counters, waiting: Sequence[set[str]], jobs: int
    ) -> None:
        self._progress, self._counters, self._rows, self._jobs_left = progress, counters, len(waiting), jobs
        self._left = [len(keys) for keys in waiting]
        # Ties and noise wait for nobody: their rows are done before the first request.
        self._done = self._left.count(0)
        self._rows_of: dict[str, list[int]] = defaultdict(list)
        for row, keys in enumerate(waiting):
            for key in keys:
                self._rows_of[key].append(row)

    def job_done(self, job: Job) -> None:
        for row in self._rows_of[job.key]:
            self._left[row] -= 1
            self._done += not self._left[row]
        self._jobs_left -= 1
        self.report()

    def waits(self, trouble: str) -> None:
        """Report that something other than an answer is waited for."""
        self._counters.waits(trouble)
        self.report()

    def report(self) -> None:
        if self._progress is not None:
            told = self._counters.as_dict(self._jobs_left)
            waiting = self._counters.waiting() if self._jobs_left else ""
            self._progress(self._done, self._rows, told | {"waiting": waiting})
