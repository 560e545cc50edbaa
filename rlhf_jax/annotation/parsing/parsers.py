"""Parsers: pure functions from a raw answer to what it says about the examples it was asked about.

A parser never guesses. What it cannot read is a status, never a number; an answer that names both sides as
the verdict is unreadable, and so are all examples of a request whose answers are not as many as they. What a
judge thinks, quotes or reports is not its verdict (`own_words`), and one that declines to judge has refused. Parsing
works on cached answers, so reading them anew asks nobody.
"""

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
from rlhf_jax.annotation.parsing import (
    parse_criteria,
    parse_pairs,
    parse_ratings,
    parse_scales,
    parse_sentence,
)
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

__all__ = ["KINDS", "PARSERS", "PARSER_VERSION", "Parsed", "ParserSpec", "parse", "parse_all", "parsers_of"]

# Raised whenever some cached answer is read differently than before; it is part of a judge's id.
PARSER_VERSION = 4

Reader = Callable[[Answer, ParserSpec, int, int], list[Parsed]]

PARSERS: dict[str, Reader] = {
    "choice": parse_pairs.choice,
    "sentence": parse_sentence.sentence,
    "cot_json": parse_pairs.cot_json,
    "ranking": parse_pairs.ranking,
    "logprob": parse_pairs.logprob,
    "regex": parse_pairs.regex,
    "two_scores": parse_pairs.two_scores,
    "rating": parse_ratings.rating,
    "ratings": parse_criteria.ratings,
    "order": parse_scales.order,
    "text": parse_scales.parse_text,
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
