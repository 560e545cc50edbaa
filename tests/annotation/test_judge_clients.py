"""One question over the real SDKs to a local server: what is sent, what is read, how each fault is taken."""

import asyncio
import json
import socket

import pytest
from annotation_fake_server import RESET, FakeServer, anthropic_payload, openai_payload
from annotation_helpers import judge_spec

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.calls.clients import Endpoint
from rlhf_jax.annotation.calls.retries import Rejected, Retryable
from rlhf_jax.annotation.judges.requests import Address, Judge
from rlhf_jax.errors import UserError

PROVIDERS = ("openai", "anthropic")
KEY = "sk-secret-0123456789abcdef"


def ask(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 5.0, **changes: object
) -> Answer:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = Judge(judge_spec(api_key_env="JUDGE_KEY", **changes), {"local": server.url})

    async def go() -> Answer:
        endpoint = Endpoint(judge.address, max_connections=2, timeout_s=timeout_s)
        try:
            return await endpoint.ask(
                judge.spec.api, judge.body([("Do it.", "one", "two")]), lambda headers: None
            )
        finally:
            await endpoint.close()

    return asyncio.run(go())


def test_openai_request_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"sampling": {"temperature": 0}, "top_logprobs": 5, "extra_body": {"service_tier": "flex"}}
    tops = {"a": -0.1, "b": -2.4}
    with FakeServer(lambda body, nth: openai_payload("a", "length", tops)) as server:
        answer = ask(server, monkeypatch, **changes)
    sent, headers = server.bodies[0], server.headers[0]
    assert {name: sent[name] for name in sent if name != "messages"} == {
        "model": "test-model",
        "temperature": 0,
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 5,
        "service_tier": "flex",
    }
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (answer.text, answer.finish_reason, answer.model) == ("a", "length", "served-model")
    assert answer.top_logprobs == ((("a", -0.1), ("b", -2.4)),)
    assert (answer.tokens_in, answer.tokens_out, answer.request_id) == (100, 10, "x1")
    assert answer.latency_ms > 0 and answer.created_at > 1_700_000_000_000


def test_anthropic_request_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(lambda body, nth: anthropic_payload("b")) as server:
        answer = ask(server, monkeypatch, provider="anthropic")
    sent, headers = server.bodies[0], server.headers[0]
    assert sent["model"] == "test-model" and sent["max_tokens"] == 5
    assert isinstance(sent["system"], str) and [message["role"] for message in sent["messages"]] == ["user"]
    assert not {"temperature", "top_p", "top_k"} & set(sent)
    assert "anthropic-version" in headers and KEY in (
        headers.get("x-api-key", "") + headers.get("authorization", "")
    )
    assert (answer.text, answer.finish_reason) == ("b", "end_turn")
    assert (answer.tokens_in, answer.tokens_cached, answer.tokens_out) == (100, 10, 10)


def test_refusals_are_read_with_their_category(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(lambda body, nth: anthropic_payload("", "refusal", "frontier_llm")) as server:
        assert ask(server, monkeypatch, provider="anthropic").refusal == "frontier_llm"
    refused = openai_payload("")
    refused["choices"][0]["message"] |= {"content": None, "refusal": "I will not."}
    with FakeServer(lambda body, nth: refused) as server:
        answer = ask(server, monkeypatch)
    assert (answer.refusal, answer.text) == ("refusal", "I will not.")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"{not json", "malformed"),
        (b"", "malformed"),
        (b"[]", "malformed"),
        ({}, "malformed"),
        ({"choices": [], "content": None}, "malformed"),
        ({"choices": [{"message": {"content": 3}}], "content": [{"type": "text", "text": 3}]}, "malformed"),
        (RESET, "."),
    ],
)
def test_a_garbled_answer_is_worth_another_try(
    monkeypatch: pytest.MonkeyPatch, provider: str, payload: object, words: str
) -> None:
    with FakeServer(lambda body, nth: payload) as server, pytest.raises(Retryable, match=words) as caught:
        ask(server, monkeypatch, provider=provider)
    assert len(server.bodies) == 1
    assert not caught.value.unreachable


def _error(provider: str, code: str, message: str) -> dict:
    return {"error": {"type": code, "code": code, "message": message}} | (
        {"type": "error"} if provider else {}
    )


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_faults_that_pass(monkeypatch: pytest.MonkeyPatch, provider: str, status: int) -> None:
    payload = _error(provider, "overloaded_error", "busy")
    with FakeServer(lambda body, nth: (status, {"Retry-After": "7"}, payload)) as server:
        with pytest.raises(Retryable, match=f"{status} overloaded_error busy") as caught:
            ask(server, monkeypatch, provider=provider)
        assert len(server.bodies) == 1, "the SDK must not retry by itself"
    assert caught.value.wait_s == 7.0
    assert caught.value.rate_limit == (status == 429)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (401, "invalid_api_key", "set a valid one"),
        (402, "billing_error", "add credit"),
        (403, "permission_error", "permissions"),
        (404, "model_not_found", "check model"),
        (429, "insufficient_quota", "add credit"),
    ],
)
def test_faults_that_end_the_run_say_why_without_the_key(
    monkeypatch: pytest.MonkeyPatch, provider: str, status: int, code: str, remedy: str
) -> None:
    payload = _error(provider, code, f"Problem with {KEY}\nsee sk-abc***xyz.")
    with FakeServer(lambda body, nth: (status, {}, payload)) as server, pytest.raises(UserError) as caught:
        ask(server, monkeypatch, provider=provider)
    message = str(caught.value)
    assert all(word in message for word in (server.url, "JUDGE_KEY", str(status), code, remedy, "Problem")), (
        message
    )
    assert "secret" not in message and "sk-" not in message and "\n" not in message


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_faults_of_one_request(monkeypatch: pytest.MonkeyPatch, provider: str, status: int) -> None:
    payload = _error(provider, "invalid_request_error", "too long")
    with (
        FakeServer(lambda body, nth: (status, {}, payload)) as server,
        pytest.raises(Rejected, match="too long"),
    ):
        ask(server, monkeypatch, provider=provider)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_nobody_there_and_no_answer_in_time_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    with FakeServer(delay_s=1.0) as server:
        with pytest.raises(Retryable) as slow:
            ask(server, monkeypatch, timeout_s=0.2, provider=provider)
        assert not slow.value.unreachable
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(Retryable) as dead:
            ask(server, monkeypatch, provider=provider)
        assert dead.value.unreachable


def test_a_proxy_of_the_environment_is_not_asked_for_a_local_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FakeServer() as server:
        assert ask(server, monkeypatch).text in ("a", "b")


def test_a_body_is_sent_as_it_was_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as server:
        ask(server, monkeypatch)
    judge = Judge(judge_spec(), {"local": server.url})
    assert json.loads(next(iter(server.asked))) == judge.body([("Do it.", "one", "two")])
    assert isinstance(judge.address, Address)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_server_that_repeats_the_key_gets_it_into_no_answer(
    monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    said = f"You sent {KEY}; a"
    payload = anthropic_payload(said) if provider == "anthropic" else openai_payload(said)
    with FakeServer(lambda body, nth: payload | {"id": KEY, "model": f"m-{KEY}"}) as server:
        answer = ask(server, monkeypatch, provider=provider)
    assert answer.text == "You sent ***; a" and "secret" not in repr(answer)
