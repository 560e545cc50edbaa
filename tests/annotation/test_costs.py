"""What calls cost: every kind of token, failed attempts, unknown prices, and the budget nobody overspends."""

from pathlib import Path

import pytest
from annotation_fake_server import FakeServer, openai_payload, verdict
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.costs.prices import Price, price_of, price_table, read_price
from rlhf_jax.annotation.judges.requests import Judge
from rlhf_jax.annotation.judges.specs import JudgeSpec
from rlhf_jax.errors import UserError

PRICE = Price(10.0, 50.0, cached_input=1.0, cache_write=12.5)


def annotate(
    server: FakeServer,
    n: int,
    limits: Limits | None = None,
    *,
    judge: JudgeSpec | None = None,
    **options: object,
) -> tuple[list[dict], dict]:
    pool, urls = pool_of(judge or judge_spec(price=PRICE)), {"local": server.url}
    return annotate_pairs(make_rows(n), pool, base_urls=urls, retry=QUICK, limits=limits, **options)


def test_every_kind_of_token_has_its_price() -> None:
    # 1,000 in, of which 600 were read from and 100 written to the prompt cache; 200 out, reasoning included.
    answer = Answer("a", tokens_in=1000, tokens_cached=600, tokens_out=200, tokens_cache_write=100)
    by_hand = (300 * 10.0 + 600 * 1.0 + 100 * 12.5 + 200 * 50.0) / 1e6
    assert PRICE.of(answer) == pytest.approx(by_hand, rel=1e-12)
    assert PRICE.usd(1000, 200, cached=600, written=100, in_batch=True) == pytest.approx(
        by_hand / 2, rel=1e-12
    )
    assert Price(10.0, 50.0).of(answer) == pytest.approx((1000 * 10.0 + 200 * 50.0) / 1e6)
    assert Price(10.0, 10.0).usd(900, 26) == pytest.approx(926 * 1e-5, rel=1e-12)
    assert PRICE.usd(None, 5) is None and PRICE.usd(5, None) is None
    assert Price(0.0, 0.0).of(answer) == Price(0.0, 0.0).usd(None, None) == 0.0
    assert Price(0.0, 0.0, cached_input=1.0).usd(None, None) is None


def test_the_table_is_read_and_serves_the_providers_own_addresses_only() -> None:
    as_of, listed = price_table()
    assert as_of.startswith("2026-") and len(listed) > 10
    assert all(0 < price.input < price.output for price in listed.values())
    model = "gpt-5.4-mini"
    own = judge_spec(base_url="", model=model, price=None)
    assert price_of(Judge(own, {})) == listed["openai", model]
    elsewhere = judge_spec(base_url="https://gateway.example/v1", model=model, price=None)
    assert price_of(Judge(elsewhere, {})) is None
    assert price_of(Judge(judge_spec(base_url="", model="gpt-99", price=None), {})) is None
    assert price_of(Judge(judge_spec(base_url="", model=model, price=PRICE), {})) == PRICE


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": 1.0}, ["price", "output"]),
        ({"input": -1.0, "output": 1.0}, ["input", "-1.0"]),
        ({"input": 1.0, "output": 1.0, "cached": 1.0}, ["'cached'", "cached_input"]),
        ({"input": 1.0, "output": 1.0, "batch": "half"}, ["batch", "'half'"]),
    ],
)
def test_bad_prices_are_named(given: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_price("judge.yaml", given)
    assert all(word in str(caught.value) for word in ["judge.yaml", *words])
    assert read_price("judge.yaml", None) is None


def test_failed_attempts_are_paid_for_and_said() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}

    def respond(body: dict, nth: int) -> object:
        if nth == 1:  # Billed, and of no use.
            return {"id": "x", "model": "m", "choices": [], "usage": usage}
        if nth == 2:  # Perhaps billed: nobody says.
            return b"{not json"
        if nth == 3:  # Not billed.
            return 500, {}, {}
        return openai_payload(verdict(body))

    with FakeServer(respond) as server:
        _, summary = annotate(server, 5)
    one = (100 * 10.0 + 10 * 50.0) / 1e6
    assert summary["cost_usd"] == pytest.approx(10 * one) and summary["cost_failed_usd"] == pytest.approx(
        5 * one
    )
    assert summary["failed_attempts"] == 15 and summary["unpriced_attempts"] == 5
    assert (summary["tokens_in"], summary["tokens_out"]) == (1000, 100)


def test_failed_attempts_of_unknown_price_make_the_cost_unknown() -> None:
    def respond(body: dict, nth: int) -> object:
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    with FakeServer(respond) as server:
        _, summary = annotate(server, 1, judge=judge_spec(price=None))
    assert summary["cost_usd"] is None and summary["price_unknown"] == QUICK.attempts


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_budget_is_never_overspent_and_the_answers_stay(tmp_path: Path, concurrency: int) -> None:
    def respond(body: dict, nth: int) -> object:
        # The most a request can be billed: a token per byte, and all it may answer.
        usage = {"prompt_tokens": len(str(body)), "completion_tokens": 5}
        return openai_payload("a") | {"usage": usage}

    # A request may cost up to 0.02 dollars.
    budget = 0.25
    with FakeServer(respond) as server:
        with pytest.raises(UserError, match=r"max_usd: \$0\.\d+ of \$0.25 are spent .* raise max_usd"):
            options = {"cache_path": tmp_path / "c", "max_concurrency": concurrency}
            annotate(server, 100, Limits(max_usd=budget), **options)
        billed = sum((len(str(body)) * 10.0 + 5 * 50.0) / 1e6 for body in server.bodies)
        one = billed / len(server.bodies)
        asked = len(server.bodies)
    assert budget - 2 * one < billed <= budget
    with FakeServer(respond) as server:
        _, summary = annotate(server, 100, cache_path=tmp_path / "c")
    assert summary["cached"] == asked and summary["asked"] == 100 - asked


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (judge_spec("dear", price=None), ["max_usd", "dear", "test-model", "unknown"]),
        (judge_spec("long", price=PRICE, max_tokens=None), ["max_usd", "long", "max_tokens"]),
    ],
)
def test_a_budget_needs_what_bounds_a_cost(judge: JudgeSpec, words: list[str]) -> None:
    with FakeServer() as server, pytest.raises(UserError) as caught:
        annotate(server, 3, Limits(max_usd=1.0), judge=judge)
    assert all(word in str(caught.value) for word in words) and server.bodies == []


def test_what_is_free_needs_no_bound_and_no_count() -> None:
    with FakeServer(lambda body, nth: openai_payload("a") | {"usage": None}) as server:
        _, summary = annotate(server, 3, Limits(max_usd=0.001), judge=judge_spec(max_tokens=None))
    assert summary["cost_usd"] == 0.0 and summary["price_unknown"] == 0


def test_settings_of_asking_are_checked() -> None:
    for limits, words in [
        (Limits(max_usd=-1.0), "max_usd: found -1.0"),
        (Limits(max_usd=float("nan")), "max_usd: found nan"),
        (Limits(transport="onlin"), "transport: unknown 'onlin'; did you mean 'online'?"),
    ]:
        with FakeServer() as server, pytest.raises(UserError, match=words):
            annotate(server, 1, limits)
