"""Calls of a provider's batch service, with retries for faults that pass and one clear error for the others.

`Calls` is what a running track asks of it; `cancel_batches` stops the batches that are noted in a cache file.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_clients import BatchService, State, service
from rlhf_jax.annotation.batches.ledger import Entry, Ledger
from rlhf_jax.annotation.calls.clients import Endpoint, complete
from rlhf_jax.annotation.calls.retries import (
    EndpointError,
    Fault,
    Rejected,
    Retryable,
    RetryPolicy,
)
from rlhf_jax.annotation.judges.requests import resolve_address
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.errors import UserError

# Statuses of an endpoint without a batch service, and those of a batch or file that is no longer there.
NO_SERVICE = frozenset({404, 405, 410, 501})
GONE = NO_SERVICE | {400, 422}
_CANCEL_TIMEOUT_S = 60.0


class NotSentError(UserError):
    """A batch could not be sent, for a reason that may pass."""


class Gone(Exception):  # noqa: N818 - what became of a batch
    """A batch, or the rest of its results, is no longer available at the provider."""


class Calls:
    """The calls that a track makes. settle_s: how long to look for a batch whose sending was interrupted.

    told: called with what is waited for before another attempt.
    """

    def __init__(
        self,
        service: BatchService,
        endpoint: Endpoint,
        retry: RetryPolicy,
        ledger: Ledger,
        settle_s: float,
        told: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._service, self._endpoint, self._retry, self._ledger = service, endpoint, retry, ledger
        self._settle_s = settle_s
        self._told = told

    @property
    def shown(self) -> str:
        """The address as messages may show it."""
        return self._endpoint.address.shown

    async def send(self, entry: Entry, lines: list[str]) -> str:
        """Send a batch and return its id, also when the reply was lost and the batch is found there.

        Errors: UserError when it was not sent; its ledger entry is closed, so that another transport may be used.
        """
        try:
            return await self._send(entry, lines)
        except (Rejected, EndpointError) as error:
            self._ledger.done(entry)
            raise _refused(self.shown, error) from None
        except NotSentError:
            self._ledger.done(entry)
            raise

    async def _send(self, entry: Entry, lines: list[str]) -> str:
        for attempt in range(self._retry.attempts):
            try:
                return await self._endpoint.call(self._service.send(entry, lines))
            except Retryable as error:
                reason = error
            await self._pause(reason, attempt)
            # The batch may exist although the reply was lost. Sending it again would pay for it twice.
            if found := await self._look_for(entry):
                return found
        raise NotSentError(f"{self.shown}: {reason}; the batch could not be sent, run again later")

    async def find(self, entry: Entry) -> str | None:
        """Look for a batch whose sending was interrupted: its id, or None. A new one may take a while to be listed."""
        while True:
            # The process that was sending it may have noted its id meanwhile.
            if noted := self._ledger.id_of(entry.name):
                return noted
            try:
                found = await self._look_for(entry)
            except EndpointError as error:
                # An endpoint that cannot list batches has taken none.
                if error.status in NO_SERVICE:
                    return None
                raise
            # Wall-clock time: the batch may have been noted by another process, or before a restart.
            if found or time.time() > entry.at + self._settle_s:
                return found
            await asyncio.sleep(min(1.0, self._settle_s / 4))

    async def _look_for(self, entry: Entry) -> str | None:
        known = {other.batch_id for other in self._ledger.unfinished() if other.batch_id}
        return await self._patiently(lambda: self._service.find(entry, known))

    async def look(self, entry: Entry) -> State:
        """Ask how far a batch is. Errors: Gone when the provider does not know it."""
        try:
            return await self._patiently(lambda: self._service.look(entry.batch_id))
        except EndpointError as error:
            raise _gone(f"batch {entry.batch_id}", error) from None

    async def read(self, entry: Entry, take: Callable[[str, Answer | Fault], None]) -> None:
        """Read the results and give each to `take`; after an interruption some are given again.

        Errors: Gone when there are no results, or their stream ends at the same place every time.
        """
        ends = []
        for attempt in range(self._retry.attempts):
            seen: list[str] = []
            try:
                await self._endpoint.call(self._read(entry, take, seen))
                return
            except Retryable as error:
                reason = error
            except (EndpointError, Rejected) as error:
                raise _gone(f"the results of batch {entry.batch_id}", error) from None
            ends.append(len(seen))
            await self._pause(reason, attempt)
        # A stream that breaks off at the same line every time is damaged at the provider; one that breaks at
        # varying places is a connection.
        if ends[0] and len(set(ends)) == 1:
            raise Gone(f"the results of batch {entry.batch_id} are cut off ({reason})")
        raise self._given_up(reason)

    async def _read(self, entry: Entry, take: Callable[[str, Answer | Fault], None], seen: list[str]) -> None:
        async for key, outcome in self._service.results(entry.batch_id):
            seen.append(key)
            take(key, outcome)

    async def _patiently(self, action: Callable[[], Awaitable]) -> object:
        """Call the provider, with retries. Errors: EndpointError with the status of a refusal."""
        for attempt in range(self._retry.attempts):
            try:
                return await self._endpoint.call(action())
            except Retryable as error:
                reason = error
            except Rejected as error:
                raise EndpointError(f"{self.shown}: {error}", error.status) from None
            await self._pause(reason, attempt)
        raise self._given_up(reason)

    async def _pause(self, reason: Retryable, attempt: int) -> None:
        if (reason.wait_s or 0.0) > self._retry.longest_wait_s:
            raise UserError(
                f"{self.shown}: {reason}; it asks to wait {reason.wait_s:.0f} s, run again after that"
            )
        self._told(f"{self.shown}: {reason}")
        await asyncio.sleep(reason.wait_s or self._retry.backoff_s(attempt))

    def _given_up(self, reason: Retryable) -> UserError:
        return UserError(f"{self.shown}: {reason}; the batches go on, run again later to take them in")


def _gone(what: str, error: EndpointError | Rejected) -> Exception:
    # Any other refusal (a bad key, no credit) says nothing about the batch: it stays in the ledger.
    return Gone(f"{what}: {error}") if error.status in GONE else error


def _refused(shown: str, error: EndpointError | Rejected) -> UserError:
    """The error for a batch that the provider did not accept."""
    words = str(error) if isinstance(error, UserError) else f"{shown}: {error}"
    if error.status in NO_SERVICE:
        return UserError(f"{words}; where there is no batch service, use --config.transport=online")
    return UserError(f"{words}; the batch was not accepted")


def cancel_batches(
    pool: PoolSpec, cache_path: str | Path, base_urls: Mapping[str, str] | None = None
) -> list[Entry]:
    """Cancel the unfinished batches of the pool's judges at their providers and return their entries.

    What a batch has finished until then is billed; the next run with the transport "batch" takes it in. Errors:
    UserError when a provider refuses, or when a batch belongs to none of the pool's judges.
    """
    stopped = []
    with AnswerCache(cache_path) as cache:
        ledger = Ledger(cache)
        specs = {(s.provider, resolve_address(s, base_urls or {}).origin, s.model): s for s in pool.judges}
        for entry in ledger.unfinished():
            # The ledger holds no key. Only a judge of the pool says with which one its provider is asked.
            spec = specs.get((entry.provider, entry.origin, entry.model))
            if spec is None:
                raise UserError(
                    f"transport: batch {entry.batch_id or entry.name} is for {entry.model} at {entry.origin}, which "
                    f"none of the judges of {pool.name} asks; give the judges it was sent for"
                )
            endpoint = Endpoint(
                resolve_address(spec, base_urls or {}), max_connections=1, timeout_s=_CANCEL_TIMEOUT_S
            )
            found = complete(_cancel(endpoint, spec.api, entry, ledger))
            stopped += [] if found is None else [found]
    return stopped


async def _cancel(endpoint: Endpoint, api: str, entry: Entry, ledger: Ledger) -> Entry | None:
    """Stop one batch; one that was noted and never sent is forgotten."""
    batches = service(endpoint, api)
    try:
        if entry.batch_id is None:
            known = {other.batch_id for other in ledger.unfinished() if other.batch_id}
            found = await _find(endpoint, batches, entry, known)
            if found is None:
                ledger.done(entry)
                return None
            entry = ledger.sent(entry, found)
        await endpoint.call(batches.cancel(entry.batch_id))
        return entry
    except (EndpointError, Rejected) as error:
        if error.status not in GONE:
            raise UserError(f"{error}; batch {entry.batch_id or entry.name} goes on") from None
        # The provider no longer has it. Left in the ledger, it would keep its requests from other transports.
        ledger.done(entry)
        return None
    except Fault as error:
        shown = entry.batch_id or entry.name
        raise UserError(f"{endpoint.address.shown}: batch {shown}: {error}; try again") from None
    finally:
        await endpoint.close()


async def _find(endpoint: Endpoint, batches: BatchService, entry: Entry, known: set[str]) -> str | None:
    """Find a batch that was noted and perhaps sent; None where there is none, or no batch service at all."""
    try:
        return await endpoint.call(batches.find(entry, known))
    except (EndpointError, Rejected) as error:
        if error.status in NO_SERVICE:
            return None
        raise
