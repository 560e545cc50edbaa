"""Refusals in every provider's words, and answers in odd forms: each costs its row at most, or ends the run at once."""

import json
import re
import sqlite3
import time
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer, anthropic_payload, openai_payload, verdict
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs, read_labels, write_labels
from rlhf_jax.annotation.answers.answers import Answer, Failure
from rlhf_jax.annotation.answers.response_readers import counts_of, read_answer, read_json
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.faults import Filtered, fault
from rlhf_jax.annotation.calls.retries import EndpointError, Rejected, Retryable
from rlhf_jax.annotation.costs.prices import Price
from rlhf_jax.annotation.parsing.contracts import ParserSpec
from rlhf_jax.annotation.parsing.parsers import parse
from rlhf_jax.errors import UserError

PRICE = Price(1.0, 2.0)


def annotate(server: FakeServer, n: int = 3, **options: object) -> tuple[list[dict], dict]:
    judge = options.pop("judge", None) or judge_spec(price=PRICE)
    return annotate_pairs(
        make_rows(n), pool_of(judge), base_urls={"local": server.url}, retry=QUICK, **options
    )


def meant(status: int, body: object) -> Exception:
    return fault("http://judge", status, body, {}, lambda text: text)


OPENROUTER = {
    "code": 403,
    "message": "Your chosen model requires moderation and your input was flagged",
    "metadata": {"reasons": ["violence"], "flagged_input": "x"},
}
AZURE = {"code": "content_filter", "message": "The response was filtered due to the prompt", "status": 400}


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, {"error": OPENROUTER}, Filtered, "violence"),
        (400, {"error": AZURE}, Filtered, "content_filter"),
        (400, {"error": {"message": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, Filtered, "Resp"),
        (400, {"error": {"code": "invalid_prompt", "message": "Invalid prompt"}}, Filtered, "invalid_prompt"),
        (400, {"error": {"message": "Content Exists Risk"}}, Filtered, "Risk"),
        (400, {"error": {"code": "data_inspection_failed", "message": "inappropriate content"}}, Filtered, "data_"),
        (500, {"error": {"code": "content_filter", "message": "x"}}, Filtered, "content_filter"),
        (403, {"error": {"message": "Your account was flagged for violating our policy"}}, EndpointError, "account"),
        (403, {"error": {"code": "unsupported_country_region_territory", "message": "Country, region, or territory "
                         "not supported"}}, EndpointError, "does not serve this country"),
        (403, {"error": {"message": "Key limit exceeded"}}, EndpointError, "add credit"),
        (403, "<html><head><title>Just a  moment...</title></head></html>", EndpointError, r"\(Just a moment"),
        (403, {"message": "forbidden"}, EndpointError, "permissions"),
        (401, {"error": "bad key"}, EndpointError, "bad key; the key was refused"),
        (402, {"error": {"message": "Insufficient Balance"}}, EndpointError, "Insufficient Balance; .*credit"),
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too "
                                          "low"}}, EndpointError, "add credit"),
        (400, {"error": {"code": "billing_hard_limit_reached", "message": "x"}}, EndpointError, "add credit"),
        (429, {"error": {"code": "insufficient_quota", "message": "x"}}, EndpointError, "add credit"),
        (429, {"error": {"status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota. Please retry "
                         "in 34.07s."}}, Retryable, "RESOURCE"),
        (400, {"error": {"message": "Model Not Exist"}}, EndpointError, "check model"),
        (404, {"detail": "Not Found"}, EndpointError, "404 Not Found;"),
        (405, {"detail": "Method Not Allowed"}, EndpointError, "nothing there answers"),
        (410, {}, EndpointError, "gone"),
        (501, {}, EndpointError, "nothing there answers"),
        (302, "", EndpointError, "elsewhere and does not say where; check base_url"),
        (304, "", EndpointError, "does not say where; check base_url"),
        (407, "", EndpointError, "proxy"),
        (422, {"detail": [{"loc": ["body", "top_p"], "msg": "too high"}]}, Rejected, r"body\.top_p: too high"),
        (400, [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}], Rejected, "INVALID.* bad"),
        (400, {"object": "error", "message": "This model's maximum context length is 9", "code": 400}, Rejected, "max"),
        (400, b"\xff broken", Rejected, "broken"),
        (400, None, Rejected, "400"),
        (503, {"errors": ["overloaded"]}, Retryable, "overloaded"),
    ],
)  # fmt: skip
def test_what_a_refusal_means(status: int, body: object, kind: type, words: str) -> None:
    found = meant(status, body)
    assert type(found) is kind, found
    with pytest.raises(kind, match=words):
        raise found


def test_waits_are_read_out_of_words() -> None:
    assert meant(429, {"error": {"message": "Please retry in 34.07s."}}).wait_s == pytest.approx(34.07)
    assert meant(429, {"error": {"message": "Please try again in 6m0s."}}).wait_s == 360.0
    assert meant(429, {"error": {"message": "try again in 20 seconds"}}).wait_s == 20.0
    assert meant(429, {"error": {"message": "slow down"}}).wait_s is None
    for status in (429, 503):
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}
        told = {"error": {"code": status, "message": "quota", "details": [{"x": 1}, info]}}
        assert meant(status, told).wait_s == meant(status, [told]).wait_s == 37.0


def test_a_flagged_row_costs_its_own_row_in_every_run(tmp_path: Path) -> None:
    def respond(body: dict, nth: int) -> object:
        flagged = any(f"Say {i}." in str(body) for i in range(12))
        return (403, {}, {"error": OPENROUTER}) if flagged else openai_payload(verdict(body))

    with FakeServer(respond) as server:
        for run in range(3):
            rows, summary = annotate(server, 20, cache_path=tmp_path / "c")
            assert summary["status"] == {"filtered": 12, "ok": 8}
            assert summary["asked"] == (12 if run else 20)
    assert "violence" in rows[0]["status_detail"]


@pytest.mark.parametrize("words", ["This prompt is too long: 9 > 8 tokens, prompt is too long", "no idea"])
def test_rows_that_were_rejected_before_do_not_end_the_next_run(tmp_path: Path, words: str) -> None:
    def respond(body: dict, nth: int) -> object:
        i = int(str(body).split("Say ")[1].split(".")[0])
        return (400, {}, {"error": {"message": words}}) if i % 2 else openai_payload(verdict(body))

    with FakeServer(respond) as server:
        for _ in range(2):
            _, summary = annotate(server, 40, cache_path=tmp_path / "c", max_concurrency=1)
            assert summary["status"] == {"ok": 20, "api_error": 20}
    # Settings that nothing was ever answered to still end the run.
    with FakeServer(lambda body, nth: (400, {}, {"error": {"message": words}})) as server:
        for _ in range(2):
            with pytest.raises(UserError, match="10 requests in a row failed"):
                annotate(server, 40, cache_path=tmp_path / "never", max_concurrency=1)


def test_an_error_under_status_200_is_told_in_the_providers_words() -> None:
    overloaded = {"id": "gen-1", "error": {"message": "Upstream error: overloaded", "code": 502}}
    with FakeServer(lambda body, nth: overloaded if nth < 3 else openai_payload("a")) as server:
        rows, summary = annotate(server)
    assert summary["status"] == {"ok": 3} and rows[0]["n_attempts"] == 3
    with FakeServer(lambda body, nth: overloaded) as server:
        rows, _ = annotate(server)
    assert "Upstream error: overloaded" in rows[0]["status_detail"]
    for error in ({"message": "This request requires more credits", "code": 402},
                  {"message": "x", "type": "insufficient_quota"}, {"message": "out", "code": "401"}):  # fmt: skip
        with FakeServer(lambda body, nth, e=error: {"choices": None, "error": e}) as server:
            with pytest.raises(UserError, match=error["message"]):
                annotate(server, max_concurrency=1)
            assert len(server.bodies) == 1
    told = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded now"}}
    with FakeServer(lambda body, nth: told) as server:
        rows, _ = annotate(server, judge=judge_spec(provider="anthropic", price=PRICE))
    assert "Overloaded now" in rows[0]["status_detail"]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"<!doctype html><title>Log in</title>", r"a web page \(Log in\)"),
        (b"", "it is empty"),
        (b"data: {", "no JSON: data"),
        ({"choices": None}, "malformed"),
        ({"choices": []}, "malformed"),
        ({"choices": [{"message": None}]}, "malformed"),
        ({"choices": [None]}, "malformed"),
        ([], "malformed"),
        (b"null", "malformed"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "."),
        (
            {
                "choices": [
                    {"finish_reason": "error", "message": {"content": "a"}, "error": {"message": "cut"}}
                ]
            },
            "broke",
        ),
    ],
)
def test_what_holds_no_answer_costs_its_row(payload: object, words: str) -> None:
    def respond(body: dict, nth: int) -> object:
        return payload if "Say 1." in str(body) else openai_payload("a")

    with FakeServer(respond) as server:
        rows, summary = annotate(server)
    assert summary["status"] == {"ok": 2, "api_error": 1} and re.search(words, rows[1]["status_detail"])


@pytest.mark.parametrize(
    ("content", "text", "refusal"),
    [
        (
            [
                {"type": "thinking", "thinking": [{"text": "hm"}]},
                {"type": "text", "text": "a"},
            ],
            "a",
            None,
        ),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab", None),
        (["a", {"type": "output_text", "text": "b"}], "ab", None),
        ({"type": "text", "text": "a"}, "a", None),
        ([{"type": "refusal", "refusal": "no"}], "no", "refusal"),
        ([{"type": "text", "text": {"value": "a"}}], "a", None),
        (None, "", None),
        ([], "", None),
    ],
)
def test_the_text_of_a_message_is_that_of_its_parts(content: object, text: str, refusal: str | None) -> None:
    message = {"content": content, "reasoning_content": "long thoughts", "tool_calls": None}
    answer = read_answer("chat", {"choices": [{"message": message}]})
    assert (answer.text, answer.refusal, answer.finish_reason) == (text, refusal, "stop")


def test_odd_words_and_numbers_around_an_answer_do_not_cost_it() -> None:
    payload = openai_payload("a") | {"id": 7, "model": ["m"], "system_fingerprint": {"x": 1}}
    tops = [{"token": "a", "logprob": "-0.1"}, {"token": None, "logprob": 1}, {"logprob": 2}, 3]
    payload["choices"][0]["logprobs"] = {"content": [{"top_logprobs": tops}, None]}
    answer = read_answer("chat", payload)
    assert (answer.text, answer.request_id, answer.model) == ("a", "7", '["m"]')
    assert answer.top_logprobs == ((("a", -0.1),), ())
    assert read_answer("chat", {"choices": [{"text": "a"}]}).text == "a"


def test_of_several_choices_the_first_by_its_number_is_read() -> None:
    choices = [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]
    assert read_answer("chat", {"choices": choices}).text == "a"


@pytest.mark.parametrize("tops", [None, [], [{"token": "a", "logprob": -5.0}]])
def test_the_token_that_was_taken_counts_though_it_is_not_among_the_likeliest(tops: list | None) -> None:
    payload = openai_payload("b")
    payload["choices"][0]["logprobs"] = {"content": [{"token": "b", "logprob": -0.01, "top_logprobs": tops}]}
    parsed = parse(read_answer("chat", payload), ParserSpec("logprob"))
    assert parsed.status == "ok" and parsed.preference > 1.99


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_every_encoding_of_unicode(encoding: str) -> None:
    assert read_json(json.dumps({"content": "é"}, ensure_ascii=False).encode(encoding)) == {"content": "é"}


def test_a_count_of_thousands_of_digits_does_not_cost_its_answer() -> None:
    told = b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}"
    answer = read_answer("chat", read_json(told))
    assert (answer.text, answer.tokens_in) == ("a", None)


def test_an_error_of_any_size_is_read_at_its_beginning() -> None:
    began = time.monotonic()
    failed = meant(400, {"error": {"message": "access " * 1_000_000}})
    assert isinstance(failed, Rejected) and time.monotonic() - began < 2.0


def test_redirects_in_a_circle_end_the_run_and_a_server_that_drips_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"Location": "/v1/chat/completions"}
    with (
        FakeServer(lambda body, nth: (307, there, {})) as server,
        pytest.raises(UserError, match="in a circle"),
    ):
        annotate(server)
    monkeypatch.setattr("rlhf_jax.annotation.calls.clients._LONGEST_TIMEOUTS", 0.002)
    with FakeServer(delay_s=0.5) as server:
        rows, summary = annotate(server, 1, timeout_s=30.0, limits=Limits(retry=QUICK))
    assert "no whole answer in" in rows[0]["status_detail"] and summary["unpriced_attempts"] == 7


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10120, "completion_tokens": 1499, "total_tokens": 14428,
          "completion_tokens_details": {"reasoning_tokens": 2809}}, (10120, 4308)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12,
          "completion_tokens_details": {"reasoning_tokens": 6}}, (5, 7)),
        ({"prompt_tokens": "5", "completion_tokens": 7.0}, (5, 7)),
        ({"prompt_tokens": 5, "completion_tokens": -7}, (5, None)),
        ({"prompt_tokens": 5, "total_tokens": 12}, (5, 7)),
        ({"prompt_tokens": True, "completion_tokens": "many"}, (None, None)),
        ({"prompt_tokens": 10**30, "completion_tokens": 3}, (None, 3)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
          "completion_tokens_details": {"reasoning_tokens": 50}}, (5, 52)),
        ([], (None, None)),
        (None, (None, None)),
        ("none", (None, None)),
    ],
)  # fmt: skip
def test_tokens_are_those_that_are_billed(usage: object, tokens: tuple) -> None:
    found = counts_of("chat", usage)
    assert (found["tokens_in"], found["tokens_out"]) == tokens


def test_reasoning_outside_the_completion_is_priced_and_more_cached_than_sent_is_not_a_rebate() -> None:
    usage = {"prompt_tokens": 10120, "completion_tokens": 1499, "total_tokens": 14428}
    with FakeServer(lambda body, nth: openai_payload("a") | {"usage": usage}) as server:
        rows, summary = annotate(server, 1)
    assert summary["cost_usd"] == pytest.approx((10120 * 1.0 + (1499 + 2809) * 2.0) / 1e6)
    assert rows[0]["price_usd"] == summary["cost_usd"]
    assert Price(1.0, 2.0, cached_input=0.1).usd(100, 0, cached=1000) == pytest.approx(100 * 0.1 / 1e6)


def test_an_answer_without_usage_has_an_unknown_cost_and_uses_up_all_that_was_held(tmp_path: Path) -> None:
    with FakeServer(lambda body, nth: openai_payload("a") | {"usage": None}) as server:
        _, summary = annotate(server)
        assert summary["cost_usd"] is None and summary["price_unknown"] == 3
        with pytest.raises(UserError, match="max_usd"):
            annotate(server, 100, limits=Limits(max_usd=0.01), cache_path=tmp_path / "c")
        size = max(len(json.dumps(body)) for body in server.bodies)
    assert len(server.bodies) - 3 <= 0.01 / (size * 1e-6)


def test_attempts_that_may_have_cost_are_within_the_budget() -> None:
    with FakeServer(lambda body, nth: b"{half") as server, pytest.raises(UserError, match="max_usd"):
        annotate(server, 20, limits=Limits(max_usd=0.005))
    size = min(len(json.dumps(body)) for body in server.bodies)
    assert len(server.bodies) * size * 1e-6 <= 0.005


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("SAFETY", "filtered"), ("RECITATION", "filtered"), ("content_filter", "filtered"), ("BLOCKLIST", "filtered"),
        ("guardrail_intervened", "filtered"), ("PROHIBITED_CONTENT", "filtered"), ("refusal", "refused"),
        ("MAX_TOKENS", "truncated"), ("length", "truncated"), ("model_length", "truncated"),
        ("pause_turn", "truncated"), ("FINISH_REASON_MAX_TOKENS", "truncated"),
        ("model_context_window_exceeded", "truncated"),
        ("eos", "parse_error"), ("STOP", "parse_error"), ("end_turn", "parse_error"), ("stop_sequence", "parse_error"),
    ],
)  # fmt: skip
def test_how_an_answer_ended_is_known_in_all_words(word: str, status: str) -> None:
    assert parse(Answer("neither", finish_reason=word), ParserSpec("choice")).status == status


@pytest.mark.parametrize(
    "word", ["error", "ERROR", "MALFORMED_FUNCTION_CALL", "abort", "insufficient_system_resource"]
)
def test_an_answer_whose_making_failed_is_asked_for_again(word: str) -> None:
    with FakeServer(lambda body, nth: openai_payload("a", word if nth == 1 else "stop")) as server:
        rows, summary = annotate(server, 1)
    assert rows[0]["n_attempts"] == 2 and summary["status"] == {"ok": 1}
    # Both were paid for.
    assert summary["cost_usd"] == pytest.approx(2 * (100 * 1.0 + 10 * 2.0) / 1e6)


def test_lone_surrogates_cost_nothing_wherever_they_stand(tmp_path: Path) -> None:
    def respond(body: dict, nth: int) -> object:
        if "Say 1." in str(body):
            return 400, {}, json.dumps({"error": {"message": "bad \ud83d"}}).encode()
        return json.dumps(openai_payload("a\ud83d") | {"model": "m\udc00", "id": "\ud83d\udc4d"}).encode()

    parser = ParserSpec("regex", patterns=("^a", "^b"))
    rows = [
        *make_rows(2),
        {"instruction": "x\ud83d", "output_1": "\udfff", "output_2": "b", "note": "\ud800"},
    ]
    with FakeServer(respond) as server:
        pool = pool_of(judge_spec(parser=parser))
        done, summary = annotate_pairs(
            rows,
            pool,
            base_urls={"local": server.url},
            retry=QUICK,
            cache_path=tmp_path / "c",
        )
    write_labels(tmp_path / "labels.parquet", done, {})
    kept = read_labels(tmp_path / "labels.parquet").rows
    assert [row["status"] for row in kept] == ["ok", "api_error", "ok"]
    assert kept[0]["raw_text"] == "a\ufffd" and kept[0]["request_id"] == "\U0001f44d"
    assert "\ufffd" in kept[1]["status_detail"] and kept[2]["note"] == kept[2]["output_1"] == "\ufffd"
    stored = sqlite3.connect(tmp_path / "c").execute("SELECT text, model FROM answers").fetchall()
    assert {("a\ufffd", "m\ufffd")} == set(stored) and summary["status"]["ok"] == 2
    assert "\\ud" not in str(list(server.asked))


def test_a_judge_file_with_a_lone_surrogate_is_read(tmp_path: Path) -> None:
    from rlhf_jax.annotation import load_judge

    text = "name: 'j'\nprovider: openai\nmodel: \"m\\ud83d\"\ntemplate: pairwise_choice\nparser: {name: choice}\n"
    (tmp_path / "j.yaml").write_text(text)
    assert load_judge(tmp_path / "j.yaml").model == "m\ufffd"


def test_statuses_of_failures_are_the_faults_own() -> None:
    assert Filtered("x").row_status == "filtered" and Rejected("x").row_status == "api_error"
    assert Failure("x", 1).status == "api_error"
    assert anthropic_payload("a")["stop_reason"] == "end_turn"
