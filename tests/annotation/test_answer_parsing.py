"""Parsers by table: what each reads, and that nothing else becomes a number."""

import math

import pytest

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.parsing.parsers import ParserSpec, parse

RANK_A = "[{'model': 'a', 'rank': 1}, {'model': 'b', 'rank': 2}]"
RANK_B = "[{'model': 'a', 'rank': 2}, {'model': 'b', 'rank': 1}]"

READABLE = [
    ("choice", "a", 1.0),
    ("choice", " b\n", 2.0),
    ("choice", "B", 2.0),
    ("choice", "(a)", 1.0),
    ("choice", "**b**.", 2.0),
    ("choice", "Output (b)", 2.0),
    ("sentence", "Output (a)", 1.0),
    ("sentence", "I read both. They differ.\n\nOutput (b)", 2.0),
    ("sentence", "output (A).", 1.0),
    ("sentence", "Output (b) is better, so: Output (b)", 2.0),
    ("cot_json", '{"concise_explanation": "x", "ordered": ["b", "a"]}', 2.0),
    ("cot_json", 'Here:\n```json\n{"concise_explanation": "has {braces}", "ordered": ["a", "b"]}\n```', 1.0),
    ("cot_json", '{not json} {"ordered": ["a", "b"]}', 1.0),
    ("ranking", RANK_A, 1.0),
    ("ranking", f"I compared them.\n{RANK_B}", 2.0),
    ("ranking", "[{'rank': 1, 'model': 'b'}, {'rank': 2, 'model': 'a'}]", 2.0),
]

UNREADABLE = [
    ("choice", ""),
    ("choice", "c"),
    ("choice", "ab"),
    ("choice", "a or b"),
    ("choice", "A better answer would be b"),
    ("choice", "Both outputs are fine."),
    ("choice", "a" * 5000),
    ("sentence", ""),
    ("sentence", "a"),
    ("sentence", "Output (c)"),
    ("sentence", "Output (a) is longer but Output (b) is better"),
    ("cot_json", ""),
    ("cot_json", "{'winner': ???}"),
    ("cot_json", '{"ordered": ["a"]}'),
    ("cot_json", '{"ordered": ["a", "a"]}'),
    ("cot_json", '{"ordered": ["a", "b", "c"]}'),
    ("cot_json", '{"ordered": "ab"}'),
    ("cot_json", '{"ordered": [1, 2]}'),
    ("cot_json", '{"ordered": ["a", "b"]} or rather {"ordered": ["b", "a"]}'),
    ("cot_json", "{" * 50_000),
    ("cot_json", '{"a":' * 20_000),
    ("ranking", ""),
    ("ranking", "[]"),
    ("ranking", "[{'model': 'a', 'rank': 1}]"),
    ("ranking", "[{'model': 'a', 'rank': 1}, {'model': 'b', 'rank': 1}]"),
    ("ranking", "[{'model': 'a', 'rank': 1}, {'model': 'a', 'rank': 2}]"),
    ("ranking", "[{'model': 'a', 'rank': True}, {'model': 'b', 'rank': 2}]"),
    ("ranking", "[{'model': 'c', 'rank': 1}, {'model': 'b', 'rank': 2}]"),
    ("ranking", f"{RANK_A} {RANK_B}"),
    ("ranking", "[__import__('os').system('true')]"),
    ("ranking", "[{'model': 'a', 'rank': 1}, 'b']"),
    ("ranking", "[" * 50_000),
    ("logprob", "a"),
]


@pytest.mark.parametrize(("parser", "text", "preference"), READABLE)
def test_readable(parser: str, text: str, preference: float) -> None:
    parsed = parse(Answer(text), ParserSpec(parser))
    assert (parsed.preference, parsed.status) == (preference, "ok")


@pytest.mark.parametrize(("parser", "text"), UNREADABLE, ids=lambda value: repr(value[:30]))
def test_unreadable_is_a_status_and_never_a_number(parser: str, text: str) -> None:
    parsed = parse(Answer(text), ParserSpec(parser))
    assert (parsed.preference, parsed.status) == (None, "parse_error")
    assert parsed.detail


@pytest.mark.parametrize("finish", ["length", "max_tokens"])
def test_cut_off(finish: str) -> None:
    cut = Answer('{"concise_explanation": "Output (a) is', finish_reason=finish)
    assert parse(cut, ParserSpec("cot_json")).status == "truncated"
    half = Answer("Output (a) is longer, but", finish_reason=finish)
    assert parse(half, ParserSpec("sentence")).status == "truncated"
    assert parse(Answer("Output (a)", finish_reason=finish), ParserSpec("sentence")).preference == 1.0
    # One token was all that was asked for: it is complete although the limit ended it.
    assert parse(Answer("b", finish_reason=finish), ParserSpec("choice")).preference == 2.0


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (Answer("a", finish_reason="refusal", refusal="frontier_llm"), "refused", "frontier_llm"),
        (Answer("a", finish_reason="content_filter"), "filtered", "content_filter"),
        (Answer("I cannot help with a.", refusal="refusal"), "refused", "refusal"),
    ],
)
def test_withheld_is_a_status_whatever_the_text_says(answer: Answer, status: str, detail: str) -> None:
    parsed = parse(answer, ParserSpec("choice"))
    assert (parsed.preference, parsed.status, parsed.detail) == (None, status, detail)


def _token(**probabilities: float) -> Answer:
    tops = tuple((name.replace("_", " "), math.log(p)) for name, p in probabilities.items())
    return Answer("a", top_logprobs=(tops,))


def test_logprob_is_one_plus_the_probability_of_the_second() -> None:
    parsed = parse(_token(a=0.7, b=0.28, The=0.01), ParserSpec("logprob"))
    assert parsed.preference == pytest.approx(1 + 0.28 / 0.98, abs=1e-12)
    assert parsed.mass == pytest.approx(0.98)
    assert parsed.status == "ok"


def test_logprob_adds_the_tokens_of_a_side_and_takes_a_missing_side_as_none() -> None:
    spec = ParserSpec("logprob", first=("a", " a"), second=("b",))
    assert parse(_token(a=0.5, _a=0.3, b=0.2), spec).preference == pytest.approx(1.2)
    assert parse(_token(a=0.99), spec).preference == 1.0
    assert parse(_token(b=0.99), spec).preference == 2.0


def test_logprob_with_little_mass_is_no_label() -> None:
    for answer in (_token(Neither=0.9, a=0.05, b=0.02), _token(Neither=1.0)):
        parsed = parse(answer, ParserSpec("logprob"))
        assert (parsed.preference, parsed.status) == (None, "low_mass")
    assert parse(
        _token(Neither=0.9, a=0.06, b=0.02), ParserSpec("logprob", min_mass=0.0)
    ).preference == pytest.approx(1.25)


def test_logprob_position_may_count_from_the_end() -> None:
    tops = tuple(((name, 0.0),) for name in ("x", "y", "b"))
    assert parse(Answer("x y b", top_logprobs=tops), ParserSpec("logprob", position=-1)).preference == 2.0
    assert (
        parse(Answer("x y b", top_logprobs=tops), ParserSpec("logprob", position=3)).status == "parse_error"
    )


def test_names_that_differ_by_case_only_keep_it() -> None:
    spec = ParserSpec("choice", first=("m",), second=("M",))
    assert [parse(Answer(text), spec).preference for text in ("m", "M", "Output (M)")] == [1.0, 2.0, 2.0]
    ranking = "[{'model': 'M', 'rank': 1}, {'model': 'm', 'rank': 2}]"
    assert parse(Answer(ranking), ParserSpec("ranking", ("m",), ("M",))).preference == 2.0
