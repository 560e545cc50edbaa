"""Answers to many jobs: those in the cache are read from it, the others are asked over one of three transports.

online: every model at every endpoint has a lane, and workers that take the next job when they are free. There are
as many tasks as requests may be in flight, however many jobs there are, and an endpoint that is told to slow down
does not hold up another. batch: the providers' batch services (`annotation/batches`). replay: only recorded answers
count. The request hash is the same for all three, so a run may begin with one and end with another. `Limits` are the
settings of a run: transport, concurrency, rates, retries and the budget in dollars.
"""

import asyncio
import json
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field

from rlhf_jax.annotation.answers.answers import NOT_RECORDED, Failure
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_clients import service
from rlhf_jax.annotation.batches.batch_transport import BatchPolicy, Shared, Track
from rlhf_jax.annotation.batches.ledger import Ledger
from rlhf_jax.annotation.calls.clients import Endpoint, complete
from rlhf_jax.annotation.calls.rates import Concurrency, Lane, PerMinute
from rlhf_jax.annotation.calls.retries import Fault, Patient, RetryPolicy
from rlhf_jax.annotation.costs.prices import Budget, most_usd
from rlhf_jax.annotation.costs.run_costs import Counters, Outcome
from rlhf_jax.annotation.judges.fields import closest_name
from rlhf_jax.annotation.judges.requests import Address, Job
from rlhf_jax.errors import UserError

TRANSPORTS = ("online", "batch", "replay")
# A rough count for the budget of tokens per minute; the usage of each answer corrects it.
_BYTES_PER_TOKEN = 4.0
_TELL_S = 1.0
_NOT_RECORDED = Failure("no recorded answer, and replay asks nobody", 0, NOT_RECORDED)


@dataclass(frozen=True)
class Limits:
    """Settings of asking: the transport, and limits on concurrency, time, rates and dollars.

    timeout_s: of one request. max_usd: the run stops before it could spend more, `spent_usd` of it are gone already;
    0 is no limit. per_minute: of each model with each key; 0 follows the provider's headers. batch: used by the
    transport "batch" only.
    """

    max_concurrency: int = 32
    timeout_s: float = 120.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    transport: str = "online"
    max_usd: float = 0.0
    spent_usd: float = 0.0
    per_minute: PerMinute = field(default_factory=PerMinute)
    batch: BatchPolicy = field(default_factory=BatchPolicy)

    def check(self) -> None:
        """Check the settings. Errors: UserError naming the one that is out of range."""
        if self.transport not in TRANSPORTS:
            raise UserError(
                f"transport: unknown {self.transport!r}; {closest_name(self.transport, list(TRANSPORTS))}"
            )
        if self.max_concurrency < 1:
            raise UserError(f"max_concurrency: found {self.max_concurrency}; give at least 1")
        positive = {"timeout_s": self.timeout_s}
        others = {
            "max_usd": self.max_usd,
            "requests_per_minute": self.per_minute.requests,
            "tokens_per_minute": self.per_minute.tokens,
        }
        for name, value in {**positive, **others}.items():
            # Written so that NaN, which fails every comparison, is refused too.
            if not 0.0 <= value < float("inf") or (name in positive and not value):
                what = "a positive number of seconds" if name in positive else "0 for no limit, or more"
                raise UserError(f"{name}: found {value}; give {what}")


def answer_all(
    jobs: list[Job],
    cache: AnswerCache,
    limits: Limits,
    counters: Counters,
    on_done: Callable[[Job], None],
    on_wait: Callable[[], None] = lambda: None,
) -> dict[str, Outcome]:
    """Answer all jobs: an Answer or a Failure for each, by its key. Keys must be distinct.

    `on_done` is called for every job as it finishes, first for those found in the cache; `on_wait` every second and
    whenever batches were looked at. Errors: UserError when an endpoint does not work or the money is used up; the
    answers until then are in the cache.
    """
    limits.check()
    outcomes: dict[str, Outcome] = dict(cache.get_many(job.key for job in jobs))
    todo = []
    for job in jobs:
        if job.key in outcomes:
            counters.took(outcomes[job.key], cached=True)
            on_done(job)
        else:
            todo.append(job)
    run = _Run(cache, limits, counters, outcomes, on_done)
    if todo and limits.transport == "replay":
        for job in todo:
            run.finish(job, _NOT_RECORDED)
    elif todo and limits.transport == "batch":
        complete(_told(run.batch_all(todo, on_wait), on_wait))
    elif todo:
        _check_not_in_batches(cache, todo)
        # Processes that share a cache take the jobs in different orders, so that few requests are in flight
        # in two of them. The order changes no label.
        random.Random(f"{os.getpid()} {random.random()}").shuffle(todo)
        complete(_told(run.ask_all(todo), on_wait))
    return outcomes


def _check_not_in_batches(cache: AnswerCache, todo: list[Job]) -> None:
    # A batch that was sent is billed in any case: asking its requests online as well would pay twice.
    sent = {key for entry in Ledger(cache).unfinished() for key in entry.keys}
    n = sum(job.key in sent for job in todo)
    if n:
        raise UserError(
            f"transport: {n} requests are in a provider's batch that was sent before; go on with "
            "--config.transport=batch, which after --config.transport=cancel takes in what was finished"
        )


class _Run:
    """One run over jobs that are not in the cache: asks them and files what comes back."""

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

    def finish(self, job: Job, outcome: Outcome, *, cached: bool = False) -> None:
        """Record, count and report the outcome of a job."""
        self._outcomes[job.key] = outcome
        self._counters.took(outcome, cached=cached)
        self._on_done(job)

    async def ask_all(self, jobs: list[Job]) -> None:
        """Ask all jobs online, every model in a lane of its own."""
        limits = self._limits
        # One semaphore for all lanes: max_concurrency bounds the run, not each model.
        slots = asyncio.Semaphore(limits.max_concurrency)
        self._budget = Budget(limits.max_usd, _judges(jobs), limits.spent_usd)
        endpoints = _Endpoints(limits)
        # Rows that failed in an earlier run say little against the endpoint (`Patient._counts`).
        self._failed_before = self._cache.failed_before(job.key for job in jobs)
        tasks: list[asyncio.Task] = []
        try:
            for address, api, share in _lanes(jobs):
                most = min(limits.max_concurrency, len(share))
                lane = Lane(
                    address.provider, Concurrency(most), slots, limits.per_minute, limits.retry.base_s
                )
                endpoint = endpoints.at(address)
                patient = Patient(
                    endpoint, api, address.shown, limits.retry, lane, worked=self._has_answered(share[0])
                )
                # The workers share one iterator; an event loop runs one task at a time, so it needs no lock.
                queue = iter(share)
                tasks += [asyncio.create_task(self._work(queue, patient)) for _ in range(most)]
            # The rate is that of asking: importing the clients does not count.
            self._counters.restart()
            self._counters.trouble = (
                f"an answer of {', '.join(sorted({a.shown for a, _, _ in _lanes(jobs)}))}"
            )
            await asyncio.gather(*tasks)
        finally:
            # gather leaves the other tasks running when one raises; end them before their connections.
            await _settle(tasks)
            await endpoints.close()

    def _has_answered(self, job: Job) -> bool:
        """Whether the cache has an answer of the model that a job asks."""
        spec = job.judge.spec
        return self._cache.has_answer_of(spec.provider, job.judge.address.origin, spec.model)

    async def batch_all(self, jobs: list[Job], on_wait: Callable[[], None]) -> None:
        """Ask all jobs through the batch services of their providers."""
        limits, endpoints = self._limits, _Endpoints(self._limits)
        budget = Budget(limits.max_usd, _judges(jobs), limits.spent_usd)
        keep = self._cache, budget, self._counters
        shared = Shared(*keep, limits.retry, limits.batch, self.finish, on_wait)
        tasks: list[asyncio.Task] = []
        try:
            for address, api, share in _lanes(jobs):
                endpoint = endpoints.at(address)
                track = Track(service(endpoint, api), endpoint, share, shared)
                tasks.append(asyncio.create_task(track.run()))
            self._counters.restart()
            await asyncio.gather(*tasks)
        finally:
            await _settle(tasks)
            await endpoints.close()

    async def _work(self, queue: Iterator[Job], patient: Patient) -> None:
        for job in queue:
            # Another process may have answered it since the run began.
            outcome: Outcome | None = self._cache.get(job.key)
            cached = outcome is not None
            if outcome is None:
                outcome = await self._ask(job, patient)
            self.finish(job, outcome, cached=cached)

    async def _ask(self, job: Job, patient: Patient) -> Outcome:
        spec, body = job.judge.spec, job.body()
        # Bytes, not characters: a token stands for at least one byte, which bounds the cost (`most_usd`).
        size = len(json.dumps(body, ensure_ascii=False).encode())
        held = most_usd(job.judge, size) if self._limits.max_usd else 0.0

        def on_failure(fault: Fault) -> bool:
            """Count a failed attempt; False when its cost leaves no room for another."""
            usd = self._counters.attempt_failed(job, fault)
            # Without a usage the attempt may have cost all that was held for it.
            self._budget.pay(held if usd is None else usd)
            self._cache.note_failure(job.key, str(fault), usd)
            self._counters.trouble = f"{job.judge.address.shown}: {fault}"
            return not self._budget.overdrawn

        # The most that this request can cost is reserved before it is sent: many requests in flight could
        # otherwise overspend the limit together.
        await self._budget.hold(held)
        try:
            tokens = size / _BYTES_PER_TOKEN, spec.max_tokens or 0
            failed_before = job.key in self._failed_before
            outcome = await patient.ask(body, on_failure, tokens, failed_before=failed_before)
            if isinstance(outcome, Failure):
                return outcome
            usd = self._counters.paid(job, outcome)
            self._budget.pay(held if usd is None else usd)
        finally:
            # After `pay`, so that no other task sees more money left than there is.
            self._budget.release(held)
        where = {"provider": spec.provider, "origin": job.judge.address.origin, "model": spec.model}
        # The stored answer counts, not ours: another process may have been faster, and both must label alike.
        return self._cache.put(job.key, outcome, **where, body_bytes=size)


class _Endpoints:
    """One endpoint per address, however many models are asked there."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[Address, Endpoint] = {}

    def at(self, address: Address) -> Endpoint:
        if address not in self._open:
            most, timeout_s = self._limits.max_concurrency, self._limits.timeout_s
            self._open[address] = Endpoint(address, max_connections=most, timeout_s=timeout_s)
        return self._open[address]

    async def close(self) -> None:
        for endpoint in self._open.values():
            await endpoint.close()


def _lanes(jobs: Iterable[Job]) -> list[tuple[Address, str, list[Job]]]:
    """The jobs grouped by what a provider's rate limits count together: the key at an address, and the model."""
    lanes: dict[tuple, list[Job]] = {}
    for job in jobs:
        spec, address = job.judge.spec, job.judge.address
        lanes.setdefault((address.provider, address.url, address.key(), spec.api, spec.model), []).append(job)
    return [(share[0].judge.address, share[0].judge.spec.api, share) for share in lanes.values()]


def _judges(jobs: Iterable[Job]) -> list:
    return list({id(job.judge): job.judge for job in jobs}.values())


async def _told(work: Coroutine[None, None, None], on_wait: Callable[[], None]) -> None:
    """Run `work`, calling `on_wait` every second meanwhile, so that a long wait does not look like a hanging run."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            on_wait()

    teller = asyncio.create_task(tell())
    try:
        await work
    finally:
        await _settle([teller])


async def _settle(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    # Exceptions are returned, not raised: a cancelled task would hide the error that ended the run.
    await asyncio.gather(*tasks, return_exceptions=True)
