"""Errors that come with status 200 in the forms of many providers, and responses that are not complete."""

import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.answers.response_readers import read_answer
from rlhf_jax.annotation.calls.faults import error_in, meant_status
from rlhf_jax.annotation.calls.retries import Retryable
from rlhf_jax.annotation.costs.prices import Price
from rlhf_jax.errors import UserError


def annotate(server: FakeServer, n: int = 2, **changes: object) -> tuple[list[dict], dict]:
    pool = pool_of(judge_spec(price=Price(1.0, 2.0), **changes))
    return annotate_pairs(make_rows(n), pool, base_urls={"local": server.url}, retry=QUICK, max_concurrency=1)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"detail": "Insufficient credits"}, "Insufficient credits; .*add credit"),
        ({"message": "insufficient balance", "code": 402}, "insufficient balance; .*add credit"),
        ({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
         "1008 insufficient balance; .*add credit"),
        ({"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]},
         "Authentication error; the key was refused"),
        ([{"error": {"code": 401, "message": "no such key"}}], "no such key; the key was refused"),
        ({"errors": [{"code": 401, "message": "no such key"}]}, "no such key; the key was refused"),
        ({"status_code": 403, "error_msg": "Permission denied"}, "Permission denied; the key may not"),
    ],
)  # fmt: skip
def test_what_ends_the_run_ends_it_at_once_in_the_providers_words(payload: object, words: str) -> None:
    with FakeServer(lambda body, nth: payload) as server:
        with pytest.raises(UserError, match=words):
            annotate(server)
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"error_code": 17, "error_msg": "daily limit reached"}, "17 daily limit reached"),
        ({"choices": [], "message": "upstream is busy"}, "upstream is busy"),
        ([{"error": {"code": 503, "message": "busy now"}}], "busy now"),
        ({"choices": None, "base_resp": {"status_code": 1013, "status_msg": "internal"}}, "1013 internal"),
    ],
)
def test_what_may_pass_is_tried_again_and_told(payload: object, words: str) -> None:
    with FakeServer(lambda body, nth: payload if nth < 3 else openai_payload("a")) as server:
        rows, _ = annotate(server)
    assert [row["n_attempts"] for row in rows] == [3, 3]
    with FakeServer(lambda body, nth: payload) as server:
        rows, _ = annotate(server)
    assert words in rows[0]["status_detail"]


def test_a_rate_limit_in_a_list_is_one() -> None:
    with FakeServer(
        lambda body, nth: [{"error": {"code": 429}}] if nth < 12 else openai_payload("a")
    ) as server:
        rows, _ = annotate(server, 1)
    assert rows[0]["n_attempts"] == 12
    assert meant_status({"message": "Rate limit exceeded."}) == 429


@pytest.mark.parametrize(
    "payload",
    [
        openai_payload("a") | {"base_resp": {"status_code": 0, "status_msg": "success"}},
        openai_payload("a") | {"message": "this model will be retired"},
        [openai_payload("a")],
    ],
)
def test_words_beside_an_answer_do_not_cost_it(payload: object) -> None:
    with FakeServer(lambda body, nth: payload) as server:
        _, summary = annotate(server)
    assert summary["status"] == {"ok": 2} and len(server.bodies) == 2


def test_an_answer_without_text_is_no_error() -> None:
    assert not error_in({"type": "message", "content": [], "stop_reason": "end_turn"})
    assert not error_in({"id": "x", "object": "response", "output": [], "status": "completed"})


@pytest.mark.parametrize("status", ["queued", "in_progress"])
@pytest.mark.parametrize("text", [None, "the first is"])
def test_a_response_that_is_not_complete_is_no_answer(status: str, text: str | None) -> None:
    parts = [{"type": "output_text", "text": text}]
    output = [{"type": "message", "content": parts}] if text else []
    with pytest.raises(Retryable, match=rf"broke off \({status}\)"):
        read_answer("responses", {"output": output, "status": status})
