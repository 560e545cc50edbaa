"""Budgets per minute and requests under way: how headers are read, how lanes wait, grow and shrink."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from annotation_fake_server import FakeServer, answer_plainly, openai_payload
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.rates import Bucket, Concurrency, Lane, PerMinute, read_limit


def openai_headers(limit: str, remaining: str, reset: str, kind: str = "requests") -> dict:
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{kind}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "expected"),
    [
        ("600", "599", "100ms", (600.0, 599.0, 10.0)),
        ("600", "0", "1m0s", (600.0, 0.0, 10.0)),
        # 200 a day: 40 are gone and come back in 4.8 hours.
        ("200", "160", "4h48m0s", (200.0, 160.0, 40 / 17280)),
        ("600", "900", "", (600.0, 600.0, 10.0)),
        ("600", "-3", "1s", (600.0, 0.0, 10.0)),
        ("600", "5", "soon", (600.0, 5.0, 10.0)),
        ("unlimited", "5", "1s", None),
        ("0", "0", "1s", None),
    ],
)
def test_openai_headers(limit: str, remaining: str, reset: str, expected: tuple | None) -> None:
    said = read_limit(openai_headers(limit, remaining, reset), "openai", "requests")
    assert said == (expected if expected is None else pytest.approx(expected))
    assert read_limit({}, "openai", "requests") is None


@pytest.mark.parametrize("limit", ["1e-9", "0", "-1", "inf", "nan", "many"])
def test_a_limit_that_is_none_is_not_waited_for(limit: str) -> None:
    headers = {"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": "0"}
    assert read_limit(headers, "openai", "requests") is None


def test_anthropic_headers() -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    kind = "anthropic-ratelimit-input-tokens"
    headers = {f"{kind}-limit": "50000", f"{kind}-remaining": "49000", f"{kind}-reset": soon}
    assert read_limit(headers, "anthropic", "input-tokens") == pytest.approx((50000, 49000, 50000 / 60))
    assert read_limit(headers, "anthropic", "output-tokens") is None
    assert read_limit(headers, "openai", "input-tokens") is None


def test_a_bucket_refills_evenly_and_lets_large_requests_pass_when_full() -> None:
    bucket = Bucket(60.0)
    assert bucket.wait_s(60.0) == 0.0
    bucket.take(60.0)
    assert bucket.wait_s(3.0) == pytest.approx(3.0, abs=0.05)
    assert bucket.wait_s(1000.0) == pytest.approx(60.0, abs=0.05)
    bucket.take(-600.0)
    assert bucket.level == 60.0 and bucket.wait_s(1000.0) == 0.0
    bucket.follow(30.0, 7.0, 0.5)
    assert bucket.wait_s(8.0) == pytest.approx(2.0, abs=0.05)


def lane(provider: str = "openai", **settings: float) -> Lane:
    return Lane(provider, Concurrency(4), asyncio.Semaphore(4), PerMinute(**settings))


def test_a_request_sets_tokens_aside_and_gives_back_what_it_did_not_use() -> None:
    async def go() -> None:
        way = lane("anthropic")
        now = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        for kind, limit in (("input-tokens", 6000), ("output-tokens", 600)):
            name = f"anthropic-ratelimit-{kind}"
            way.hear({f"{name}-limit": str(limit), f"{name}-remaining": str(limit), f"{name}-reset": now})
        turn = await way.enter(1000.0, 500.0)
        levels = {kind: bucket.level for kind, bucket in way.buckets.items()}
        assert levels == pytest.approx({"input-tokens": 5000.0, "output-tokens": 100.0}, abs=2.0)
        way.leave(turn, (1200, 20))
        levels = {kind: bucket.level for kind, bucket in way.buckets.items()}
        assert levels == pytest.approx({"input-tokens": 4800.0, "output-tokens": 580.0}, abs=2.0)

    asyncio.run(go())


def test_headers_follow_others_with_the_same_key_down_but_never_up() -> None:
    way = lane()
    way.hear(openai_headers("1000", "400", "1s"))
    assert way.buckets["requests"].level == 400.0
    way.hear(openai_headers("1000", "900", "1s"))
    assert way.buckets["requests"].level == pytest.approx(400.0, abs=1.0)


def test_settings_go_before_headers() -> None:
    way = lane(requests=600.0)
    way.hear(openai_headers("5", "0", "1m0s"))
    assert way.buckets["requests"].per_s == 10.0 and way.buckets["requests"].level == 50.0


def test_concurrency_grows_fast_is_cut_once_per_round_and_then_grows_slowly() -> None:
    many = Concurrency(100)
    first = many.limit
    for _ in range(50):
        many.grow()
    assert many.limit == first + 50
    sent = time.monotonic()
    many.shrink(sent)
    cut = many.limit
    assert cut == pytest.approx(0.7 * (first + 50))
    many.shrink(sent)  # Sent before the cut: the same congestion.
    assert many.limit == cut
    for _ in range(round(cut)):
        many.grow()
    assert many.limit == pytest.approx(cut + 1, abs=0.1)
    for _ in range(50):
        many.shrink(time.monotonic())
    assert many.limit == 1.0
    for _ in range(10_000):
        many.grow()
    assert many.limit == 100.0


def test_places_are_given_in_order_and_survive_cancelling() -> None:
    async def go() -> None:
        places, order = Concurrency(1), []

        async def visit(name: str) -> None:
            await places.enter()
            order.append(name)
            await asyncio.sleep(0.01)
            places.leave()

        tasks = [asyncio.create_task(visit(name)) for name in "abcd"]
        await asyncio.sleep(0.005)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["a", "c", "d"] and places.busy == 0

    asyncio.run(go())


def annotate(server: FakeServer, n: int, limits: Limits, **options: object) -> tuple[list[dict], dict]:
    pool = pool_of(judge_spec())
    urls = {"local": server.url}
    return annotate_pairs(make_rows(n), pool, base_urls=urls, retry=QUICK, limits=limits, **options)


def test_requests_per_minute_are_kept() -> None:
    with FakeServer() as server:
        started = time.monotonic()
        _, summary = annotate(server, 130, Limits(per_minute=PerMinute(requests=1200.0)))
        took = time.monotonic() - started
    # 100 at once, five seconds' worth, and 30 more at twenty a second.
    assert 1.4 <= took <= 9.0 and summary["asked"] == 130


def test_a_limit_in_the_headers_keeps_the_run_from_ever_being_refused() -> None:
    limit, gone = 30, []

    def respond(body: dict, nth: int) -> object:
        now = time.monotonic()
        gone.append(now)
        used = max(0.0, len(gone) - (now - gone[0]) * 10.0)
        left = limit - used
        headers = {
            "x-ratelimit-limit-requests": "600",
            "x-ratelimit-remaining-requests": str(int(max(0.0, left))),
            "x-ratelimit-reset-requests": "1s",
        }
        if left < 0:
            return 429, headers, {"error": {"message": "too many"}}
        return 200, headers, answer_plainly(body, nth)

    with FakeServer(respond) as server:
        _, summary = annotate(server, 50, Limits())
    # The first answer tells the limit; only what was sent before it could be too much.
    assert summary["status"] == {"ok": 50} and summary["failed_attempts"] <= 2


def test_a_server_that_is_overloaded_is_asked_less_at_once() -> None:
    most = 6

    def respond(body: dict, nth: int) -> object:
        if server.most_at_once > most:
            server.most_at_once = 0
            return 503, {}, {"error": {"message": "overloaded"}}
        return openai_payload("a")

    with FakeServer(respond, delay_s=0.01) as server:
        _, summary = annotate(server, 400, Limits(), max_concurrency=64)
    assert summary["status"] == {"ok": 400}
    # Without a cut every other answer would be an error.
    assert summary["failed_attempts"] < 120
