"""The batch transport: requests are sent to a provider's batch service in shards and answered within a day.

Every shard is in the ledger from before it is sent until its results are stored, so a run that was killed, or is
started again tomorrow, finds its batches. Requests that failed for a passing reason, ran out of time or have no
result go into a later shard.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from rlhf_jax.annotation.answers.answers import EXPIRED, Answer, Failure
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_calls import Calls, Gone, NotSentError
from rlhf_jax.annotation.batches.batch_clients import BatchService, Cancelled, Expired, State
from rlhf_jax.annotation.batches.ledger import Entry, Ledger
from rlhf_jax.annotation.calls.clients import Endpoint
from rlhf_jax.annotation.calls.retries import Fault, Rejected, Retryable, RetryPolicy
from rlhf_jax.annotation.costs.prices import Budget, most_usd
from rlhf_jax.annotation.costs.run_costs import Counters
from rlhf_jax.annotation.judges.requests import Job
from rlhf_jax.errors import UserError

# How often a batch is looked at again that has ended without results, and one whose state is unknown: some services
# name the files a moment after the end, and a word that nobody knows may stand for one that still runs.
_LOOKS_FOR_RESULTS, _LOOKS_AT_UNKNOWN = 5, 20


@dataclass(frozen=True)
class BatchPolicy:
    """Settings of the batch transport.

    most_requests, most_bytes: of a shard; 0 is the provider's limit. rounds: how often a request is sent.

    first_poll_s, longest_poll_s: between two looks at a batch; the wait grows while nothing happens.
    settle_s: how long a batch that may have been sent when a run was killed is looked for.
    """

    most_requests: int = 0
    most_bytes: int = 0
    rounds: int = 3
    first_poll_s: float = 5.0
    longest_poll_s: float = 60.0
    settle_s: float = 60.0


@dataclass
class Shared:
    """What all tracks of a run have in common.

    `finish(job, outcome, cached=False)` hears of every job that is done, `waiting()` is called after every look at
    the batches.
    """

    cache: AnswerCache
    budget: Budget
    counters: Counters
    retry: RetryPolicy
    policy: BatchPolicy
    finish: Callable[..., None]
    waiting: Callable[[], None]


class Track:
    """All jobs for one model at one endpoint, from the queue through its batch service to their outcomes."""

    def __init__(self, service: BatchService, endpoint: Endpoint, jobs: list[Job], shared: Shared) -> None:
        self._service, self._shared = service, shared
        self._jobs = {job.key: job for job in jobs}
        self._queue: deque[Job] = deque(jobs)
        # By name, each with the dollars that are reserved for it.
        self._open: dict[str, tuple[Entry, float]] = {}
        self._progress: dict[str, int] = {}
        self._doubts: Counter = Counter()
        self._sent: Counter = Counter()
        self._ledger = Ledger(shared.cache)
        self._calls = Calls(
            service, endpoint, shared.retry, self._ledger, shared.policy.settle_s, shared.counters.waits
        )
        self._full_until = 0.0
        # Why requests failed in this run, the latest last.
        self._faults: dict[str, str] = {}
        spec, address = jobs[0].judge.spec, jobs[0].judge.address
        self._where = (address.provider, address.origin, spec.model)

    async def run(self) -> None:
        """Run until every job has an outcome. Errors: UserError for faults that do not pass."""
        policy = self._shared.policy
        # Before anything is sent: what earlier runs have sent is paid for.
        await self._adopt()
        wait_s = policy.first_poll_s
        while self._queue or self._open:
            moved = await self._send_what_fits()
            for entry, _ in list(self._open.values()):
                moved |= await self._look_unless_gone(entry)
            # A batch may take hours: look ever less often while nothing happens.
            wait_s = policy.first_poll_s if moved else min(policy.longest_poll_s, wait_s * 1.5)
            if self._open or self._queue:
                self._shared.waiting()
                await asyncio.sleep(wait_s)

    async def _adopt(self) -> None:
        """Wait for the batches that an earlier run or another process sent, instead of sending their requests again."""
        taken: set[str] = set()
        queued = {job.key for job in self._queue}
        for entry in self._ledger.unfinished():
            if (entry.provider, entry.origin, entry.model) != self._where or entry.name in self._open:
                continue
            # Nothing of it is wanted here, or all of that comes with an earlier entry.
            if taken.issuperset(ours := entry.keys_set & queued):
                continue
            if entry.batch_id is None:
                found = await self._calls.find(entry)
                if found is None:
                    self._ledger.done(entry)
                    continue
                entry = self._ledger.sent(entry, found)
            taken |= ours
            held = sum(most_usd(self._jobs[key].judge, self._body_bytes(key), in_batch=True) for key in ours)
            self._shared.budget.hold_sent(held)
            self._open[entry.name] = entry, held
            self._shared.counters.unsettled += len(entry.keys_set & self._jobs.keys())
        self._queue = deque(job for job in self._queue if job.key not in taken)

    async def _send_what_fits(self) -> bool:
        moved = False
        while self._queue and time.monotonic() >= self._full_until:
            shard, lines, usd = next_shard(self._queue, self._service, self._shared)
            if not shard:
                # No room for one request, and nothing in flight that could release its reservation.
                if self._queue and not self._shared.budget.held:
                    raise self._shared.budget.used_up(next(reversed(self._faults.values()), ""))
                break
            entry = self._ledger.intend(*self._where, (job.key for job in shard))
            # Another process noted one of these requests first: put the shard back and wait for its batch.
            if entry is None:
                self._queue.extendleft(reversed(shard))
                await self._adopt()
                continue
            await self._shared.budget.hold(usd)
            self._shared.counters.unsettled += len(shard)
            try:
                entry = self._ledger.sent(entry, await self._calls.send(entry, lines))
            except NotSentError as error:
                self._shared.counters.unsettled -= len(shard)
                self._shared.budget.release(usd)
                self._give_up_again(shard, error)
                continue
            self._sent.update(entry.keys)
            self._open[entry.name] = entry, usd
            moved = True
        return moved

    def _give_up_again(self, shard: list[Job], error: NotSentError) -> None:
        """Requests that failed before keep their failure when they cannot be sent again; others end the run."""
        if not all(job.key in self._faults for job in shard):
            raise error
        for job in shard:
            reason = f"{self._faults[job.key]}; sent again: {error}"
            self._shared.finish(job, Failure(reason, max(1, self._sent[job.key])))

    async def _look_unless_gone(self, entry: Entry) -> bool:
        """Look at a batch; requests of one that the provider no longer has go into another round."""
        try:
            return await self._look(entry)
        except Gone as error:
            self._fail_all(dict.fromkeys(entry.keys, Retryable(str(error), may_cost=True)))
        self._close(entry)
        return True

    async def _look(self, entry: Entry) -> bool:
        """Look at a batch and store its results if it has ended; return whether anything has changed."""
        state = await self._calls.look(entry)
        done = f"{state.done} of {len(entry.keys)} requests done"
        self._shared.counters.trouble = f"batch {entry.batch_id} at {self._calls.shown} ({done})"
        if state.failed:
            self._close(entry)
            if not state.full:
                raise UserError(
                    f"{self._calls.shown}: batch {entry.batch_id} was not accepted: {state.failed}"
                )
            # The provider has too many tokens enqueued: this shard goes back until other batches have ended,
            # and the refused sending does not count as a round.
            self._queue.extendleft(self._jobs[key] for key in reversed(entry.keys) if key in self._jobs)
            self._sent.subtract(entry.keys)
            self._full_until = time.monotonic() + self._shared.policy.longest_poll_s
            return True
        if state.doubt and self._waits(entry, state):
            return False
        if state.ended:
            await self._take_in(entry, state)
            self._full_until = 0.0
            return True
        moved = self._progress.get(entry.name, 0) != state.done
        self._progress[entry.name] = state.done
        return moved

    def _waits(self, entry: Entry, state: State) -> bool:
        """Whether to look again before what a batch says is believed.

        Errors: Gone when it has ended and keeps naming no results, UserError when its state stays unknown.
        """
        self._doubts[entry.name] += 1
        if self._doubts[entry.name] <= (_LOOKS_FOR_RESULTS if state.ended else _LOOKS_AT_UNKNOWN):
            return True
        if state.cancelled:
            return False
        if state.ended:
            raise Gone(f"batch {entry.batch_id}: {state.doubt}")
        raise UserError(
            f"{self._calls.shown}: batch {entry.batch_id}: {state.doubt}, and it names no results; look at it there, "
            "then run again to take them in"
        )

    async def _take_in(self, entry: Entry, state: State) -> None:
        """Store the answers of a batch; requests without one go back into the queue or, after the last round, fail."""
        # Every request counts as lost until a result for it is read, since services forget some.
        faults: dict[str, Fault] = dict.fromkeys(entry.keys, _missing(state))

        def take(key: str, outcome: Answer | Fault) -> None:
            # A second line for the same request, a stranger's line, or a stream that is read again.
            if key not in faults:
                return
            if isinstance(outcome, Fault):
                faults[key] = outcome
            else:
                del faults[key]
                self._answered(entry, key, outcome)

        try:
            await self._calls.read(entry, take)
        except Gone as error:
            lost = Retryable(str(error), may_cost=True)
            faults.update((key, lost) for key, fault in faults.items() if fault is _LOST)
        answered = len(entry.keys) - len(faults)
        if not answered and len(faults) >= self._shared.retry.failures_in_a_row:
            # All rejected, and not for what they ask: the judge's settings are wrong in every round.
            rejected = [f for f in faults.values() if isinstance(f, Rejected) and not f.of_row]
            if len(rejected) == len(faults):
                self._close(entry)
                raise UserError(
                    f"{self._calls.shown}: all {len(faults)} requests of batch {entry.batch_id} failed, one with: "
                    f"{rejected[0]}; mend the judge's settings, then run again"
                )
        self._fail_all(faults)
        self._close(entry)

    def _answered(self, entry: Entry, key: str, answer: Answer) -> None:
        rounds = max(1, self._sent[key])
        now = int(time.time() * 1000)
        answer = replace(
            answer, transport="batch", batch_id=entry.batch_id, n_attempts=rounds, created_at=now
        )
        # An adopted batch may hold requests that this run does not need: they too are paid for and kept.
        job = self._jobs.get(key)
        size = None if job is None else self._body_bytes(key)
        provider, origin, model = self._where
        stored = self._shared.cache.put(
            key, answer, provider=provider, origin=origin, model=model, body_bytes=size
        )
        if job is not None:
            self._pay(job, self._shared.counters.paid(job, answer))
            self._shared.finish(job, stored)

    def _pay(self, job: Job, usd: float | None) -> None:
        """Count a cost against the budget; an unknown one at the most that the request can cost."""
        if usd is None and self._shared.budget.max_usd:
            usd = most_usd(job.judge, self._body_bytes(job.key), in_batch=True)
        self._shared.budget.pay(usd)

    def _fail_all(self, faults: dict[str, Fault]) -> None:
        for key, fault in faults.items():
            if key in self._jobs:
                self._failed(self._jobs[key], fault)

    def _failed(self, job: Job, fault: Fault) -> None:
        usd = self._shared.counters.attempt_failed(job, fault, in_batch=True)
        self._pay(job, usd)
        # Removed first, so that it moves to the end: `used_up` reports the latest fault.
        self._faults.pop(job.key, None)
        self._faults[job.key] = str(fault)
        self._shared.cache.note_failure(job.key, str(fault), usd)
        tried = max(1, self._sent[job.key])
        if isinstance(fault, Retryable) and tried < self._shared.policy.rounds:
            self._queue.append(job)
            return
        status = EXPIRED if isinstance(fault, Expired) else fault.row_status
        self._shared.finish(job, Failure(str(fault), tried, status))

    def _close(self, entry: Entry) -> None:
        self._ledger.done(entry)
        self._shared.budget.release(self._open.pop(entry.name)[1])
        self._shared.counters.unsettled -= sum(key in self._jobs for key in entry.keys)

    def _body_bytes(self, key: str) -> int:
        return len(self._service.line(key, self._jobs[key].body()).encode())


_LOST = Retryable("the batch has no result for it", may_cost=True)
_STOPPED = Cancelled("the batch was cancelled")


def _missing(state: State) -> Fault:
    """What became of a request that the results do not mention."""
    return _STOPPED if state.cancelled else _LOST


def next_shard(
    queue: deque[Job], service: BatchService, shared: Shared
) -> tuple[list[Job], list[str], float]:
    """Take from the queue as many jobs as one batch and the budget allow: (jobs, lines, the most they can cost).

    Errors: UserError when not even one request fits a batch.
    """
    policy = shared.policy
    most = min(policy.most_requests or service.most_requests, service.most_requests)
    bytes_left = min(policy.most_bytes or service.most_bytes, service.most_bytes)
    shard: list[Job] = []
    lines: list[str] = []
    usd = 0.0
    while queue and len(shard) < most:
        job = queue[0]
        known = shared.cache.get(job.key)
        # Another process may have stored the answer since the run began.
        if known is not None:
            queue.popleft()
            shared.finish(job, known, cached=True)
            continue
        line = service.line(job.key, job.body())
        size = len(line.encode())
        cost = most_usd(job.judge, size, in_batch=True)
        if size > bytes_left and not shard:
            raise UserError(
                f"transport: a request of {size} bytes is too large for a batch of {bytes_left} bytes; "
                "use --config.transport=online"
            )
        # Jobs are sent in their order: looking for a smaller one that still fits would gain little.
        if size > bytes_left or not shared.budget.has_room(usd + cost):
            break
        queue.popleft()
        bytes_left -= size
        usd += cost
        shard.append(job)
        lines.append(line)
    return shard, lines, usd
