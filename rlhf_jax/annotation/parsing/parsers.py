"""Parsers: pure functions from a raw answer to what it says about the examples it was asked about.

A parser never guesses. What it cannot read is a status, never a number; an answer that names both sides as
the verdict is unreadable, and so are all examples of a request whose answers are not as many as they. What a
judge thinks, quotes or reports is not its verdict (`own_words`), and one that declines to judge has refused. Parsing
works on cached answers, so reading them anew asks nobody.

Here a parser has its name, its kinds and its options, which `read_parser` reads from the `parser` field of a judge's
YAML: a name, or a mapping with the name and the options it takes.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from rlhf_jax.annotation.answers.answers import (
    CUT_OFF,
    FILTERED,
    LOW_MASS,
    PARSE_ERROR,
    REFUSED,
    REMOVED,
    TRUNCATED,
    WITHHELD,
    Answer,
)
from rlhf_jax.annotation.judges.fields import YamlFields
from rlhf_jax.annotation.parsing import parse_forms, parse_ratings, parse_sentences, parse_verdicts
from rlhf_jax.annotation.parsing.contracts import (
    COMPLETION,
    KINDS,
    PAIRWISE,
    RANKING,
    RATING,
    Parsed,
    ParserSpec,
    failed,
)
from rlhf_jax.annotation.parsing.own_words import declined, own_words, refusal_in, split_thoughts
from rlhf_jax.errors import UserError

__all__ = [
    "KINDS",
    "PARSERS",
    "PARSER_VERSION",
    "Parsed",
    "ParserSpec",
    "parse",
    "parse_all",
    "parsers_of",
    "read_parser",
]

# Raised whenever some cached answer is read differently than before; it is part of a judge's id.
PARSER_VERSION = 5

Reader = Callable[[Answer, ParserSpec, int, int], list[Parsed]]

PARSERS: dict[str, Reader] = {
    "choice": parse_forms.choice,
    "sentence": parse_sentences.sentence,
    "cot_json": parse_forms.cot_json,
    "ranking": parse_forms.ranking,
    "logprob": parse_forms.logprob,
    "regex": parse_sentences.regex,
    "two_scores": parse_forms.two_scores,
    "five_verdicts": parse_verdicts.five_verdicts,
    "rating": parse_ratings.rating,
    "ratings": parse_ratings.ratings,
    "order": parse_forms.order,
    "text": parse_forms.parse_text,
    "decision": parse_forms.decision,
}
_OF_KIND = {
    PAIRWISE: (
        *("choice", "sentence", "cot_json", "ranking", "logprob", "regex", "two_scores", "five_verdicts"),
        "decision",
    ),
    RATING: ("rating", "ratings", "decision"),
    RANKING: ("order",),
    COMPLETION: ("text",),
}
# Parsers that cannot tell several examples of one request apart.
ONE_EXAMPLE = ("logprob", "two_scores", "five_verdicts", "order", "text")
# Parsers whose answer is no verdict in words: a completion is the text, probabilities stand beside it.
_COMPLETIONS = ("text",)
_PROBABILITIES = ("logprob", "decision")


def parsers_of(kind: str) -> tuple[str, ...]:
    """Return the names of the parsers that read answers of this kind."""
    return _OF_KIND[kind]


def parse_all(answer: Answer, spec: ParserSpec, n: int = 1, k: int = 2) -> list[Parsed]:
    """Read what `answer` says about each of the `n` examples it was asked about, as `spec` says.

    k: how many outputs each example shows. Withheld by the model: refused; removed by a filter: filtered;
    unreadable and cut off: truncated.
    """
    if answer.refusal is not None or answer.finish_reason in WITHHELD:
        return [failed(answer.refusal or answer.finish_reason, REFUSED)] * n
    if answer.finish_reason in REMOVED:
        return [failed(answer.finish_reason, FILTERED)] * n
    parsed = (
        PARSERS[spec.name](answer, spec, n, k) if spec.name in _COMPLETIONS else _said(answer, spec, n, k)
    )
    # Weighted judges ask for one token on purpose: every answer of theirs ends at the limit.
    if answer.finish_reason in CUT_OFF and spec.name not in _PROBABILITIES:
        return [_cut_off(one, answer) if one.status == PARSE_ERROR else one for one in parsed]
    return parsed


def _said(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Parse the judge's own words. After a sentence that declines to judge, only what follows counts."""
    text = split_thoughts(answer.text)[1]
    own = own_words(text)
    rest = refusal_in(own)
    read = answer if spec.name in _PROBABILITIES else replace(answer, text=own if rest is None else rest)
    parsed = PARSERS[spec.name](read, spec, n, k)
    # A readable verdict counts, whatever stands around it; only without one is a refusal looked for.
    unread = all(one.status in (PARSE_ERROR, LOW_MASS) for one in parsed)
    if unread and (rest is not None or declined(text, own)):
        return [failed(_shown(answer.text), REFUSED)] * n
    return parsed


def _shown(text: str) -> str:
    """The beginning of an answer that declines to judge, for the row's status_detail."""
    line = " ".join(text.split())
    return f"the judge declines to judge: {line[:200]}"


def _cut_off(parsed: Parsed, answer: Answer) -> Parsed:
    return failed(f"the answer was cut off ({answer.finish_reason}): {parsed.detail}", TRUNCATED)


def parse(answer: Answer, spec: ParserSpec) -> Parsed:
    """Read the answer to a request with one example."""
    return parse_all(answer, spec)[0]


# The options of each parser, out of a judge's YAML.

# Every level of a scored decision is spelled out in the request.
_MOST_LEVELS = 100
_SIDES = (("first", "a"), ("second", "b"))


def read_parser(fields: YamlFields, kind: str) -> ParserSpec:
    """Read the parser of a judge of this kind. Errors: UserError naming file, field, value and what would work."""
    value = fields.take("parser", (str, dict))
    inner = YamlFields(f"{fields.where}: parser", {"name": value} if isinstance(value, str) else value)
    name = inner.choice("name", parsers_of(kind))
    # Decisions about ratings have levels, about pairs two sides: one parser name for two sets of options.
    read = _scored_decision if (name, kind) == ("decision", RATING) else _OPTIONS.get(name, _sides)
    options = read(inner)
    inner.done()
    return ParserSpec(name, **options)


def _sides(inner: YamlFields) -> dict:
    options = {side: inner.texts(side, default=(letter,)) for side, letter in _SIDES}
    if set(options["first"]) & set(options["second"]):
        raise UserError(f"{inner.where}: first and second share a name; give each output its own")
    return options


def _mass(inner: YamlFields) -> dict:
    return {"min_mass": inner.number("min_mass", low=0.0, high=1.0, default=0.9)}


def _logprob(inner: YamlFields) -> dict:
    return _sides(inner) | _mass(inner) | {"position": inner.integer("position", default=0)}


def _decision(inner: YamlFields) -> dict:
    return _sides(inner) | _mass(inner)


def _scored_decision(inner: YamlFields) -> dict:
    scale = _scale(inner)
    for side, value in scale.items():
        if value != int(value):
            raise UserError(f"{inner.where}: {side}: found {value:g}; a decision is between whole numbers")
    if scale["high"] - scale["low"] >= _MOST_LEVELS:
        raise UserError(f"{inner.where}: high: found {scale['high']:g}; use at most {_MOST_LEVELS} levels")
    levels = tuple(str(level) for level in range(int(scale["low"]), int(scale["high"]) + 1))
    return scale | _mass(inner) | {"levels": levels}


def _cot_json(inner: YamlFields) -> dict:
    return _sides(inner) | _key(inner)


def _key(inner: YamlFields) -> dict:
    return {"key": inner.text("key", default="ordered")}


def _regex(inner: YamlFields) -> dict:
    patterns = inner.texts("patterns", default=())
    if len(patterns) not in (2, 3):
        raise UserError(
            f"{inner.where}: patterns: found {len(patterns)}; give one for the first output, one for the second "
            "and, if there may be ties, one for them"
        )
    for pattern in patterns:
        try:
            # compile first: its message is the better one for what is no pattern at all.
            re.compile(pattern)
            problem = parse_sentences.cost_problem(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"{inner.where}: patterns: {pattern!r} is no regular expression ({error})"
            ) from None
        if problem:
            raise UserError(
                f"{inner.where}: patterns: {pattern!r} could take minutes on an answer: {problem}"
            )
    return {"patterns": patterns}


def _scale(inner: YamlFields) -> dict:
    low, high = inner.number("low", default=1), inner.number("high")
    if low >= high:
        raise UserError(f"{inner.where}: low: found {low:g}; it must be below high, {high:g}")
    return {"low": low, "high": high}


def _rating(inner: YamlFields) -> dict:
    return _scale(inner) | {"whole": inner.flag("whole", default=True)}


def _ratings(inner: YamlFields) -> dict:
    aspects = inner.texts("aspects", default=())
    # The reader compares criteria without regard to case.
    if len({aspect.casefold() for aspect in aspects}) != len(aspects) or not aspects:
        raise UserError(f"{inner.where}: aspects: found {list(aspects)}; list the criteria, each once")
    reduce = inner.choice("reduce", ("sum", "mean"), default="sum")
    return _rating(inner) | {"aspects": aspects, "reduce": reduce}


def _text(inner: YamlFields) -> dict:
    return {"allow_cut": inner.flag("allow_cut", default=False)}


_OPTIONS: dict[str, Callable[[YamlFields], dict]] = {
    "logprob": _logprob,
    "decision": _decision,
    "cot_json": _cot_json,
    "regex": _regex,
    "two_scores": _scale,
    "five_verdicts": lambda inner: {},
    "rating": _rating,
    "ratings": _ratings,
    "order": _key,
    "text": _text,
}
