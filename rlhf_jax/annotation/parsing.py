"""Parsers: pure functions from a raw answer to a preference between the first and the second output shown.

A parser never guesses. What it cannot read is a status, never a number; an answer that names both sides as
the verdict is unreadable. `parse` works on cached answers, so reading them anew asks nobody.
"""

import ast
import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_jax.annotation.answers import (
    CUT_OFF,
    LOW_MASS,
    OK,
    PARSE_ERROR,
    REFUSED,
    TRUNCATED,
    WITHHELD,
    Answer,
)

# Raised when the reading of a cached answer can change; it is part of a judge's identity.
PARSER_VERSION = 1
# Longer answers are searched in their last part only: a verdict stands at the end, and parsing stays cheap.
_TAIL_CHARS = 20_000
_BARE_CHARS = 100


@dataclass(frozen=True)
class ParserSpec:
    """How to read an answer.

    name: choice | sentence | cot_json | ranking | logprob.
    first, second: the names by which an answer may mean the first and the second output shown (for logprob:
        the exact tokens whose probabilities are added).
    min_mass: logprob only; below this total probability on both names the row is low_mass.
    position: logprob only; index of the generated token that holds the verdict (-1 is the last one).
    """

    name: str
    first: tuple[str, ...] = ("a",)
    second: tuple[str, ...] = ("b",)
    min_mass: float = 0.9
    position: int = 0


@dataclass(frozen=True, slots=True)
class Parsed:
    """preference in [1, 2] (1: the first output shown is better) or None; mass is for logprob only."""

    preference: float | None
    status: str
    detail: str = ""
    mass: float | None = None


def parse(answer: Answer, spec: ParserSpec) -> Parsed:
    """Read `answer` as `spec` says. Withheld: refused; unreadable and cut off: truncated."""
    if answer.refusal is not None or answer.finish_reason in WITHHELD:
        return Parsed(None, REFUSED, answer.refusal or answer.finish_reason)
    parsed = PARSERS[spec.name](answer, spec)
    if parsed.status == PARSE_ERROR and answer.finish_reason in CUT_OFF:
        return Parsed(None, TRUNCATED, f"the answer was cut off ({answer.finish_reason}): {parsed.detail}")
    return parsed


def _verdict(sides: list[str], spec: ParserSpec, what: str) -> Parsed:
    """One verdict, however often it was repeated; none or two different ones is an error."""
    names = set(sides)
    if not names:
        return Parsed(None, PARSE_ERROR, f"no {what} in the answer")
    is_first, is_second = bool(names & set(spec.first)), bool(names & set(spec.second))
    if is_first == is_second:
        return Parsed(None, PARSE_ERROR, f"more than one {what} in the answer")
    return Parsed(1.0 if is_first else 2.0, OK)


@functools.lru_cache(maxsize=64)
def _name_pattern(spec: ParserSpec, pattern: str) -> tuple[re.Pattern, dict[str, str]]:
    """`pattern` with NAME replaced by the spec's names. Case counts only where it tells them apart."""
    names = spec.first + spec.second
    folded = {name.casefold(): name for name in names}
    flags = re.IGNORECASE if len(folded) == len(set(names)) else 0
    longest_first = sorted(names, key=len, reverse=True)
    filled = pattern.replace("NAME", "(" + "|".join(map(re.escape, longest_first)) + ")")
    return re.compile(filled, flags | re.MULTILINE), folded if flags else {name: name for name in names}


def _matches(text: str, spec: ParserSpec, pattern: str, *, whole: bool = False) -> list[str]:
    compiled, canonical = _name_pattern(spec, pattern)
    if whole:
        match = compiled.fullmatch(text)
        found = [match.group(1)] if match else []
    else:
        found = [match.group(1) for match in compiled.finditer(text)]
    return [canonical.get(name) or canonical[name.casefold()] for name in found]


def _choice(answer: Answer, spec: ParserSpec) -> Parsed:
    """The whole answer is one name, perhaps dressed as "(a)", "**b**." or "Output (a)"."""
    dressed = r"[\s\"'`*(\[]*(?i:output\s*)?[(\[]?NAME[\s\"'`*)\].!]*"
    text = answer.text if len(answer.text) <= _BARE_CHARS else ""
    return _verdict(_matches(text, spec, dressed, whole=True), spec, "bare choice")


def _sentence(answer: Answer, spec: ParserSpec) -> Parsed:
    """ "Output (a)" anywhere, repeated or not, as long as the other is not named as well."""
    return _verdict(
        _matches(answer.text[-_TAIL_CHARS:], spec, r"\b(?i:output)\s*\(NAME\)"), spec, '"Output (...)"'
    )


def _cot_json(answer: Answer, spec: ParserSpec) -> Parsed:
    """A JSON object with the names in "ordered", best first, alone or within a fence or prose."""
    firsts = []
    for found in _json_objects(answer.text[-_TAIL_CHARS:]):
        ordered = found.get("ordered")
        if isinstance(ordered, list) and len(ordered) == 2 and _is_permutation(ordered, spec):
            firsts.append(ordered[0])
    return _verdict(firsts, spec, 'JSON object that orders both outputs under "ordered"')


def _ranking(answer: Answer, spec: ParserSpec) -> Parsed:
    """A Python list of {'model': name, 'rank': 1 or 2} that ranks each output once."""
    firsts = []
    for text in re.findall(r"\[[^\[\]]{0,500}\]", answer.text[-_TAIL_CHARS:]):
        ranked = _literal(text)
        if not (isinstance(ranked, list) and all(isinstance(entry, dict) for entry in ranked)):
            continue
        by_rank = {entry.get("rank"): entry.get("model") for entry in ranked if _is_plain(entry)}
        if len(ranked) == 2 and set(by_rank) == {1, 2} and _is_permutation(list(by_rank.values()), spec):
            firsts.append(by_rank[1])
    return _verdict(firsts, spec, "list that ranks both outputs 1 and 2")


def _logprob(answer: Answer, spec: ParserSpec) -> Parsed:
    """1 + P(second) / (P(first) + P(second)) over one token's alternatives (AlpacaEval's weighted judges).

    AlpacaEval renormalises whatever mass there is; here less than `min_mass` is low_mass, since the answer
    then was mostly something else ("Neither", "Please").
    """
    if not answer.top_logprobs:
        return Parsed(
            None, PARSE_ERROR, "the answer carries no log-probabilities; does the endpoint return them?"
        )
    try:
        alternatives = dict(answer.top_logprobs[spec.position])
    except IndexError:
        return Parsed(None, PARSE_ERROR, f"the answer has no token at position {spec.position}")
    first, second = (
        _logsumexp([alternatives[name] for name in names if name in alternatives])
        for names in (spec.first, spec.second)
    )
    total = _logsumexp([first, second])
    mass = math.exp(min(total, 0.0))
    if total == -math.inf or mass < spec.min_mass:
        return Parsed(None, LOW_MASS, f"only {mass:.3g} of the probability is on the two names", mass)
    # 2 - P(first), as the published judges compute it: the same floating-point numbers come out.
    return Parsed(2.0 - math.exp(first - total), OK, mass=mass)


def _logsumexp(values: list[float]) -> float:
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in values))


def _is_permutation(names: list, spec: ParserSpec) -> bool:
    """Whether the two names mean the two outputs, one each."""
    if not all(isinstance(name, str) for name in names):
        return False
    return sorted((name in spec.second) - (name in spec.first) for name in names) == [-1, 1]


def _is_plain(entry: dict) -> bool:
    rank, model = entry.get("rank"), entry.get("model")
    return isinstance(rank, int) and not isinstance(rank, bool) and isinstance(model, str)


def _json_objects(text: str) -> list[dict]:
    """Every outermost JSON object in `text`. At most one failed attempt per "{", and at most 200 of them."""
    decoder, found, place = json.JSONDecoder(), [], text.find("{")
    for _ in range(200):
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(text, place)
            found.append(value)
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return found


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


PARSERS: dict[str, Callable[[Answer, ParserSpec], Parsed]] = {
    "choice": _choice,
    "sentence": _sentence,
    "cot_json": _cot_json,
    "ranking": _ranking,
    "logprob": _logprob,
}
