"""The `parser` field of a judge's YAML: a name, or a mapping with the name and the options it takes."""

import re
from collections.abc import Callable

from rlhf_jax.annotation.judges.fields import YamlFields
from rlhf_jax.annotation.judges.pattern_cost import cost_problem
from rlhf_jax.annotation.parsing.contracts import RATING, ParserSpec
from rlhf_jax.annotation.parsing.parsers import parsers_of
from rlhf_jax.errors import UserError

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
            problem = cost_problem(pattern)
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
    "rating": _rating,
    "ratings": _ratings,
    "order": _key,
    "text": _text,
}
