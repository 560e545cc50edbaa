"""Retries: full-jitter backoff, the server's Retry-After, and when to stop the whole run.

One request has a bounded number of attempts. A rate limit pauses the whole lane, not only the request that met it.
An endpoint that cannot be reached, or that fails request after request while none succeeds, ends the run with one
line; a single bad request costs only its own row.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from rlhf_jax.annotation.answers.answers import API_ERROR, FILTERED, Answer, Failure, Usage
from rlhf_jax.annotation.calls.rates import Lane
from rlhf_jax.errors import UserError


class Fault(Exception):  # noqa: N818 - not an error yet
    """An attempt that brought no answer. `usage`: the tokens it used, where the provider told.

    may_cost: it may have been billed although nobody told how much (an answer that came garbled or not at all).
    of_row: what was asked or answered is the reason, and says nothing against the endpoint.
    row_status: what the row gets when no other attempt brings an answer.
    """

    def __init__(
        self, reason: str, *, usage: Usage | None = None, may_cost: bool = False, of_row: bool = False
    ) -> None:
        super().__init__(reason)
        self.usage = usage
        self.may_cost = may_cost
        self.of_row = of_row
        self.row_status = API_ERROR


class Retryable(Fault):
    """This attempt failed; another may work. `wait_s` is what the server asked for, if it did.

    rate_limit: it said that there were too many. crowded: it is overloaded or did not answer in time.
    unreachable: nobody was there.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait_s: float | None = None,
        rate_limit: bool = False,
        crowded: bool = False,
        unreachable: bool = False,
        usage: Usage | None = None,
        may_cost: bool = False,
        of_row: bool = False,
    ) -> None:
        super().__init__(reason, usage=usage, may_cost=may_cost, of_row=of_row)
        self.wait_s = wait_s
        self.rate_limit = rate_limit
        self.crowded = crowded or rate_limit
        self.unreachable = unreachable


class Rejected(Fault):
    """The endpoint will never answer this request (too long, not allowed); `status` is the HTTP status."""

    def __init__(self, reason: str, *, status: int = 0, of_row: bool = False) -> None:
        super().__init__(reason, of_row=of_row)
        self.status = status


class EndpointError(UserError):
    """No request to this endpoint will work; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RetryPolicy:
    """Settings of retries: how many attempts, how long to wait, when to stop the run.

    attempts: per request. rate_limited_attempts: more of them, for being told to slow down says nothing
        against the request. unreachable_attempts: fewer, while the endpoint answers nobody.
    base_s, cap_s: attempt n waits a uniform time in [0, min(cap_s, base_s * 2**n)] seconds.
    longest_wait_s: a server that asks for more ends the run.
    failures_in_a_row: requests that may fail for good, with no success between them, before the run ends.
        Filtered ones do not count, nor, where the endpoint has answered before, those that failed before or
        are themselves the reason: a rerun of the few rows nobody answers comes to its end.
    """

    attempts: int = 7
    rate_limited_attempts: int = 30
    unreachable_attempts: int = 4
    base_s: float = 0.5
    # A budget per minute has refilled after 60 s. The SDKs wait 8 s at most and then give up.
    cap_s: float = 60.0
    longest_wait_s: float = 300.0
    failures_in_a_row: int = 10

    def backoff_s(self, attempt: int) -> float:
        """Draw the wait after attempt 0, 1, ... with full jitter.

        Exponential Backoff and Jitter, AWS architecture blog, 2015.
        """
        return random.uniform(0.0, min(self.cap_s, self.base_s * 2**attempt))


def _mend_of(reason: str) -> str:
    """What to do about a connection that cannot be made."""
    if "CERTIFICATE_VERIFY" in reason:
        return "set SSL_CERT_FILE to the file of the authority that signed its certificate"
    if "proxy" in reason.lower():
        return "start the server, or correct the proxy in that environment variable or base_url"
    return "start the server or correct base_url"


Headers = Callable[[Mapping[str, str]], None]


class Asker(Protocol):
    """What an endpoint must do: `clients.Endpoint`, or a stand-in."""

    async def ask(self, api: str, body: dict, on_headers: Headers) -> Answer:
        """Send one request; raise Retryable, Rejected or UserError. `on_headers` gets those of the response."""


class Patient:
    """Asks one endpoint with retries, and keeps count of how it fails. One per lane, shared by the tasks of one loop.

    worked: whether it has answered in an earlier run.
    """

    def __init__(
        self,
        endpoint: Asker,
        api: str,
        url: str,
        policy: RetryPolicy,
        lane: Lane,
        *,
        worked: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._api = api
        self._url = url
        self._policy = policy
        self._lane = lane
        self._last_success = -1.0
        self._worked = worked
        self._failed_in_a_row = 0
        self.retries = 0

    async def ask(
        self,
        body: dict,
        on_failure: Callable[[Fault], bool | None],
        tokens: tuple[float, float] = (0.0, 0.0),
        *,
        failed_before: bool = False,
    ) -> Answer | Failure:
        """Ask until there is an answer, or a Failure after the last attempt.

        `on_failure` is called for every failed attempt; when it returns False there is no further one. tokens: about
        how many go in and come out. failed_before: an earlier run could not get an answer. Errors: UserError when the
        endpoint as a whole does not work.
        """
        began, attempt, limited = time.monotonic(), 0, 0
        while True:
            attempt += 1
            try:
                answer = await self._attempt(body, tokens)
            except Rejected as error:
                on_failure(error)
                return self._give_up(error, attempt, failed_before)
            except Retryable as error:
                go_on = on_failure(error)
                reason = error
            else:
                self._last_success, self._failed_in_a_row, self._worked = time.monotonic(), 0, True
                return answer if attempt == 1 else replace(answer, n_attempts=attempt)
            if go_on is False:
                return Failure(str(reason), attempt)
            # Counted apart: being told to slow down says nothing against the request.
            limited += reason.rate_limit
            self._check_reachable(reason, attempt, began)
            if attempt - limited >= self._policy.attempts or limited >= self._policy.rate_limited_attempts:
                return self._give_up(reason, attempt, failed_before)
            self.retries += 1
            await self._wait(reason, attempt - 1)

    async def _attempt(self, body: dict, tokens: tuple[float, float]) -> Answer:
        lane, used = self._lane, None
        # Each attempt enters the lane anew: its budgets and pauses hold for retries too.
        turn = await lane.enter(*tokens)
        try:
            answer = await self._endpoint.ask(self._api, body, lane.hear)
            used = answer.tokens_in, answer.tokens_out
            lane.concurrency.grow()
            return answer
        except Retryable as error:
            if error.crowded:
                lane.concurrency.shrink(turn.asked_at)
            raise
        finally:
            lane.leave(turn, used)

    async def _wait(self, reason: Retryable, attempt: int) -> None:
        wait_s = reason.wait_s or 0.0
        if wait_s > self._policy.longest_wait_s:
            raise UserError(f"{self._url}: {reason}; it asks to wait {wait_s:.0f} s, run again after that")
        wait_s = wait_s or self._policy.backoff_s(attempt)
        # What the server asks for holds for all requests of the lane: the next attempt waits in `Lane.enter`,
        # as the others do. A backoff is this request's own.
        if reason.rate_limit or reason.wait_s:
            self._lane.pause(wait_s)
        else:
            await asyncio.sleep(wait_s)

    def _check_reachable(self, reason: Retryable, attempts: int, began: float) -> None:
        # A success since this request began proves that somebody is there: only an endpoint that answers
        # nobody ends the run after a few attempts.
        enough = attempts >= self._policy.unreachable_attempts
        if reason.unreachable and enough and self._last_success < began:
            raise UserError(
                f"{self._url}: cannot be reached in {attempts} attempts ({reason}); "
                f"{_mend_of(str(reason))}, then run again"
            )

    def _give_up(self, fault: Fault, attempts: int, failed_before: bool) -> Failure:
        # A wrong parameter in the judge's file fails every row: stop after ten, not after a hundred thousand.
        self._failed_in_a_row += self._counts(fault, failed_before)
        if self._failed_in_a_row >= self._policy.failures_in_a_row:
            raise UserError(
                f"{self._url}: {self._failed_in_a_row} requests in a row failed, the last with: {fault}; "
                "mend the judge's settings or wait, then run again"
            )
        return Failure(str(fault), attempts, fault.row_status)

    def _counts(self, fault: Fault, failed_before: bool) -> bool:
        """Whether a request that failed for good speaks against the endpoint or the judge's settings."""
        if fault.row_status == FILTERED:
            return False
        # Once the endpoint has answered, its settings are known to work: a fault that lies in the row, or
        # that the row had before, is no sign against them.
        return not (self._worked and (failed_before or fault.of_row))
