"""Running many jobs: what the cache has is not asked, the rest is asked with bounded concurrency.

Each endpoint has its own workers, which take the next job when they are free: as many tasks exist as requests
may be in flight, however many jobs there are. An endpoint told to slow down does not hold up another.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field

from rlhf_jax.annotation.answers import Answer, Failure
from rlhf_jax.annotation.cache import AnswerCache
from rlhf_jax.annotation.clients import Endpoint
from rlhf_jax.annotation.judges import Address, Job
from rlhf_jax.annotation.retries import Patient, RetryPolicy

Outcome = Answer | Failure


@dataclass
class Counters:
    """What happened in this run, in requests; `usd` is what this run spent on answers of known price."""

    asked: int = 0
    cached: int = 0
    failed: int = 0
    failed_attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    price_unknown: int = 0
    started: float = field(default_factory=time.monotonic)

    def took(self, job: Job, outcome: Outcome, *, cached: bool) -> None:
        """Count one finished job."""
        if cached:
            self.cached += 1
            return
        self.asked += 1
        if isinstance(outcome, Failure):
            self.failed += 1
            return
        self.tokens_in += outcome.tokens_in or 0
        self.tokens_out += outcome.tokens_out or 0
        usd = price_usd(job, outcome)
        self.price_unknown += usd is None
        self.usd += usd or 0.0

    def as_dict(self, left: int) -> dict[str, float | None]:
        """The counters with the cost (None as soon as one answer's price is unknown), rate and time left."""
        seconds = time.monotonic() - self.started
        rate = self.asked / seconds if self.asked else 0.0
        return {
            "asked": self.asked,
            "cached": self.cached,
            "failed": self.failed,
            "failed_attempts": self.failed_attempts,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost_usd": None if self.price_unknown else self.usd,
            "price_unknown": self.price_unknown,
            "seconds": seconds,
            "asked_per_s": rate,
            "seconds_left": 0.0 if not left else left / rate if rate else None,
        }


def price_usd(job: Job, answer: Answer) -> float | None:
    """What the answer cost in dollars, None when the price or the token counts are unknown."""
    price = job.judge.spec.price
    return price.usd(answer.tokens_in, answer.tokens_out) if price else None


@dataclass(frozen=True)
class Limits:
    """How hard endpoints may be driven."""

    max_concurrency: int = 32
    timeout_s: float = 120.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)


def answer_all(
    jobs: list[Job],
    cache: AnswerCache,
    limits: Limits,
    counters: Counters,
    on_done: Callable[[Job], None],
) -> dict[str, Outcome]:
    """An Answer or a Failure for every job, by its key; keys must be distinct.

    `on_done` hears of every job as it finishes, those found in the cache first. Errors: UserError when an
    endpoint does not work; the answers until then are in the cache.
    """
    outcomes: dict[str, Outcome] = dict(cache.get_many(job.key for job in jobs))
    todo = []
    for job in jobs:
        if job.key in outcomes:
            counters.took(job, outcomes[job.key], cached=True)
            on_done(job)
        else:
            todo.append(job)
    if todo:
        # Processes that share a cache start at different ends, so few requests are in flight in two of them.
        random.Random(f"{os.getpid()} {time.time_ns()}").shuffle(todo)
        _run(_Run(cache, limits, counters, outcomes, on_done).ask_all(todo))
    return outcomes


class _Run:
    """The jobs that have to be asked, and where what comes back goes."""

    def __init__(
        self,
        cache: AnswerCache,
        limits: Limits,
        counters: Counters,
        outcomes: dict[str, Outcome],
        on_done: Callable[[Job], None],
    ) -> None:
        self._cache, self._limits, self._counters = cache, limits, counters
        self._outcomes, self._on_done = outcomes, on_done

    async def ask_all(self, jobs: list[Job]) -> None:
        by_address: dict[Address, list[Job]] = {}
        for job in jobs:
            by_address.setdefault(job.judge.address, []).append(job)
        most = self._limits.max_concurrency
        slots = asyncio.Semaphore(most)
        endpoints, tasks = [], []
        try:
            for address, share in by_address.items():
                endpoints.append(Endpoint(address, max_connections=most, timeout_s=self._limits.timeout_s))
                patient = Patient(endpoints[-1], address.shown, self._limits.retry, slots)
                queue = iter(share)
                tasks += [
                    asyncio.create_task(self._work(queue, patient)) for _ in range(min(most, len(share)))
                ]
            # The rate is that of asking: importing the clients does not count.
            self._counters.started = time.monotonic()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for endpoint in endpoints:
                await endpoint.close()

    async def _work(self, queue: Iterator[Job], patient: Patient) -> None:
        for job in queue:
            # Another process may have answered it since the run began.
            outcome: Outcome | None = self._cache.get(job.key)
            cached = outcome is not None
            if outcome is None:
                outcome = await self._ask(job, patient)
            self._outcomes[job.key] = outcome
            self._counters.took(job, outcome, cached=cached)
            self._on_done(job)

    async def _ask(self, job: Job, patient: Patient) -> Outcome:
        def on_failure(reason: str) -> None:
            self._counters.failed_attempts += 1
            self._cache.note_failure(job.key, reason)

        outcome = await patient.ask(job.body(), on_failure)
        if isinstance(outcome, Failure):
            return outcome
        spec, origin = job.judge.spec, job.judge.address.origin
        return self._cache.put(job.key, outcome, provider=spec.provider, origin=origin, model=spec.model)


def _run(work: Coroutine) -> None:
    """Run `work` to its end. Within a running loop (a notebook) that takes a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    raised: list[BaseException] = []

    def target() -> None:
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            raised.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=target)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if raised:
        raise raised[0]
