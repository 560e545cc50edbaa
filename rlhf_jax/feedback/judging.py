"""Asks judges for a job or a method: the embedded server where a judge wants it, limits, progress and costs.

Requests, retries and parsing are not done here, see `annotation`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.answers.cache_files import export_answers, import_answers
from rlhf_jax.annotation.batches.batch_calls import cancel_batches
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.rates import PerMinute
from rlhf_jax.annotation.judges.addresses import resolve_address
from rlhf_jax.annotation.judges.specs import PoolSpec, load_pool
from rlhf_jax.errors import StoppedError, UserError

# The base_url of judges that live in the embedded world.
LOCAL = "local"
# The longest time between two progress lines while nothing moves.
_LONGEST_S = 60.0


def limits_of(config: ConfigDict) -> Limits:
    """Reads from a job's page the limits on how judges are asked: requests at once, rates, dollars."""
    return Limits(
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout_s,
        transport=config.transport,
        max_usd=config.max_usd,
        per_minute=PerMinute(config.requests_per_minute, config.tokens_per_minute),
    )


def check_judges(config: ConfigDict, workdir: str, prefix: str) -> None:
    """Raises UserError for a judge file that is not one, and for keys that are not there; `prefix`: of a stage."""
    try:
        check_keys(config, load_pool(config.judges), Path(workdir))
    except UserError as error:
        raise UserError(f"{prefix}judges: {error}" if prefix else str(error)) from None


def judge_ids(page: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns (id, weight) of each judge of a page; the id is a hash of all in its files that can change a label."""
    pool = load_pool(page["judges"])
    return [(judge.judge_id, weight) for judge, weight in zip(pool.judges, pool.weights, strict=True)]


def check_keys(config: ConfigDict, pool: PoolSpec, folder: Path) -> None:
    """Raises UserError for a judge whose key is not there, before anything is read or trained for it.

    Where answers are kept already nobody may have to be asked; the key is then wanted when one is missing.
    """
    # A replay asks nobody, and a dry run or a new parse of kept answers neither.
    asks = config.transport in ("online", "batch") and not (config.dry_run or config.get("reparse"))
    if asks and not config.import_answers and not Path(config.cache or folder / "answers.sqlite").exists():
        for judge in pool.judges:
            if judge.base_url != LOCAL:
                resolve_address(judge, {}).key()


@contextlib.contextmanager
def kept_answers(config: ConfigDict, folder: Path) -> Iterator[Path]:
    """The path of the cache. Recorded answers go in before the block and all go out after it.

    Ctrl-C raises a StoppedError that says what is kept; whoever started the job knows how it goes on.
    """
    path = Path(config.cache or folder / "answers.sqlite")
    if config.import_answers:
        with AnswerCache(path) as cache:
            new = import_answers(cache, config.import_answers)
        print(f"{new:,} answers of {config.import_answers} taken into {path}", flush=True)
    try:
        yield path
    # Every answer was stored when it came, so nothing that was paid for is lost.
    except KeyboardInterrupt:
        with AnswerCache(path) as cache:
            kept = cache.count()
        raise StoppedError(f"{kept:,} answers are kept in {path}") from None
    if config.export_answers:
        with AnswerCache(path) as cache:
            n = export_answers(cache, config.export_answers)
        print(f"wrote {config.export_answers}: {n:,} answers", flush=True)


def cancel(config: ConfigDict, pool: PoolSpec, folder: Path) -> None:
    """Stops the provider batches of an earlier run with this cache, and says which."""
    with judge_urls(pool) as urls:
        stopped = cancel_batches(pool, config.cache or folder / "answers.sqlite", urls)
    for entry in stopped:
        print(f"cancelled batch {entry.batch_id}: {len(entry.keys):,} requests to {entry.model}")
    then = "; --config.transport=batch takes in what they finished" if stopped else ""
    print(f"{len(stopped)} batches cancelled{then}", flush=True)


@contextlib.contextmanager
def judge_urls(pool: PoolSpec) -> Iterator[dict[str, str]]:
    """Addresses of symbolic base_urls; the embedded judge server runs while they are in use."""
    if all(judge.base_url != LOCAL for judge in pool.judges):
        yield {}
        return
    # Imported here, because judges of a provider need nothing of the embedded world.
    from rlhf_jax.microfarm.judges.judge_server import JudgeServer

    with JudgeServer() as server:
        yield {LOCAL: server.url}


class JudgingLine:
    """The progress callback of the annotation layer: rows done and a second, answers, cost, time left."""

    def __init__(self, every_s: float = 5.0) -> None:
        # On a terminal one line is written over and over; in a log every line stays.
        self._every_s = every_s if not sys.stdout.isatty() else 0.2
        self._last = self._began = time.monotonic()
        self._first: int | None = None
        self._done, self._stands = -1, 0

    def __call__(self, done: int, total: int, counters: dict) -> None:
        now, waiting = time.monotonic(), counters.get("waiting", "")
        # Rows whose answers are cached are done at once; counted, they would make the rate far too high.
        if self._first is None:
            self._first, self._began = done, now
        # A long wait is told ever less often: a log of a day's batch stays readable.
        stands = self._done == done and not sys.stdout.isatty()
        every_s = min(_LONGEST_S, self._every_s * 2**self._stands) if stands else self._every_s
        if done < total and now - self._last < every_s:
            return
        self._stands = self._stands + 1 if stands else 0
        self._last, self._done = now, done
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        parts = [f"judged {done}/{total} rows", f"{rate:.0f} rows/s"]
        answered = counters["asked"] - counters["failed"]
        counts = {"answered": answered} | {n: counters[n] for n in ("cached", "failed")}
        counts["in batches"] = counters["unsettled"]
        parts += [f"{count} {name}" for name, count in counts.items() if count or name == "answered"]
        parts.append(_dollars(counters["cost_usd"]))
        # A provider's batch comes back at once and within a day,
        # so a rate says nothing about when; no time is shown then.
        left = counters["seconds_left"]
        if waiting and done < total:
            parts.append(waiting)
        elif left is not None and done < total and not counters["unsettled"]:
            parts.append(f"{left:.0f} s left")
        end = "\r" if sys.stdout.isatty() and done < total else "\n"
        print("  " + " · ".join(parts), end=end, flush=True)


def _dollars(usd: float | None, digits: int = 2) -> str:
    return "cost unknown" if usd is None else f"${usd:.{digits}f}"


def describe_judges(summary: dict, statuses: Sequence[tuple[str, int]]) -> str:
    """Writes one line for the log: what came back, by status, and what it cost, failed attempts included."""
    counts = ", ".join(f"{n} {status}" for status, n in statuses)
    cost = "unknown" if summary["cost_usd"] is None else f"${summary['cost_usd']:.4f}"
    if summary["cost_failed_usd"]:
        cost += f" (${summary['cost_failed_usd']:.4f} of it for attempts that failed)"
    if summary["unpriced_attempts"]:
        cost += f" and that of {summary['unpriced_attempts']} failed attempts, which nobody told"
    return f"{summary['asked']} asked, {summary['cached']} from the cache; {counts}; cost {cost}"


def describe_estimate(told: dict) -> str:
    """Writes the estimate of a dry run: a line for each model, and the sum."""
    lines = [f"  {part['model']}: {describe_asking(part)}" for part in told["by_model"]]
    return "\n".join(
        [*lines, f"dry run: {told['cached']:,} answers are cached; to ask: {describe_asking(told)}"]
    )


def describe_asking(part: dict) -> str:
    """Writes calls, tokens, dollars and time of an estimate, or of a part of one."""
    out = "unknown" if part["tokens_out"] is None else f"{part['tokens_out']:,.0f}"
    texts = [
        f"{part['calls']:,.0f} calls",
        f"{part['tokens_in']:,.0f} tokens in, {out} out",
        _dollars(part["cost_usd"], 4),
    ]
    if part["max_cost_usd"] is not None:
        texts.append(f"at most ${part['max_cost_usd']:.4f}")
    texts.append("time unknown" if part["seconds"] is None else f"about {part['seconds']:.0f} s")
    return " · ".join(texts)
