"""Parsers of batches, ratings, rankings, completions and decisions by table; nothing else becomes a number."""

import itertools
import math

import pytest

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.parsing.parsers import PARSERS, ParserSpec, parse, parse_all

LINES = (r"(?:^|\n) ?Output \(a\)", r"(?:^|\n) ?Output \(b\)")
JSON_A, JSON_B = '{"ordered": ["a", "b"]}', '{"ordered": ["b", "a"]}'
SEVEN = ParserSpec("rating", low=1, high=7)
WOMBAT = ParserSpec("ratings", low=1, high=5, aspects=("relevance", "correctness", "coherence", "safety"))

BATCHES = [
    (ParserSpec("choice"), "Example 1: a\nExample 2: b\nExample 3: a", [1, 2, 1]),
    (ParserSpec("choice"), "1. b\n2. b\n\n3. a", [2, 2, 1]),
    (ParserSpec("sentence"), "Output (b)\nOutput (a)\nOutput (a)", [2, 1, 1]),
    (ParserSpec("cot_json"), f"[{JSON_A}, {JSON_B},\n{JSON_B}]", [1, 2, 2]),
    (ParserSpec("regex", patterns=LINES), "Output (a)\n Output (b)\nOutput (a)", [1, 2, 1]),
    (ParserSpec("regex", patterns=(": true", ": false")), '{"x": true}{"x": false}{"x": false}', [1, 2, 2]),
    (ParserSpec("regex", patterns=("A>B", "B>A", "A=B")), "A=B\nB>A\nA>B", [1.5, 2, 1]),
]


@pytest.mark.parametrize(("spec", "text", "wanted"), BATCHES)
def test_a_batch_of_three(spec: ParserSpec, text: str, wanted: list[float]) -> None:
    assert [one.preference for one in parse_all(Answer(text), spec, 3)] == wanted


@pytest.mark.parametrize(("spec", "text"), [(spec, text) for spec, text, _ in BATCHES])
@pytest.mark.parametrize("n", [2, 4])
def test_a_wrong_count_marks_all_rows(spec: ParserSpec, text: str, n: int) -> None:
    parsed = parse_all(Answer(text), spec, n)
    assert [(one.preference, one.status) for one in parsed] == [(None, "parse_error")] * n
    assert f"to {n} examples" in parsed[0].detail


def naive_regex(text: str, patterns: tuple[str, ...], n: int) -> list[float] | None:
    """The earliest match of any pattern, cut off, again: an independent version, by all single matches."""
    import re

    found = []
    while True:
        starts = [re.search(pattern, text) for pattern in patterns]
        if not any(starts):
            return found if len(found) == n else None
        first = min((m.start(), i) for i, m in enumerate(starts) if m)[1]
        found.append([1.0, 2.0][first])
        text = text[starts[first].end() :]


def test_regex_reads_as_alpaca_farm_does() -> None:
    pieces = ["Output (a)", "Output (b)", "\n", " ", "x Output (a)"]
    spec = ParserSpec("regex", patterns=LINES)
    for parts in itertools.product(pieces, repeat=4):
        text = "".join(parts)
        for n in (1, 2):
            got = [one.preference for one in parse_all(Answer(text), spec, n)]
            assert got == (naive_regex(text, LINES, n) or [None] * n), (text, n)


@pytest.mark.parametrize(
    ("text", "preference"), [("8 6", 1.0), ("6.5, 9\nB is fuller.", 2.0), ("\n7 7\nEqual.", 1.5)]
)
def test_two_scores(text: str, preference: float) -> None:
    assert parse(Answer(text), ParserSpec("two_scores", low=1, high=10)).preference == preference


@pytest.mark.parametrize("text", ["", "8", "8 6 7", "Scores: 8 6", "8 11", "0 5", "eight six"])
def test_not_two_scores(text: str) -> None:
    assert parse(Answer(text), ParserSpec("two_scores", low=1, high=10)).status == "parse_error"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6", 6),
        ("Rating: 6", 6),
        ("**6**\nIt is accurate, coherent and 100 % harmless.", 6),
        ("6/7", 6),
        ("\n 6 out of 7. ", 6),
        ("It is fine, for 3 reasons.\nRating: [[6]]", 6),
        ("The rating is 6. I rate it so.", 6),
        ("six", 6),
    ],
)
def test_a_rating(text: str, value: float) -> None:
    assert parse(Answer(text), SEVEN).rating == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "8",
        "-3",
        "6.5",
        "6 or 7",
        "Rating: 5. On reflection, rating: 6",
        "In 1999 it was good",
        "1e3",
        "6 7",
        "nan",
        "Instruction 6 was followed",
    ],
)
def test_not_a_rating(text: str) -> None:
    parsed = parse(Answer(text), SEVEN)
    assert (parsed.rating, parsed.status) == (None, "parse_error") and parsed.detail


def test_the_scale_is_free_and_checked() -> None:
    percent = ParserSpec("rating", low=0, high=100, whole=False)
    assert parse(Answer("72.5"), percent).rating == 72.5
    assert "not within 0 and 100" in parse(Answer("101"), percent).detail


def test_ratings_of_a_batch_stand_or_fall_together() -> None:
    assert [p.rating for p in parse_all(Answer("Example 1: 3\nExample 2: 7"), SEVEN, 2)] == [3, 7]
    for text in ("3", "3\n4\n5", "3\n9"):
        assert [p.status for p in parse_all(Answer(text), SEVEN, 2)] == ["parse_error"] * 2


@pytest.mark.parametrize(
    "text",
    [
        '{"Relevance": 5, "correctness": 4, "coherence": 5, "safety": 3}',
        "Relevance: 5\nCorrectness: 4\n**Coherence**: 5\nSafety: 3",
        '{"relevance": 5, "correctness": 4, "coherence": 5, "safety": "3"}',
    ],
)
def test_criteria_are_summed(text: str) -> None:
    parsed = parse(Answer(text), WOMBAT)
    assert parsed.rating == 17
    assert parsed.aspects == (("relevance", 5), ("correctness", 4), ("coherence", 5), ("safety", 3))
    mean = ParserSpec("ratings", low=1, high=5, aspects=WOMBAT.aspects, reduce="mean")
    assert parse(Answer(text), mean).rating == 4.25


@pytest.mark.parametrize(
    "text",
    [
        '{"relevance": 5, "correctness": 4, "coherence": 5}',
        '{"relevance": 5, "correctness": 4, "coherence": 5, "safety": 6}',
        '{"relevance": 5, "correctness": 4, "coherence": 5, "safety": true}',
        "Relevance: 5\nCorrectness: 4\nCoherence: 5",
        "17",
    ],
)
def test_a_missing_or_impossible_criterion_is_no_rating(text: str) -> None:
    assert parse(Answer(text), WOMBAT).status == "parse_error"


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("2 > 1 > 3", (2, 1, 3)),
        ("My ranking:\n**3 > 2 = 1**", (2, 2, 1)),
        ("[3, 1, 2]", (2, 3, 1)),
        ('{"ordered": [1, [2, 3]]}', (1, 2, 2)),
        ("1 = 2 = 3", (1, 1, 1)),
    ],
)
def test_an_order_of_three(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_all(Answer(text), ParserSpec("order"), 1, 3)[0].ranks == ranks


@pytest.mark.parametrize(
    "text", ["", "2 > 1", "1 > 2 > 4", "1 > 1 > 2", "1 > 2 > 3\n3 > 2 > 1", "[1, 2, 3, 4]", "2, 1, 3 or so"]
)
def test_not_an_order_of_three(text: str) -> None:
    assert parse_all(Answer(text), ParserSpec("order"), 1, 3)[0].status == "parse_error"


def test_a_completion_ends_by_itself_unless_the_judge_allows_more() -> None:
    assert parse(Answer("  Hello.\n"), ParserSpec("text")).text == "Hello."
    assert parse(Answer("Hel", "length"), ParserSpec("text")).status == "truncated"
    assert parse(Answer("Hel", "length"), ParserSpec("text", allow_cut=True)).text == "Hel"
    assert parse(Answer(" "), ParserSpec("text")).status == "parse_error"
    assert parse(Answer("x", "content_filter"), ParserSpec("text")).status == "filtered"


def _shares(*questions: dict[str, float]) -> Answer:
    tops = tuple(tuple((name, math.log(p)) for name, p in shares.items()) for shares in questions)
    return Answer("", top_logprobs=tops)


def test_decisions_are_distributions_for_each_question() -> None:
    parsed = parse_all(_shares({"a": 0.7, "b": 0.28}, {}, {"a": 0.5}), ParserSpec("decision"), 3)
    assert parsed[0].preference == pytest.approx(1 + 0.28 / 0.98)
    assert [one.status for one in parsed] == ["ok", "refused", "low_mass"]
    levels = ParserSpec("decision", levels=("1", "2", "3"))
    assert parse(_shares({"1": 0.25, "3": 0.75}), levels).rating == pytest.approx(2.5)
    assert [p.status for p in parse_all(_shares({"a": 1.0}), ParserSpec("decision"), 2)] == [
        "parse_error"
    ] * 2


@pytest.mark.parametrize("name", sorted(PARSERS))
@pytest.mark.parametrize("n", [1, 3])
def test_withheld_answers_mark_every_example(name: str, n: int) -> None:
    spec = ParserSpec(name, patterns=LINES, aspects=("x",))
    refused = parse_all(Answer("Output (a)", refusal="frontier_llm"), spec, n)
    assert [(one.status, one.detail) for one in refused] == [("refused", "frontier_llm")] * n
    assert [one.status for one in parse_all(Answer("a", "content_filter"), spec, n)] == ["filtered"] * n


@pytest.mark.parametrize("name", sorted(PARSERS))
@pytest.mark.parametrize(
    "text", ["[" * 50_000, "{" * 50_000, "1 > " * 20_000, "\x00\ud800", "*" * 50_000, "(" * 9_999]
)
def test_monstrous_answers_are_read_in_time_and_give_no_label(name: str, text: str) -> None:
    spec = ParserSpec(name, patterns=LINES, aspects=("x", "y"))
    for one in parse_all(Answer(text), spec, 2, 3):
        assert one.preference is None and one.rating is None and one.ranks is None
