"""Calls of a provider's batch service: again after what passes, in one line for what does not."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from rlhf_jax.annotation.answers import Answer
from rlhf_jax.annotation.batch_clients import BatchService, State
from rlhf_jax.annotation.clients import Endpoint
from rlhf_jax.annotation.ledger import Entry, Ledger
from rlhf_jax.annotation.retries import EndpointError, Fault, Rejected, Retryable, RetryPolicy
from rlhf_jax.errors import UserError

# What says that there are no batches at all, and what says that one batch or file cannot be had any more.
NO_SERVICE = frozenset({404, 405, 410, 501})
GONE = NO_SERVICE | {400, 422}


class NotSentError(UserError):
    """A batch could not be sent for now."""


class Gone(Exception):  # noqa: N818 - what became of a batch
    """Results that cannot be had, or no more of them."""


class Calls:
    """The calls one track makes. settle_s: how long a batch is looked for that may have been sent.

    told: hears what is waited for before the next try.
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
        """The id of the new batch. When sending failed midway it may be there all the same.

        Errors: UserError; the batch was not sent then, and must not stand in the way of another transport.
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
            if found := await self._look_for(entry):
                return found
        raise NotSentError(f"{self.shown}: {reason}; the batch could not be sent, run again later")

    async def find(self, entry: Entry) -> str | None:
        """The id of a batch whose sending was interrupted, None where there is none; a new one takes a moment."""
        while True:
            if noted := self._ledger.id_of(entry.name):  # By the process that was sending it.
                return noted
            try:
                found = await self._look_for(entry)
            except EndpointError as error:
                if error.status in NO_SERVICE:  # Where no batches are listed, none was sent.
                    return None
                raise
            if found or time.time() > entry.at + self._settle_s:
                return found
            await asyncio.sleep(min(1.0, self._settle_s / 4))

    async def _look_for(self, entry: Entry) -> str | None:
        known = {other.batch_id for other in self._ledger.unfinished() if other.batch_id}
        return await self._patiently(lambda: self._service.find(entry, known))

    async def look(self, entry: Entry) -> State:
        """How far a batch is. Errors: Gone when the provider does not know it."""
        try:
            return await self._patiently(lambda: self._service.look(entry.batch_id))
        except EndpointError as error:
            raise _gone(f"batch {entry.batch_id}", error) from None

    async def read(self, entry: Entry, take: Callable[[str, Answer | Fault], None]) -> None:
        """Give `take` what became of each request, of some again after an interruption.

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
        if ends[0] and len(set(ends)) == 1:
            raise Gone(f"the results of batch {entry.batch_id} are cut off ({reason})")
        raise self._given_up(reason)

    async def _read(self, entry: Entry, take: Callable[[str, Answer | Fault], None], seen: list[str]) -> None:
        async for key, outcome in self._service.results(entry.batch_id):
            seen.append(key)
            take(key, outcome)

    async def _patiently(self, action: Callable[[], Awaitable]) -> object:
        """Call the provider, again after what passes. Errors: EndpointError with the status of what is refused."""
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
    return Gone(f"{what}: {error}") if error.status in GONE else error


def _refused(shown: str, error: EndpointError | Rejected) -> UserError:
    """A batch that the provider did not take."""
    words = str(error) if isinstance(error, UserError) else f"{shown}: {error}"
    if error.status in NO_SERVICE:
        return UserError(f"{words}; where there is no batch service, use --config.transport=online")
    return UserError(f"{words}; the batch was not accepted")
