"""What a run costs: `Counters` of requests, tokens and dollars while it goes, and an `estimate` before it.

The estimate's input tokens follow from the length of the questions, its output tokens and seconds from the answers the
cache has of the same model. Without any, what is unknown stays unknown, and the most it can cost is told where it is
bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rlhf_jax.annotation.answers.answers import Answer, Failure
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.calls.retries import Fault
from rlhf_jax.annotation.costs.prices import Price, most_tokens, most_usd, price_of
from rlhf_jax.annotation.judges.requests import Job

if TYPE_CHECKING:
    from rlhf_jax.annotation.calls.engine import Limits

Outcome = Answer | Failure
# After this long without an answer the progress line says what the run waits for.
_SILENCE_S = 3.0


@dataclass
class Counters:
    """What happened in this run, in requests and tokens.

    usd is what this run spent, `usd_failed` of it on attempts that brought no answer. price_unknown: answers and
    failed attempts with tokens but without a price; unpriced_attempts: failed attempts that may have been billed
    although nobody told their tokens (what they cost is in no sum). unsettled: in a provider's batch.
    trouble: what is waited for; moved: when the last job was done.
    """

    asked: int = 0
    cached: int = 0
    failed: int = 0
    failed_attempts: int = 0
    unpriced_attempts: int = 0
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    tokens_reasoning: int = 0
    usd: float = 0.0
    usd_failed: float = 0.0
    price_unknown: int = 0
    unsettled: int = 0
    started: float = field(default_factory=time.monotonic)
    trouble: str = ""
    moved: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Start the clock of the rate: time spent before, such as importing the clients, does not count."""
        self.started = self.moved = time.monotonic()

    def waits(self, trouble: str) -> None:
        """Note what the run waits for from now on."""
        self.trouble = trouble

    def waiting(self) -> str:
        """Say what the run waits for and since when, "" while answers come."""
        seconds = time.monotonic() - self.moved
        return f"waiting {seconds:.0f} s for {self.trouble or 'answers'}" if seconds >= _SILENCE_S else ""

    def took(self, outcome: Outcome, *, cached: bool) -> None:
        """Count one finished job."""
        self.moved, self.trouble = time.monotonic(), ""
        self.cached += cached
        self.asked += not cached
        self.failed += isinstance(outcome, Failure)

    def paid(self, job: Job, answer: Answer) -> float | None:
        """Count the cost of an answer that came in this run and return it, None when unknown."""
        self.tokens_reasoning += answer.tokens_reasoning or 0
        return self._bill(answer, price_of(job.judge))

    def attempt_failed(self, job: Job, fault: Fault, *, in_batch: bool = False) -> float | None:
        """Count a failed attempt and its cost and return that, None when unknown."""
        self.failed_attempts += 1
        if fault.usage is None:
            self.unpriced_attempts += fault.may_cost
            # 0 only where certainly nothing was billed, as after a refused connection; else unknown.
            return None if fault.may_cost else 0.0
        usd = self._bill(fault.usage, price_of(job.judge), in_batch=in_batch)
        self.usd_failed += usd or 0.0
        return usd

    def _bill(self, used: object, price: Price | None, *, in_batch: bool = False) -> float | None:
        self.tokens_in += used.tokens_in or 0
        self.tokens_cached += used.tokens_cached or 0
        self.tokens_out += used.tokens_out or 0
        usd = price.of(used, in_batch=in_batch) if price else None
        # Counted, not taken for 0: one unknown price makes the cost of the whole run unknown (`as_dict`).
        self.price_unknown += usd is None
        self.usd += usd or 0.0
        return usd

    def as_dict(self, left: int) -> dict[str, float | None]:
        """Return the counters with the cost (None as soon as one price is unknown), rate and time left."""
        seconds = time.monotonic() - self.started
        # Cached jobs are left out: they would promise an end long before it comes.
        rate = self.asked / seconds if self.asked else 0.0
        names = "asked cached failed failed_attempts unpriced_attempts tokens_in tokens_cached tokens_out"
        return {name: getattr(self, name) for name in f"{names} tokens_reasoning".split()} | {
            "cost_usd": None if self.price_unknown else self.usd,
            "cost_failed_usd": None if self.price_unknown else self.usd_failed,
            "price_unknown": self.price_unknown,
            "unsettled": self.unsettled,
            "seconds": seconds,
            "asked_per_s": rate,
            "seconds_left": 0.0 if not left else left / rate if rate else None,
        }


# The estimate, made before any request is sent.

# English text; used until the cache has answers of the model, which tell it better.
_TOKENS_PER_BYTE = 0.25


class Past(NamedTuple):
    """Averages over a model's answers in the cache: input tokens per byte of body, output tokens, seconds."""

    answers: int
    tokens_per_byte: float | None
    tokens_out: float | None
    seconds: float | None


def past(cache: AnswerCache, provider: str, origin: str, model: str) -> Past:
    """Average over the cached answers of one model; None where they do not say."""
    # Tokens per byte over rows that have both numbers; seconds of online answers only.
    query = """
        SELECT count(*),
               sum(CASE WHEN body_bytes IS NOT NULL THEN tokens_in END) * 1.0
                   / sum(CASE WHEN tokens_in IS NOT NULL THEN body_bytes END),
               avg(tokens_out), avg(CASE WHEN transport = 'online' THEN latency_ms END) / 1000
        FROM answers WHERE provider = ? AND origin = ? AND requested = ?"""
    return Past(*cache.rows(query, (provider, origin, model))[0])


def estimate(jobs: Iterable[Job], cache: AnswerCache, limits: Limits) -> dict:
    """Estimate what `answer_all` would ask, use and cost for these jobs.

    Returns {"calls", "cached", "tokens_in", "tokens_out", "cost_usd", "max_cost_usd", "seconds", "price_unknown",
    "by_model"}: numbers of requests and tokens, dollars, seconds. None is unknown: tokens_out and cost_usd
    without past answers, dollars without a price, max_cost_usd without max_tokens, seconds of batches. by_model
    has the same for every judge's model.
    """
    jobs = list(jobs)
    known = cache.get_many(job.key for job in jobs)
    todo: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        if job.key not in known and limits.transport != "replay":
            spec, address = job.judge.spec, job.judge.address
            todo.setdefault((spec.provider, address.origin, spec.model), []).append(job)
    parts = [_part(share, past(cache, *where), limits) for where, share in todo.items()]
    total = {name: _sum(part[name] for part in parts) for name in _ADDED}
    slowest = [part["seconds"] for part in parts]
    # All models share the slots of max_concurrency, so their times add up; budgets per minute run side by
    # side, so the slowest counts.
    paced = max((part["paced_seconds"] for part in parts), default=0.0)
    total["seconds"] = None if None in slowest else max(sum(slowest), paced)
    return total | {
        "cached": len(known),
        "price_unknown": sum(part["calls"] for part in parts if part["price_unknown"]),
        "by_model": parts,
    }


_ADDED = ("calls", "tokens_in", "tokens_out", "cost_usd", "max_cost_usd")


def _sum(values: Iterable[float | None]) -> float | None:
    values = list(values)
    return None if None in values else sum(values)


def _part(share: list[Job], seen: Past, limits: Limits) -> dict:
    """The estimate for one model."""
    in_batch = limits.transport == "batch"
    sizes = [len(json.dumps(job.body(), ensure_ascii=False).encode()) for job in share]
    tokens_in = sum(sizes) * (seen.tokens_per_byte or _TOKENS_PER_BYTE)
    tokens_out = None if seen.tokens_out is None else sum(_fewer(job, seen.tokens_out) for job in share)
    usd = [_usd(job, tokens_in / len(share), seen, in_batch) for job in share]
    unknown = any(price_of(job.judge) is None for job in share)
    # Without a limit an answer may be of any length, and the cost has no bound.
    bounded = not unknown and all(most_tokens(job.judge) is not None for job in share)
    most = [most_usd(job.judge, size, in_batch=in_batch) for job, size in zip(share, sizes, strict=True)]
    seconds = None
    if seen.seconds is not None and not in_batch:
        seconds = len(share) * seen.seconds / limits.max_concurrency
    per_minute = limits.per_minute
    paced = 60.0 * len(share) / per_minute.requests if per_minute.requests else 0.0
    if per_minute.tokens:
        paced = max(paced, 60.0 * (tokens_in + (tokens_out or 0.0)) / per_minute.tokens)
    return {
        "model": share[0].judge.spec.model,
        "calls": len(share),
        "tokens_in": round(tokens_in),
        "tokens_out": None if tokens_out is None else round(tokens_out),
        "cost_usd": _sum(usd),
        "max_cost_usd": sum(most) if bounded else None,
        "seconds": seconds,
        "paced_seconds": paced,
        "price_unknown": unknown,
        "past_answers": seen.answers,
    }


def _fewer(job: Job, tokens_out: float) -> float:
    most = most_tokens(job.judge)
    return tokens_out if most is None else min(tokens_out, most)


def _usd(job: Job, tokens_in: float, seen: Past, in_batch: bool) -> float | None:
    price = price_of(job.judge)
    if price is None or (seen.tokens_out is None and price.output):
        return None
    return price.usd(tokens_in, _fewer(job, seen.tokens_out or 0.0), in_batch=in_batch)
