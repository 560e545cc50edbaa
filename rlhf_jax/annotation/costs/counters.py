"""Counters of a run: requests, tokens, dollars, and what it waits for."""

import time
from dataclasses import dataclass, field

from rlhf_jax.annotation.answers.answers import Answer, Failure
from rlhf_jax.annotation.calls.retries import Fault
from rlhf_jax.annotation.costs.prices import Price, price_of
from rlhf_jax.annotation.judges.requests import Job

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

    def attempt_failed(self, job: Job, fault: Fault) -> float | None:
        """Count a failed attempt and its cost and return that, None when unknown."""
        self.failed_attempts += 1
        if fault.usage is None:
            self.unpriced_attempts += fault.may_cost
            # 0 only where certainly nothing was billed, as after a refused connection; else unknown.
            return None if fault.may_cost else 0.0
        usd = self._bill(fault.usage, price_of(job.judge))
        self.usd_failed += usd or 0.0
        return usd

    def _bill(self, used: object, price: Price | None) -> float | None:
        self.tokens_in += used.tokens_in or 0
        self.tokens_cached += used.tokens_cached or 0
        self.tokens_out += used.tokens_out or 0
        usd = price.of(used) if price else None
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
