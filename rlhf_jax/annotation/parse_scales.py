"""Readers of ratings, rankings of several outputs, completions, and the Decisions API's distributions."""

import math
import re

from rlhf_jax.annotation.answers import CUT_OFF, LOW_MASS, OK, REFUSED, TRUNCATED, Answer
from rlhf_jax.annotation.contracts import (
    TAIL_CHARS,
    Parsed,
    ParserSpec,
    failed,
    is_number,
    json_objects,
    literal,
    wrong_count,
)

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_DRESS = r"[\s*_`\"'\[\](){}]*"
_OUT_OF = r"(?:\s*(?:/|out of)\s*\d+)?"
_LABEL = r"(?:(?:the\s+|my\s+|overall\s+|final\s+)?(?:rating|score)s?\s*(?:is)?\s*[:=]?)"
_RATING_LINE = re.compile(
    rf"{_DRESS}(?:example\s*\d+\s*[:.)])?{_DRESS}{_LABEL}?{_DRESS}{_NUMBER}{_DRESS}{_OUT_OF}{_DRESS}\.?{_DRESS}",
    re.IGNORECASE,
)
_LABELLED = re.compile(rf"(?:{_LABEL}{_DRESS}{_NUMBER}|\[\[{_NUMBER}\]\])", re.IGNORECASE)


def rating(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """A number on its first line ("6", "Rating: 6", "[[6]]", "6/7"), or one labelled so anywhere in it.

    Of several examples each has a line of its own. Outside the scale it is unreadable, never clipped.
    """
    lines = [line for line in answer.text[-TAIL_CHARS:].splitlines() if line.strip()]
    found = [match.group(1) for line in lines if (match := _RATING_LINE.fullmatch(line[:200]))]
    if n > 1:
        if len(found) != n:
            return wrong_count(len(found), n, "rating")
        return _all_or_none([_rated(float(number), spec) for number in found])
    if lines and (match := _RATING_LINE.fullmatch(lines[0][:200])):
        return [_rated(float(match.group(1)), spec)]
    labelled = {float(one or other) for one, other in _LABELLED.findall(answer.text[-TAIL_CHARS:])}
    if len(labelled) != 1:
        return wrong_count(len(labelled), 1, "rating")
    return [_rated(labelled.pop(), spec)]


def _rated(value: float, spec: ParserSpec) -> Parsed:
    problem = _off_scale(value, spec)
    return failed(f"rating {problem}") if problem else Parsed(None, OK, rating=value)


def _off_scale(value: float, spec: ParserSpec) -> str:
    if not spec.low <= value <= spec.high:
        return f"{value:g} is not within {spec.low:g} and {spec.high:g}"
    return f"{value:g} is not a whole number" if spec.whole and value != int(value) else ""


def _all_or_none(parsed: list[Parsed]) -> list[Parsed]:
    """A request with one rating off the scale has lost count or the scale: none of it is trusted."""
    bad = next((p for p in parsed if p.status != OK), None)
    return parsed if bad is None else [bad] * len(parsed)


def ratings(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """A rating per criterion, as JSON objects or as lines "Relevance: 4"; their sum or mean is the rating."""
    text = answer.text[-TAIL_CHARS:]
    wanted = [aspect.casefold() for aspect in spec.aspects]
    objects = [{str(name).casefold(): value for name, value in found.items()} for found in json_objects(text)]
    found = [values for values in objects if all(is_number(values.get(aspect)) for aspect in wanted)]
    if not found:
        found = _lines_of(text, wanted)
    if len(found) != n:
        return wrong_count(len(found), n, "rating of every criterion")
    return _all_or_none([_combined([float(values[aspect]) for aspect in wanted], spec) for values in found])


def _lines_of(text: str, wanted: list[str]) -> list[dict]:
    """Criteria rated in lines: the i-th rating of each criterion belongs to the i-th example."""
    columns = [
        re.findall(rf"\b{re.escape(a)}\b{_DRESS}[:=]{_DRESS}{_NUMBER}(?!\d)", text, re.IGNORECASE)
        for a in wanted
    ]
    if len({len(column) for column in columns}) != 1:
        return []
    return [dict(zip(wanted, values, strict=True)) for values in zip(*columns, strict=True)]


def _combined(values: list[float], spec: ParserSpec) -> Parsed:
    for aspect, value in zip(spec.aspects, values, strict=True):
        if problem := _off_scale(value, spec):
            return failed(f"{aspect} {problem}")
    total = sum(values) / (len(values) if spec.reduce == "mean" else 1)
    return Parsed(None, OK, rating=total, aspects=tuple(zip(spec.aspects, values, strict=True)))


def order(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """All k outputs by their numbers, best first: "2 > 1 = 3", [2, 1, 3] or {"ordered": [2, 1, 3]}."""
    text = answer.text[-TAIL_CHARS:]
    candidates = [_as_ranks(found.get(spec.key), k) for found in json_objects(text)]
    candidates += [_as_ranks(literal(found), k) for found in re.findall(r"\[[\d\s,]{1,500}\]", text)]
    for line in text.splitlines():
        chain = line.strip(" \t*`.()[]\"'")
        if re.fullmatch(r"\d+(?:\s*[>=]\s*\d+)+", chain):
            groups = [[int(number) for number in tied.split("=")] for tied in chain.split(">")]
            candidates.append(_tied_ranks(groups, k))
    found = {ranks for ranks in candidates if ranks is not None}
    if len(found) != 1:
        return wrong_count(len(found), 1, f"ranking of outputs 1 to {k}")
    return [Parsed(None, OK, ranks=found.pop())]


def _as_ranks(ordered: object, k: int) -> tuple[int, ...] | None:
    """Ranks from a list of output numbers, best first; an inner list ties its members."""
    if not isinstance(ordered, list):
        return None
    groups = [entry if isinstance(entry, list) else [entry] for entry in ordered]
    return _tied_ranks(groups, k)


def _tied_ranks(groups: list[list], k: int) -> tuple[int, ...] | None:
    """Rank of outputs 1 to k; those tied share the best rank they reach together (1, 2, 2, 4)."""
    flat = [number for group in groups for number in group]
    if not all(isinstance(number, int) and is_number(number) for number in flat):
        return None
    if sorted(flat) != list(range(1, k + 1)):
        return None
    ranks, place = [0] * k, 1
    for group in groups:
        for number in group:
            ranks[number - 1] = place
        place += len(group)
    return tuple(ranks)


def text(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """The answer itself, stripped; one that hit the token limit only where the judge allows it."""
    if answer.finish_reason in CUT_OFF and not spec.allow_cut:
        return [failed(f"the completion was cut off ({answer.finish_reason})", TRUNCATED)]
    stripped = answer.text.strip()
    return [Parsed(None, OK, text=stripped)] if stripped else [failed("the completion is empty")]


def decision(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """The Decisions API: probabilities of the two names, or of the levels of the scale, for each example."""
    found = answer.top_logprobs or ()
    if len(found) != n:
        return wrong_count(len(found), n, "decision")
    return [_decided(alternatives, spec) for alternatives in found]


def _decided(alternatives: tuple[tuple[str, float], ...], spec: ParserSpec) -> Parsed:
    if not alternatives:
        return failed("refusal", REFUSED)
    shares = {name: math.exp(value) for name, value in alternatives}
    if spec.levels:
        return _scored(shares, spec)
    first, second = (sum(shares.get(name, 0.0) for name in side) for side in (spec.first, spec.second))
    mass = first + second
    if mass <= 0.0 or mass < spec.min_mass:
        return failed(f"only {mass:.3g} of the probability is on the two names", LOW_MASS, mass)
    return Parsed(1.0 + second / mass, OK, mass=mass)


def _scored(shares: dict[str, float], spec: ParserSpec) -> Parsed:
    """The mean level: a distribution says more than its likeliest level."""
    levels = {level: float(level) for level in spec.levels}
    mass = sum(shares.get(label, 0.0) for label in levels)
    if mass <= 0.0 or mass < spec.min_mass:
        return failed(f"only {mass:.3g} of the probability is on the scale", LOW_MASS, mass)
    mean = sum(shares.get(label, 0.0) * level for label, level in levels.items()) / mass
    return Parsed(None, OK, mass=mass, rating=mean)
