"""Probabilities that are none: the answer is unreadable, and the rest of them does not pass as certain."""

import math

import pytest
from annotation_fake_server import openai_payload

from rlhf_jax.annotation.answers.response_readers import read_answer
from rlhf_jax.annotation.parsing.contracts import ParserSpec
from rlhf_jax.annotation.parsing.parsers import parse

NAN = math.nan


def decided(shares: dict[str, object]) -> object:
    probabilities = [{"value": value, "probability": share} for value, share in shares.items()]
    answer = {"type": "choice", "choice": "b", "probabilities": probabilities}
    return parse(read_answer("decisions", {"answers": [answer]}), ParserSpec("decision"))


@pytest.mark.parametrize(
    "shares",
    [{"a": "0.95", "b": NAN}, {"a": 0.95, "b": -0.1}, {"a": NAN, "b": NAN}, {"a": 0.3, "b": math.inf},
     {"a": 1.0, "b": "nan"}, {"a": 1.0, "b": -math.inf}],
)  # fmt: skip
def test_a_decision_with_what_is_no_probability_is_unreadable(shares: dict) -> None:
    parsed = decided(shares)
    assert (parsed.status, parsed.preference) == ("parse_error", None) and "which is none" in parsed.detail


def test_a_decision_without_any_probability_is_not_a_refusal() -> None:
    assert decided({"a": 0.0, "b": 0.0}).status == "low_mass"
    assert decided({"a": 0.0, "b": 1.0}).preference == 2.0
    assert decided({"a": "0.25", "b": "0.75"}).preference == pytest.approx(1.75)


def weighed(tops: list[dict], **taken: object) -> object:
    payload = openai_payload("a")
    payload["choices"][0]["logprobs"] = {"content": [{"token": "a", "top_logprobs": tops, **taken}]}
    return parse(read_answer("chat", payload), ParserSpec("logprob"))


@pytest.mark.parametrize("value", [None, "x", [], "absent"])
def test_a_token_that_was_asked_for_and_has_no_number_is_unreadable(value: object) -> None:
    odd = {"token": "b"} if value == "absent" else {"token": "b", "logprob": value}
    parsed = weighed([{"token": "a", "logprob": -0.05}, odd])
    assert (parsed.status, parsed.preference) == ("parse_error", None) and "'b'" in parsed.detail
    assert weighed([], logprob=None).status == "parse_error"


def test_other_tokens_may_have_any_value() -> None:
    tops = [
        {"token": "a", "logprob": -0.05},
        {"token": "x", "logprob": None},
        {"token": None},
        {"logprob": 1},
    ]
    parsed = weighed([*tops, {"token": "b", "logprob": "-4"}])
    assert parsed.status == "ok" and 1.0 < parsed.preference < 1.1
