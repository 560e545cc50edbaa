"""The four protocols: what is sent for the same judge, and what an answer in each comes to."""

import json

import pytest
from annotation_fake_server import FakeServer
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs, annotate_ratings
from rlhf_jax.annotation.judges.prompts import PromptTemplate
from rlhf_jax.annotation.judges.requests import Judge
from rlhf_jax.annotation.judges.specs import JudgeSpec
from rlhf_jax.annotation.parsing.parsers import ParserSpec

SCHEMA = {"type": "object"}
PAIR = ("i", "x", "y")


def body(**changes: object) -> dict:
    return Judge(judge_spec(**changes), {"local": "http://127.0.0.1:1"}).body([PAIR])


def test_chat() -> None:
    sent = body(top_logprobs=5, sampling={"temperature": 0}, output_schema=SCHEMA, extra_body={"x": 1})
    assert sent["max_completion_tokens"] == 5 and sent["logprobs"] is True and sent["top_logprobs"] == 5
    assert sent["temperature"] == 0 and sent["x"] == 1
    assert sent["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": SCHEMA}
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]


def test_responses() -> None:
    sent = body(
        protocol="responses", top_logprobs=5, sampling={"reasoning_effort": "none"}, output_schema=SCHEMA
    )
    assert sent["max_output_tokens"] == 5 and sent["store"] is False
    assert sent["reasoning"] == {"effort": "none"} and "reasoning_effort" not in sent
    assert sent["include"] == ["message.output_text.logprobs"] and sent["top_logprobs"] == 5
    assert sent["text"]["format"]["schema"] == SCHEMA
    assert [message["role"] for message in sent["input"]] == ["system", "user"] and "messages" not in sent


def test_messages() -> None:
    sent = body(provider="anthropic", output_schema=SCHEMA)
    assert sent["max_tokens"] == 5 and sent["system"].startswith("You compare")
    assert [message["role"] for message in sent["messages"]] == ["user"]
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}


def decider(**changes: object) -> JudgeSpec:
    fields = {"protocol": "decisions", "template": "pairwise_decision", "question": "Which?"}
    return judge_spec(**(fields | {"parser": ParserSpec("decision"), "max_tokens": None} | changes))


def test_decisions() -> None:
    judge = Judge(decider(batch_size=2), {"local": "http://127.0.0.1:1"})
    sent = judge.body([PAIR, ("i", "z", "w")])
    assert [question["instructions"] for question in sent["questions"]] == [
        "About example 1: Which?",
        "About example 2: Which?",
    ]
    assert {question["type"] for question in sent["questions"]} == {"choice"}
    assert sent["questions"][0]["choices"] == [{"value": "a"}, {"value": "b"}]
    assert judge.body([PAIR])["questions"][0]["instructions"] == "Which?"
    assert sent["input"][0]["content"].count("<output_a>") == 2


def test_responses_and_decisions_are_answered_end_to_end() -> None:
    def respond(sent: dict, nth: int) -> dict:
        usage = {"input_tokens": 10, "output_tokens": 2}
        if "questions" not in sent:
            part = {"type": "output_text", "text": "b"}
            message = {"type": "message", "content": [part]}
            return {"id": "r", "model": "m", "status": "completed", "output": [message], "usage": usage}
        answers = []
        for question in sent["questions"]:
            if question["type"] == "score":
                shares = [{"label": "1", "value": 0, "probability": 0.5}]
                shares.append({"label": "7", "value": 6, "probability": 0.5})
                answers.append({"type": "score", "score": 3.0, "probabilities": shares})
            elif "example 2" in question["instructions"]:
                answers.append({"type": "refusal", "name": question["name"]})
            else:
                shares = [{"value": "a", "probability": 0.2}, {"value": "b", "probability": 0.8}]
                answers.append({"type": "choice", "choice": "b", "probabilities": shares})
        return {"model": "m", "answers": answers, "usage": usage}

    with FakeServer(respond) as server:
        options = {"base_urls": {"local": server.url}, "retry": QUICK}
        rows = annotate_pairs(make_rows(4), pool_of(judge_spec(protocol="responses")), **options).rows
        assert all(row["preference"] == (2.0 if row["order"] == "12" else 1.0) for row in rows)
        assert {row["api"] for row in rows} == {"responses"}
        rows = annotate_pairs(make_rows(20), pool_of(decider(batch_size=4)), **options).rows
        assert {row["status"] for row in rows} == {"ok", "refused"}
        judged = [row for row in rows if row["status"] == "ok"]
        for row in judged:
            assert row["preference"] == pytest.approx(1.8 if row["order"] == "12" else 1.2)
        source = "{% block user %}{{ instruction }}{{ output }}{% endblock %}"
        levels = tuple("1234567")
        rater = decider(
            kind="rating",
            prompt=PromptTemplate(source, "t", {}, "rating"),
            parser=ParserSpec("decision", levels=levels),
        )
        (row,) = annotate_ratings([{"instruction": "i", "output": "o"}], pool_of(rater), **options).rows
    assert row["rating"] == pytest.approx(4.0)
    assert json.loads(row["sampling"]) == {"model": "test-model"}
