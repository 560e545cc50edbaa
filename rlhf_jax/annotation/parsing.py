"""Parsers: pure functions from a raw answer to what it says about the examples it was asked about.

A parser never guesses. What it cannot read is a status, never a number; an answer that names both sides as
the verdict is unreadable, and so are all examples of a request whose answers are not as many as they. Parsing
works on cached answers, so reading them anew asks nobody.
"""

from collections.abc import Callable

from rlhf_jax.annotation import parse_pairs, parse_scales
from rlhf_jax.annotation.answers import (
    CUT_OFF,
    FILTERED,
    PARSE_ERROR,
    REFUSED,
    REMOVED,
    TRUNCATED,
    WITHHELD,
    Answer,
)
from rlhf_jax.annotation.contracts import (
    COMPLETION,
    KINDS,
    PAIRWISE,
    RANKING,
    RATING,
    Parsed,
    ParserSpec,
    failed,
)

__all__ = ["KINDS", "PARSERS", "PARSER_VERSION", "Parsed", "ParserSpec", "parse", "parse_all", "parsers_of"]

# Raised when the reading of a cached answer can change; it is part of a judge's identity.
PARSER_VERSION = 2

Reader = Callable[[Answer, ParserSpec, int, int], list[Parsed]]

PARSERS: dict[str, Reader] = {
    "choice": parse_pairs.choice,
    "sentence": parse_pairs.sentence,
    "cot_json": parse_pairs.cot_json,
    "ranking": parse_pairs.ranking,
    "logprob": parse_pairs.logprob,
    "regex": parse_pairs.regex,
    "two_scores": parse_pairs.two_scores,
    "rating": parse_scales.rating,
    "ratings": parse_scales.ratings,
    "order": parse_scales.order,
    "text": parse_scales.text,
    "decision": parse_scales.decision,
}
_OF_KIND = {
    PAIRWISE: ("choice", "sentence", "cot_json", "ranking", "logprob", "regex", "two_scores", "decision"),
    RATING: ("rating", "ratings", "decision"),
    RANKING: ("order",),
    COMPLETION: ("text",),
}
# Parsers that cannot tell several examples of one request apart.
ONE_EXAMPLE = ("logprob", "two_scores", "order", "text")


def parsers_of(kind: str) -> tuple[str, ...]:
    """The names of the parsers that read answers of this kind."""
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
    parsed = PARSERS[spec.name](answer, spec, n, k)
    if answer.finish_reason in CUT_OFF:
        return [_cut_off(one, answer) if one.status == PARSE_ERROR else one for one in parsed]
    return parsed


def _cut_off(parsed: Parsed, answer: Answer) -> Parsed:
    return failed(f"the answer was cut off ({answer.finish_reason}): {parsed.detail}", TRUNCATED)


def parse(answer: Answer, spec: ParserSpec) -> Parsed:
    """Read the answer to a request with one example."""
    return parse_all(answer, spec)[0]
