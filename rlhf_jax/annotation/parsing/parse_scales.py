"""Parsers of rankings of several outputs, of completions, and of the Decisions API's distributions."""

import math
import re

from rlhf_jax.annotation.answers.answers import CUT_OFF, LOW_MASS, OK, REFUSED, TRUNCATED, Answer
from rlhf_jax.annotation.parsing.contracts import (
    Parsed,
    ParserSpec,
    failed,
    is_number,
    json_spans,
    literal,
    wrong_count,
)
from rlhf_jax.annotation.parsing.numbers import known_logprobs
from rlhf_jax.annotation.parsing.own_words import split_thoughts, without_end_token
from rlhf_jax.annotation.parsing.parse_ratings import denied

_CHAIN_PART = r"(?:output\s?)?[(\[#]?(\d{1,4})[)\]]?"
_CHAIN = re.compile(rf"{_CHAIN_PART}(?:\s{{0,9}}[>=]\s{{0,9}}{_CHAIN_PART})+", re.IGNORECASE)
_CHAIN_LABEL = re.compile(
    r"[\w ,*_]{0,60}\b(?:ranking|order|verdict|answer|result)\b[\w ]{0,20}[*_ ]{0,6}:", re.IGNORECASE
)
_LIST = re.compile(r"\[[\d\s,]{1,500}\]")


def order(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read all k outputs by their numbers, best first: "2 > 1 = 3", [2, 1, 3] or {"ordered": [2, 1, 3]}."""
    text = answer.text
    spans = json_spans(text)
    candidates = [
        _as_ranks(found.get(spec.key), k) for start, _, found in spans if not denied(text, start, 0)
    ]
    for match in _LIST.finditer(text):
        # A list inside a JSON object is part of it: under another key it is no ranking.
        if not _inside(match.start(), spans) and not denied(text, match.start(), 0):
            candidates.append(_as_ranks(literal(match.group()), k))
    candidates += [_chain(line, k) for line in text.splitlines()]
    # The same ranking in several forms is one; two different ones are unreadable.
    found = {ranks for ranks in candidates if ranks is not None}
    if len(found) != 1:
        return wrong_count(len(found), 1, f"ranking of outputs 1 to {k}")
    return [Parsed(None, OK, ranks=found.pop())]


def _inside(place: int, spans: list[tuple[int, int, dict]]) -> bool:
    return any(start <= place < end for start, end, _ in spans)


def _chain(line: str, k: int) -> tuple[int, ...] | None:
    """The ranks of a line that is one chain, perhaps after "My ranking:"."""
    label = _CHAIN_LABEL.match(line)
    chain = line[label.end() if label else 0 :].strip(" \t*`.\"'")
    if not _CHAIN.fullmatch(chain):
        return None
    groups = [[int(re.search(r"\d+", one).group()) for one in tied.split("=")] for tied in chain.split(">")]
    return _tied_ranks(groups, k)


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
    # Every output once: a ranking that leaves one out says nothing about its place.
    if sorted(flat) != list(range(1, k + 1)):
        return None
    ranks, place = [0] * k, 1
    for group in groups:
        for number in group:
            ranks[number - 1] = place
        place += len(group)
    return tuple(ranks)


def parse_text(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a completion: the answer itself, stripped. One that hit the token limit counts only if allowed.

    Thoughts that came with it are no part of it; they are its explanation.
    """
    if answer.finish_reason in CUT_OFF and not spec.allow_cut:
        return [failed(f"the completion was cut off ({answer.finish_reason})", TRUNCATED)]
    thoughts, rest = split_thoughts(answer.text)
    stripped = without_end_token(rest).strip()
    if not stripped:
        return [failed("the completion is empty" + (" behind its thoughts" if thoughts else ""))]
    return [Parsed(None, OK, text=stripped, explanation=thoughts or None)]


def decision(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read the Decisions API's probabilities of the two names, or of the levels of a scale, per example."""
    found = answer.top_logprobs or ()
    if len(found) != n:
        return wrong_count(len(found), n, "decision")
    return [_decided(alternatives, spec) for alternatives in found]


def _decided(alternatives: tuple[tuple[str, float], ...], spec: ParserSpec) -> Parsed:
    # The API refuses question by question; a refused one has no probabilities.
    if not alternatives:
        return failed("refusal", REFUSED)
    names = spec.levels or spec.first + spec.second
    known, problem = known_logprobs(alternatives, names)
    if problem:
        return failed(problem)
    shares = {name: math.exp(value) for name, value in known.items()}
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
