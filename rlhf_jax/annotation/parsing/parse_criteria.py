"""The parser of ratings by several criteria, each with a number of its own, that are summed or averaged."""

import functools
import re

from rlhf_jax.annotation.answers.answers import OK, Answer
from rlhf_jax.annotation.parsing.contracts import (
    Parsed,
    ParserSpec,
    failed,
    is_number,
    json_spans,
    wrong_count,
)
from rlhf_jax.annotation.parsing.numbers import NUMBER, Found, number_at
from rlhf_jax.annotation.parsing.parse_ratings import (
    all_or_none,
    denied,
    of_json,
    off_scale,
    other_scale,
    without_scale,
)

_DRESS = r"[\s*_`\"'\[\](){}]{0,10}"


def ratings(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a rating per criterion, from JSON or lines "Relevance: 4"; their sum or mean is the rating."""
    wanted = [aspect.casefold() for aspect in spec.aspects]
    told = without_scale(answer.text, spec)
    if other := other_scale(told, spec) or _other_scale_of(told, wanted, spec):
        return [failed(f"{other!r} speaks of another scale than {spec.low:g} to {spec.high:g}")] * n
    found = _objects(answer.text, wanted, spec) or _lines(answer.text, wanted, spec)
    # The same ratings twice, as in a summary at the end, are one answer.
    if n == 1 and len({_values(one) for one in found}) == 1:
        found = found[:1]
    if len(found) != n:
        return wrong_count(len(found), n, "rating of every criterion")
    return all_or_none([_combined([one[aspect] for aspect in wanted], spec) for one in found])


def _values(found: dict[str, Found]) -> tuple:
    return tuple((aspect, one.value) for aspect, one in sorted(found.items()))


def _objects(text: str, wanted: list[str], spec: ParserSpec) -> list[dict[str, Found]]:
    """The criteria of every JSON object that has all of them, as numbers or as text that is one."""
    made = []
    for start, _, value in json_spans(text):
        folded = {str(name).casefold(): one for name, one in value.items()}
        if all(_could_be(folded.get(aspect)) for aspect in wanted) and not denied(text, start, 0):
            made.append({aspect: of_json(folded[aspect], spec) for aspect in wanted})
    return made


def _other_scale_of(text: str, wanted: list[str], spec: ParserSpec) -> str:
    """Words that give a criterion another scale, as "Relevance (1-10)"; "" if there are none."""
    for aspect in wanted:
        for match in _scale_of(aspect).finditer(text):
            if float(match[1]) != spec.high:
                return match.group()
    return ""


@functools.lru_cache(maxsize=64)
def _scale_of(aspect: str) -> re.Pattern:
    between = r"[\s*_]{0,4}[(\[]\d{1,3}\s?(?:-|–|to)\s?(\d{1,3})\b"
    return re.compile(rf"(?<!\w){re.escape(aspect)}{between}", re.IGNORECASE)


def _could_be(value: object) -> bool:
    return is_number(value) or isinstance(value, str)


def _lines(text: str, wanted: list[str], spec: ParserSpec) -> list[dict[str, Found]]:
    """Criteria rated in lines: the i-th rating of each criterion belongs to the i-th example."""
    text = without_scale(text, spec)
    columns = []
    for aspect in wanted:
        found = []
        for label in _label(aspect).finditer(text):
            if match := NUMBER.match(text, label.end()):
                found.append(number_at(text, match, spec.high))
        columns.append(found)
    # A criterion that is missing for one example would shift its ratings to the wrong ones.
    if len({len(column) for column in columns}) != 1:
        return []
    return [dict(zip(wanted, row, strict=True)) for row in zip(*columns, strict=True)]


@functools.lru_cache(maxsize=64)
def _label(aspect: str) -> re.Pattern:
    # A remark in brackets may stand between the name and its number: "Relevance (to the instruction): 4".
    aside = r"(?:\([^()\n]{0,80}\))?"
    return re.compile(
        rf"(?<!\w){re.escape(aspect)}(?!\w){_DRESS}{aside}{_DRESS}(?:rating|score)?{_DRESS}(?:[:=|]|->|→|[-–—]\s)"
        rf"{_DRESS}[-−]?(?=[\dA-Za-z])",
        re.IGNORECASE,
    )


def _combined(found: list[Found], spec: ParserSpec) -> Parsed:
    for aspect, one in zip(spec.aspects, found, strict=True):
        if problem := one.problem or off_scale(one.value, spec):
            return failed(f"{aspect} {problem}")
    values = [one.value for one in found]
    total = sum(values) / (len(values) if spec.reduce == "mean" else 1)
    return Parsed(None, OK, rating=total, aspects=tuple(zip(spec.aspects, values, strict=True)))
