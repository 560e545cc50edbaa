"""Trying again: full-jitter backoff, the server's Retry-After, and knowing when an endpoint is gone.

One request has a bounded number of attempts. A rate limit pauses the whole endpoint, not only the request
that met it. An endpoint that cannot be reached, or that fails request after request while none succeeds,
ends the run with one line; a single bad request only costs its own row.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from rlhf_jax.annotation.answers import Answer, Failure
from rlhf_jax.errors import UserError


class Retryable(Exception):  # noqa: N818 - not an error yet
    """This attempt failed; another may work. `wait_s` is what the server asked for, if it did."""

    def __init__(
        self, reason: str, *, wait_s: float | None = None, rate_limit: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.rate_limit = rate_limit
        self.unreachable = unreachable


class Rejected(Exception):  # noqa: N818 - concerns one request only
    """The endpoint will never answer this request (too long, not allowed)."""


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds on trying again.

    attempts: per request. rate_limited_attempts: more of them, for being told to slow down says nothing
        against the request. unreachable_attempts: fewer, while the endpoint answers nobody.
    base_s, cap_s: attempt n waits a uniform time in [0, min(cap_s, base_s * 2**n)] seconds.
    longest_wait_s: a server that asks for more ends the run.
    failures_in_a_row: requests that may fail for good, with no success between them, before the run ends.
    """

    attempts: int = 7
    rate_limited_attempts: int = 30
    unreachable_attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 60.0
    longest_wait_s: float = 300.0
    failures_in_a_row: int = 10

    def backoff_s(self, attempt: int) -> float:
        """Full jitter for attempt 0, 1, ... (Exponential Backoff and Jitter, AWS architecture blog, 2015)."""
        return random.uniform(0.0, min(self.cap_s, self.base_s * 2**attempt))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: retry-after-ms, or Retry-After in seconds or as an HTTP date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1e3)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


class Asker(Protocol):
    """What an endpoint must do: `clients.Endpoint`, or a stand-in."""

    async def ask(self, body: dict) -> Answer:
        """Send one request; raise Retryable, Rejected or UserError."""


class Patient:
    """Asks an endpoint with retries and keeps its health. One per endpoint, for many tasks of one loop."""

    def __init__(self, endpoint: Asker, url: str, policy: RetryPolicy, slots: asyncio.Semaphore) -> None:
        self._endpoint = endpoint
        self._url = url
        self._policy = policy
        self._slots = slots
        self._paused_until = 0.0
        self._last_success = -1.0
        self._failed_in_a_row = 0
        self.retries = 0

    async def ask(self, body: dict, on_failure: Callable[[str], None]) -> Answer | Failure:
        """An answer, or a Failure after the last attempt; `on_failure(reason)` hears of every failed attempt.

        Errors: UserError when the endpoint as a whole does not work.
        """
        began, attempt, limited = time.monotonic(), 0, 0
        while True:
            await self._wait_out_pause()
            attempt += 1
            try:
                async with self._slots:
                    answer = await self._endpoint.ask(body)
            except Rejected as error:
                on_failure(str(error))
                return self._give_up(str(error), attempt)
            except Retryable as error:
                on_failure(str(error))
                reason = error
            else:
                self._last_success, self._failed_in_a_row = time.monotonic(), 0
                return answer if attempt == 1 else replace(answer, n_attempts=attempt)
            limited += reason.rate_limit
            self._check_reachable(reason, attempt, began)
            if attempt - limited >= self._policy.attempts or limited >= self._policy.rate_limited_attempts:
                return self._give_up(str(reason), attempt)
            self.retries += 1
            await self._wait(reason, attempt - 1)

    async def _wait_out_pause(self) -> None:
        # Spread by up to base_s, so that those who waited do not all knock at once.
        while (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0.0, self._policy.base_s))

    async def _wait(self, reason: Retryable, attempt: int) -> None:
        wait_s = reason.wait_s or 0.0
        if wait_s > self._policy.longest_wait_s:
            raise UserError(f"{self._url}: {reason}; it asks to wait {wait_s:.0f} s, run again after that")
        wait_s = wait_s or self._policy.backoff_s(attempt)
        if reason.rate_limit or reason.wait_s:
            self._paused_until = max(self._paused_until, time.monotonic() + wait_s)
        else:
            await asyncio.sleep(wait_s)

    def _check_reachable(self, reason: Retryable, attempts: int, began: float) -> None:
        enough = attempts >= self._policy.unreachable_attempts
        if reason.unreachable and enough and self._last_success < began:
            raise UserError(
                f"{self._url}: cannot be reached in {attempts} attempts ({reason}); "
                "start the server or correct base_url, then run again"
            )

    def _give_up(self, reason: str, attempts: int) -> Failure:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._policy.failures_in_a_row:
            raise UserError(
                f"{self._url}: {self._failed_in_a_row} requests in a row failed, the last with: {reason}; "
                "mend the judge's settings or wait, then run again"
            )
        return Failure(reason, attempts)
