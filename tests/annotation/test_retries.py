"""Trying again, against a stand-in endpoint: how often, how long, and when to stop the whole run."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from annotation_helpers import QUICK

from rlhf_jax.annotation.answers.answers import Answer, Failure
from rlhf_jax.annotation.calls.rates import Concurrency, Lane, retry_after
from rlhf_jax.annotation.calls.retries import Patient, Rejected, Retryable, RetryPolicy
from rlhf_jax.errors import UserError


class Script:
    """An endpoint that plays a list: exceptions are raised, the rest is returned; the last entry repeats."""

    def __init__(self, *script: object) -> None:
        self.script, self.asked = list(script), 0

    async def ask(self, api: str, body: dict, on_headers: object) -> Answer:
        self.asked += 1
        said = self.script[min(self.asked, len(self.script)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


def lane() -> Lane:
    return Lane("openai", Concurrency(4), asyncio.Semaphore(4), spread_s=QUICK.base_s)


def run(endpoint: Script, policy: RetryPolicy = QUICK, times: int = 1) -> tuple[list, list]:
    """The outcomes of asking one after the other, and the reasons of all failed attempts."""
    reasons: list[str] = []

    async def go() -> list:
        patient = Patient(endpoint, "chat", "http://judge", policy, lane())
        return [await patient.ask({}, lambda fault: reasons.append(str(fault))) for _ in range(times)]

    return asyncio.run(go()), reasons


def test_a_passing_fault_costs_attempts_only() -> None:
    outcomes, reasons = run(Script(Retryable("500"), Retryable("reset"), Answer("a")))
    assert outcomes == [Answer("a", n_attempts=3)]
    assert reasons == ["500", "reset"]


def test_attempts_are_bounded() -> None:
    endpoint = Script(Retryable("500 broken"))
    outcomes, reasons = run(endpoint)
    assert outcomes == [Failure("500 broken", QUICK.attempts)]
    assert endpoint.asked == len(reasons) == QUICK.attempts


def test_a_rate_limit_has_more_attempts_but_not_endless_ones() -> None:
    limited = Retryable("429", rate_limit=True)
    outcomes, _ = run(Script(*[limited] * 20, Answer("a")))
    assert outcomes[0].n_attempts == 21
    endpoint = Script(limited)
    outcomes, _ = run(endpoint)
    assert outcomes == [Failure("429", QUICK.rate_limited_attempts)]


def test_what_is_rejected_is_not_asked_again() -> None:
    endpoint = Script(Rejected("400 too long"))
    assert run(endpoint)[0] == [Failure("400 too long", 1)]
    assert endpoint.asked == 1


def test_the_wait_a_server_asks_for_is_kept() -> None:
    started = time.monotonic()
    outcomes, _ = run(Script(Retryable("429", wait_s=0.4, rate_limit=True), Answer("a")))
    assert 0.4 <= time.monotonic() - started < 10
    assert outcomes[0].text == "a"


def test_a_rate_limit_pauses_the_whole_endpoint() -> None:
    endpoint = Script(Retryable("429", wait_s=0.3, rate_limit=True), Answer("a"))
    times: list[float] = []

    async def go() -> None:
        patient = Patient(endpoint, "chat", "http://judge", QUICK, lane())

        async def late() -> None:
            await asyncio.sleep(0.05)
            await patient.ask({}, print)
            times.append(time.monotonic() - started)

        started = time.monotonic()
        await asyncio.gather(patient.ask({}, lambda reason: None), late())

    asyncio.run(go())
    assert times[0] >= 0.3


def test_an_absurd_wait_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"http://judge: 429 daily limit; it asks to wait 7200 s"):
        run(Script(Retryable("429 daily limit", wait_s=7200.0, rate_limit=True)))


def test_an_endpoint_nobody_reaches_ends_the_run_after_few_attempts() -> None:
    endpoint = Script(Retryable("connection refused", unreachable=True))
    with pytest.raises(
        UserError, match=r"http://judge: cannot be reached .*connection refused.*base_url"
    ) as caught:
        run(endpoint)
    assert endpoint.asked == QUICK.unreachable_attempts
    assert "\n" not in str(caught.value)


def test_a_row_of_failures_ends_the_run_and_a_success_breaks_the_row() -> None:
    with pytest.raises(UserError, match=r"10 requests in a row failed, the last with: 400 bad field"):
        run(Script(Rejected("400 bad field")), times=50)
    nine = [Rejected("400")] * 9
    outcomes, _ = run(Script(*nine, Answer("a"), *nine, Answer("b")), times=20)
    assert sum(isinstance(outcome, Failure) for outcome in outcomes) == 18


def test_backoff_is_full_jitter_up_to_a_cap() -> None:
    policy = RetryPolicy(base_s=1.0, cap_s=8.0)
    for attempt, most in enumerate([1.0, 2.0, 4.0, 8.0, 8.0, 8.0]):
        waits = [policy.backoff_s(attempt) for _ in range(2000)]
        assert 0.0 <= min(waits) < 0.05 * most
        assert 0.95 * most < max(waits) <= most
    assert replace(policy, cap_s=0.0).backoff_s(50) == 0.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-4"}, None),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after-ms": "nan", "retry-after": "3"}, 3.0),
        ({"retry-after-ms": "-1"}, None),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "20ms"}, 0.02),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers: dict, seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(30.0, abs=3.0)
