"""What a request may cost at most, whatever `extra_body` asks for, and what failed attempts did cost."""

import pytest
from annotation_batch_server import BatchServer
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.batches.batch_transport import BatchPolicy
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.faults import fault
from rlhf_jax.annotation.calls.retries import Retryable
from rlhf_jax.annotation.costs.prices import Price, most_tokens, most_usd
from rlhf_jax.annotation.judges.requests import Judge
from rlhf_jax.errors import UserError

PRICE = Price(1.0, 2.0)


def judge_with(max_tokens: int | None, body: dict) -> Judge:
    return Judge(judge_spec(price=PRICE, max_tokens=max_tokens, extra_body=body), {"local": "http://h"})


@pytest.mark.parametrize(
    ("max_tokens", "body", "most"),
    [
        (5, {"n": 8, "max_completion_tokens": 100_000}, 800_000),
        (5, {"max_tokens": 7}, 7),
        (5, {"max_output_tokens": 3}, 5),
        (None, {"max_tokens": 7, "best_of": 3, "n": 2}, 21),
        (5, {"n": None}, 5),
        (5, {"max_completion_tokens": None}, None),
        (5, {"max_completion_tokens": "9"}, None),
        (5, {"n": "8"}, None),
        (5, {"n": True}, None),
        (None, {"n": 2}, None),
    ],
)
def test_the_most_an_answer_is_billed_for(max_tokens: int | None, body: dict, most: int | None) -> None:
    judge = judge_with(max_tokens, body)
    assert most_tokens(judge) == most
    assert most_usd(judge, 0) == pytest.approx((100 + 2 * (most or 0)) / 1e6)


def test_a_budget_holds_against_what_extra_body_asks_for() -> None:
    body = {"n": 8, "max_completion_tokens": 100_000}

    def respond(body: dict, nth: int) -> dict:
        usage = {"prompt_tokens": 10, "completion_tokens": 8 * 100_000}
        return openai_payload("a") | {"usage": usage}

    limits = Limits(max_usd=2.0)
    pool = pool_of(judge_spec(price=PRICE, extra_body=body))
    with FakeServer(respond) as server, pytest.raises(UserError, match="max_usd: "):
        annotate_pairs(make_rows(9), pool, base_urls={"local": server.url}, retry=QUICK, limits=limits)
    assert len(server.bodies) == 1
    odd = pool_of(judge_spec(price=PRICE, extra_body={"n": "8"}))
    with FakeServer() as server, pytest.raises(UserError, match="extra_body with n that is no count"):
        annotate_pairs(make_rows(1), odd, base_urls={"local": server.url}, retry=QUICK, limits=limits)
    assert server.bodies == []


def test_the_estimate_knows_the_bound_too() -> None:
    pool = pool_of(judge_spec(price=PRICE, extra_body={"n": 8, "max_completion_tokens": 100_000}))
    told = annotate_pairs(make_rows(1), pool, base_urls={"local": "http://h"}, dry_run=True).summary
    assert told["max_cost_usd"] == pytest.approx(1.6, rel=0.01)


def test_failed_attempts_of_a_batch_have_its_price() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}

    def fate(key: str, body: dict, nth: int) -> object:
        return openai_payload("a") if nth > 1 else {"id": "x", "choices": [], "usage": usage}

    limits = Limits(
        transport="batch", batch=BatchPolicy(first_poll_s=0.01, longest_poll_s=0.02, settle_s=0.05)
    )
    with BatchServer(fate) as server:
        _, summary = annotate_pairs(
            make_rows(2), pool_of(judge_spec(price=PRICE)), base_urls={"local": server.url}, limits=limits
        )
    one = (100 * 1.0 + 10 * 2.0) / 1e6 / 2
    assert summary["cost_failed_usd"] == pytest.approx(2 * one)
    assert summary["cost_usd"] == pytest.approx(4 * one)


@pytest.mark.parametrize("status", [408, 504, 520, 522, 524, 500, 502, 503, 529, 429])
def test_a_gateway_that_gave_up_waiting_may_have_cost(status: int) -> None:
    failed = fault("http://h", status, {"error": {"message": "x"}}, {}, str)
    assert isinstance(failed, Retryable) and failed.may_cost == (status in (408, 504, 520, 522, 524))
