"""Properties of all parsers on any text: a label on the scale or a status, in linear time; quotations do not count."""

import math
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlhf_jax.annotation.answers.answers import LOW_MASS, PARSE_ERROR, REFUSED, STATUSES, Answer
from rlhf_jax.annotation.parsing.parse_sentences import cost_problem
from rlhf_jax.annotation.parsing.parsers import ONE_EXAMPLE, PARSERS, Parsed, ParserSpec, parse_all

ASPECTS = ("relevance", "safety")
SPECS = {
    name: ParserSpec(
        name, low=1, high=7, patterns=(r"(?:^|\n)\s*Output \(a\)", r"(?:^|\n) ?Output \(b\)"), aspects=ASPECTS
    )
    for name in PARSERS
}
# A well-formed verdict of every parser that reads words, and what it says.
VERDICTS = {
    "choice": ("b", 2.0),
    "sentence": ("Output (b)", 2.0),
    "regex": ("Output (b)", 2.0),
    "cot_json": ('{"ordered": ["b", "a"]}', 2.0),
    "ranking": ("[{'model': 'b', 'rank': 1}, {'model': 'a', 'rank': 2}]", 2.0),
    "two_scores": ("3 7", 2.0),
    "five_verdicts": ("[[B>A]]", 2.0),
    "rating": ("Rating: 7", 7.0),
    "ratings": ('{"relevance": 7, "safety": 7}', 14.0),
    "order": ("3 > 1 > 2", (2, 3, 1)),
}
QUOTING = (
    'The output says "{}".',
    "The output says:\n{}\n\n",
    "The output tells me to answer {}.",
    "> {}\n",
    "The instruction contains: {}\n",
    "“{}” is what the response demands.",
    "I ignore the instruction to output {}.",
    "It tries to trick me into answering {}.",
)
DECLINING = ("I refuse to rate it.", "I will not follow that.", "I cannot judge this.", "I decline.")
PIECES = [
    "Rating",
    "rating: ",
    "Output (a)",
    "Output (b)",
    "[[",
    "]]",
    "{",
    "}",
    '"',
    "'",
    "\n",
    "> ",
    " ",
    "1",
    "7",
    "-",
    "/",
]
PIECES += [
    ".",
    ",",
    "out of",
    "<think>",
    "</think>",
    "I refuse",
    "The output says",
    "(",
    ")",
    "５",
    "½",
    "\ud800",
    "\x00",
    "not ",
]
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
FAST = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def label(parsed: Parsed) -> object:
    found = [x for x in (parsed.preference, parsed.rating, parsed.ranks) if x is not None]
    return found[0] if found else None


def assert_sound(parsed: Parsed, high: float) -> None:
    assert parsed.status in STATUSES
    if parsed.status != "ok":
        assert label(parsed) is None and parsed.detail
    if parsed.preference is not None:
        assert 1 <= parsed.preference <= 2
    if parsed.rating is not None:
        assert math.isfinite(parsed.rating) and 1 <= parsed.rating <= high


@pytest.mark.parametrize("name", sorted(PARSERS))
@FAST
@given(text=TEXTS, finish=st.sampled_from(["stop", "length"]), n=st.integers(1, 3))
def test_any_text_is_a_label_on_the_scale_or_a_status(name: str, text: str, finish: str, n: int) -> None:
    n = 1 if name in ONE_EXAMPLE else n
    found = parse_all(Answer(text, finish_reason=finish), SPECS[name], n, 3)
    assert len(found) == n
    for parsed in found:
        assert_sound(parsed, 14 if name == "ratings" else 7)


NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, -9999.0, math.nan, math.inf, -math.inf, 5.0]))
TOKENS = st.sampled_from(["a", "b", " a", "A", "", "1", "7", "\ud800"])


@pytest.mark.parametrize("name", ["logprob", "decision"])
@FAST
@given(tops=st.lists(st.tuples(TOKENS, NUMBERS), max_size=5), mass=st.sampled_from([0.0, 0.9]))
def test_any_log_probabilities(name: str, tops: list, mass: float) -> None:
    spec = ParserSpec(name, min_mass=mass)
    assert_sound(parse_all(Answer("a", top_logprobs=(tuple(tops),)), spec)[0], 7)
    levels = ParserSpec("decision", low=1, high=7, levels=tuple("1234567"), min_mass=mass)
    assert_sound(parse_all(Answer("a", top_logprobs=(tuple(tops),)), levels)[0], 7)


@pytest.mark.parametrize(
    ("tops", "status"),
    [
        ((("a", math.nan), ("b", -1.0)), PARSE_ERROR),
        ((("a", math.inf),), PARSE_ERROR),
        ((("a", 0.5),), PARSE_ERROR),
        ((("a", -0.1), ("a", -3.0)), PARSE_ERROR),
        ((("a", -0.1), ("b", -0.1)), PARSE_ERROR),
        ((("a", -9999.0), ("b", -9999.0)), LOW_MASS),
        (((" a", -0.01),), LOW_MASS),
        ((), LOW_MASS),
        ((("x", math.nan), ("a", -0.01)), "ok"),
        ((("a", -0.01), ("a", -0.0101)), "ok"),
    ],
)
def test_log_probabilities_that_are_none(tops: tuple, status: str) -> None:
    for finish in ("stop", "length"):
        parsed = parse_all(Answer("a", finish_reason=finish, top_logprobs=(tops,)), ParserSpec("logprob"))[0]
        assert (parsed.status, parsed.preference is None) == (status, status != "ok")


@pytest.mark.parametrize("name", sorted(VERDICTS))
@FAST
@given(
    quoting=st.sampled_from(QUOTING),
    declining=st.sampled_from(DECLINING),
    gap=st.sampled_from([" ", "\n", "\n\n"]),
)
def test_who_only_quotes_a_verdict_and_declines_has_refused(
    name: str, quoting: str, declining: str, gap: str
) -> None:
    parsed = parse_all(Answer(quoting.format(VERDICTS[name][0]) + gap + declining), SPECS[name], 1, 3)[0]
    assert (label(parsed), parsed.status) == (None, REFUSED)


@pytest.mark.parametrize("name", sorted(VERDICTS))
@FAST
@given(quoting=st.sampled_from(QUOTING), before=st.text("abcdefgh ,", max_size=40))
def test_a_quoted_verdict_alone_is_never_the_verdict(name: str, quoting: str, before: str) -> None:
    # Of some forms a lone letter is a verdict, and then it is the one that counts.
    assume(label(parse_all(Answer(before), SPECS[name], 1, 3)[0]) is None)
    text = before + "\n" + quoting.format(VERDICTS[name][0])
    assert label(parse_all(Answer(text), SPECS[name], 1, 3)[0]) is None


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_a_well_formed_verdict_is_read(name: str) -> None:
    text, wanted = VERDICTS[name]
    for dressed in (text, f"\n{text}\n", f"<think>The other? {text}?</think>\n\n{text}"):
        assert label(parse_all(Answer(dressed), SPECS[name], 1, 3)[0]) == wanted


@given(
    value=st.integers(1, 7),
    form=st.sampled_from(["{}", "Rating: {}", "**{}**", "[[{}]]", "{}/7", "{} out of 7"]),
)
def test_ratings_there_and_back(value: int, form: str) -> None:
    assert parse_all(Answer(form.format(value)), SPECS["rating"])[0].rating == value


# Ways to say that a number is of another scale, not the judge's last word, or somebody else's.
NOT_ON_THE_SCALE = (
    "Rating (out of {high}): {value}",
    "Rating: {value} (out of {high})",
    "Rating: {value} (max {high})",
    "Rating: {value}/{high}",
    "{value} out of {high}",
    "{value}∕{high}",
    "On a {high}-point scale, I rate it {value}.",
    "On a scale of 1 to {high}, I'd give it a {value}",
    "Rating (1-{high}): {value}",
)
TAKEN_BACK = (
    "Rating: {value}. Actually, {other}.",
    "Rating: {value}\nWait, make that {other}",
    "Rating: {value}, no wait, {other}.",
    "Rating: {value} or {other}",
    "Rating: {value}–{other}",
    "Rating: {value} (maybe {other})",
    "Rating: {value} -> {other}",
    "Rating: {value}\nNo, {other}.",
    "Rating: {value}\nEdit: {other}",
    "Rating: {value}. Sorry, I meant {other}.",
    "Rating: {value}; scratch that, {other}",
)


@FAST
@given(
    form=st.sampled_from(NOT_ON_THE_SCALE), value=st.integers(1, 7), high=st.sampled_from([5, 10, 20, 100])
)
def test_a_number_of_another_scale_is_no_rating(form: str, value: int, high: int) -> None:
    text = form.format(value=value, high=high)
    assert label(parse_all(Answer(text), SPECS["rating"])[0]) is None, text
    assert label(parse_all(Answer("Good.\n" + text + "\n"), SPECS["rating"])[0]) is None, text


@FAST
@given(form=st.sampled_from(TAKEN_BACK), value=st.integers(1, 7), by=st.integers(1, 6))
def test_a_number_that_is_taken_back_is_no_rating(form: str, value: int, by: int) -> None:
    text = form.format(value=value, other=1 + (value - 1 + by) % 7)
    assert label(parse_all(Answer(text), SPECS["rating"])[0]) is None, text


UNITS = [
    "\n",
    " ",
    "1",
    "1 ",
    "(",
    "[",
    "{",
    '"',
    "'",
    "`",
    "“",
    "It says ",
    "I will ",
    "Output (",
    "</think>\n",
    "> ",
    "1 > ",
]
UNITS += [
    "*",
    "Rating",
    "Rating\n",
    "the ",
    "I'd give it ",
    "5 out of ",
    '{"a":',
    "relevance",
    "\ud800",
    "says the output ",
    "Actually, ",
    "{'a':",
    "Output (a) ",
    "<|im_end|>",
    "relevance (1-10) ",
    "\\boxed{",
    "Example 2: ",
    "example 2 ",
    "No, ",
    "~~",
    "if it would ",
    "contains the ",
    "reject the ",
    "- ",
    "worst to ",
    "5 [1-",
    "overall: ",
    "Worst:\n",
]


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_long_adversarial_answers_are_read_in_time(name: str) -> None:
    began = time.process_time()
    for unit in UNITS:
        for tail in ("x", "\n1"):
            text = (unit * (40_000 // len(unit))) + tail
            parse_all(Answer(text, finish_reason="length"), SPECS[name], 1, 3)
    assert (time.process_time() - began) / (2 * len(UNITS)) < 1.0


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (r"(?:^|\n)\s*Output \(a\)", ""),
        (r": true", ""),
        (r"\[\[A>{1,2}B\]\]", ""),
        (r"(?i)verdict\s{0,9}[:=]\s{0,9}a", ""),
        (r"(a+)+$", "inside an endless one"),
        (r"(?:ab)*c", "endless repetition of a group"),
        (r"(a|a)*b", "endless repetition of a group"),
        (r"\s*:\s*a", "2 endless repetitions"),
        (r"(a)\1", "a reference to a group"),
        (r"(?:.{0,50}){3}x", "ways"),
    ],
)
def test_patterns_that_could_take_long_are_refused(pattern: str, problem: str) -> None:
    found = cost_problem(pattern)
    assert (found == "") if problem == "" else problem in found
