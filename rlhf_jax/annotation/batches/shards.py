"""The next provider batch: as many requests as the provider, the settings and the budget allow."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_clients import BatchService
from rlhf_jax.annotation.calls.retries import RetryPolicy
from rlhf_jax.annotation.costs.counters import Counters
from rlhf_jax.annotation.costs.prices import Budget, most_usd
from rlhf_jax.annotation.judges.requests import Job
from rlhf_jax.errors import UserError


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
