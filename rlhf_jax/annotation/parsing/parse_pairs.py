"""Parsers of pairwise answers: which of two outputs is better, for one example or several in one request."""

import functools
import math
import re

from rlhf_jax.annotation.answers.answers import (
    CUT_OFF,
    LOW_MASS,
    OK,
    PARSE_ERROR,
    TRUNCATED,
    Answer,
)
from rlhf_jax.annotation.judges.pattern_cost import ENDLESS_CHARS, is_endless
from rlhf_jax.annotation.parsing.contracts import (
    Parsed,
    ParserSpec,
    failed,
    is_number,
    json_spans,
    literal,
    logsumexp,
    matches,
    verdicts,
    wrong_count,
)
from rlhf_jax.annotation.parsing.numbers import in_order, known_logprobs, split_number
from rlhf_jax.annotation.parsing.parse_ratings import denied

# A bare verdict is short; whatever is longer explains, and is for other parsers.
_BARE_CHARS = 100
_CALLED = r"(?i:(?:(?:my|the|final) ){0,3}(?:answer|verdict|choice)\s?(?:is|:)\s?)?"
_DRESSED = _CALLED + r"[\s\"'`*(\[]*(?i:output\s*)?[(\[]?NAME[\s\"'`*)\].!]*"
# "Output (a) is not the better one": the pattern's verdict, turned around.
_DENIED_BEHIND = re.compile(
    r"[\s*_`\"')\]]{0,6}(?:(?:is|was|does|did|seems|looks)(?: clearly| slightly| much| far)?\s?(?:not\b|n[’']t\b"
    r"|(?:the )?(?:worse|worst|weaker|inferior|poorer)\b)|loses\b|fails\b)",
    re.IGNORECASE,
)
_LIST = re.compile(r"\[[^\[\]]{0,500}\]")


def choice(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read an answer that is one name and nothing else, such as "(a)", "**b**." or "Output (a)".

    Of several examples each has a line, which may be numbered ("Example 2: a", "2. a").
    """
    if n > 1:
        lines = [split_number(line) for line in answer.text.splitlines() if line.strip()]
        named = [(i, matches(rest[:_BARE_CHARS], spec, _DRESSED, whole=True)) for i, rest in lines]
        sides = in_order([(i, names[0]) for i, names in named], n) if all(names for _, names in named) else []
        return verdicts(sides, spec, n, "bare choice")
    text = answer.text.strip() if len(answer.text.strip()) <= _BARE_CHARS else ""
    return verdicts(matches(text, spec, _DRESSED, whole=True), spec, n, "bare choice")


def cot_json(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read JSON objects that list the outputs best first under `key`: names, or {"model": name, "rank": 1 or 2}."""
    firsts, explanations = [], []
    for start, _, found in json_spans(answer.text):
        first = _best(_under(found, spec.key), spec)
        if first is not None and not denied(answer.text, start, 0):
            firsts.append(first)
            # AlpacaEval's name for it, then the plain one.
            said = found.get("concise_explanation", found.get("explanation"))
            explanations.append(said if isinstance(said, str) else None)
    parsed = verdicts(firsts, spec, n, f'JSON object that orders both outputs under "{spec.key}"')
    if parsed[0].status != OK:
        return parsed
    # Not strict: an object may be repeated, and then there is one verdict and several explanations.
    return [Parsed(p.preference, OK, explanation=e) for p, e in zip(parsed, explanations, strict=False)]


def _best(ordered: object, spec: ParserSpec) -> str | None:
    """The name of the better output in a list of both, None when the list is something else."""
    if not isinstance(ordered, list) or len(ordered) != 2:
        return None
    if all(isinstance(entry, dict) for entry in ordered):
        # Two entries of the same rank leave one key, which is refused like a rank of 3.
        by_rank = {_rank(entry): entry.get("model") for entry in ordered}
        if set(by_rank) != {1, 2}:
            return None
        ordered = [by_rank[1], by_rank[2]]
    names = [_bare_name(name, spec) for name in ordered]
    return names[0] if _is_permutation(names, spec) else None


def _under(found: dict, key: str) -> object:
    """The value under a key however it is capitalised."""
    return next((value for name, value in found.items() if name.casefold() == key.casefold()), None)


def _bare_name(value: object, spec: ParserSpec) -> object:
    """The name in "Output (a)" or "(A)"; whatever else it is, as it is."""
    named = matches(value[:_BARE_CHARS], spec, _DRESSED, whole=True) if isinstance(value, str) else []
    return named[0] if named else value


def _rank(entry: dict) -> object:
    """The rank of an entry as a number, also where it was written as text; None for what is none."""
    rank = entry.get("rank")
    rank = int(rank) if isinstance(rank, str) and rank in ("1", "2") else rank
    return rank if is_number(rank) else None


def ranking(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a Python list of {'model': name, 'rank': 1 or 2} that ranks each output once."""
    firsts = []
    for match in _LIST.finditer(answer.text):
        ranked = None if denied(answer.text, match.start(), 0) else literal(match.group())
        if isinstance(ranked, list) and all(isinstance(entry, dict) for entry in ranked):
            first = _best(ranked, spec)
            if first is not None:
                firsts.append(first)
    return verdicts(firsts, spec, n, "list that ranks both outputs 1 and 2")


def logprob(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Compute 1 + P(second) / (P(first) + P(second)) of one token (AlpacaEval's weighted judges).

    AlpacaEval renormalises whatever mass there is; here less than `min_mass` is low_mass, since the answer
    then was mostly something else ("Neither", "Please").
    """
    if not answer.top_logprobs:
        return [failed("the answer carries no log-probabilities; does the endpoint return them?")]
    try:
        known, problem = known_logprobs(answer.top_logprobs[spec.position], spec.first + spec.second)
    except IndexError:
        status = TRUNCATED if answer.finish_reason in CUT_OFF else PARSE_ERROR
        return [failed(f"the answer has no token at position {spec.position}", status)]
    if problem:
        return [failed(problem)]
    first, second = (
        logsumexp([known[name] for name in names if name in known]) for names in (spec.first, spec.second)
    )
    # In logarithms: both sides may be too small for a float and still have a ratio.
    total = logsumexp([first, second])
    mass = math.exp(min(total, 0.0))
    if mass <= 0.0 or mass < spec.min_mass:
        return [failed(f"only {mass:.3g} of the probability is on the two names", LOW_MASS, mass)]
    # 2 - P(first), as the published judges compute it: the same floating-point numbers come out.
    return [Parsed(2.0 - math.exp(first - total), OK, mass=mass)]


def regex(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read the earliest match of any pattern, then the next after it, as many as there are examples.

    AlpacaFarm's and AlpacaEval's reading, so a single example with two matches is unreadable here too.
    """
    compiled, values = _compiled(spec.patterns), []
    # Quadratic at worst for such patterns, so the text is kept short (`pattern_cost`).
    text = answer.text[-ENDLESS_CHARS:] if _any_endless(spec.patterns) else answer.text
    # One more than there are examples, so that a surplus is noticed.
    while len(values) <= n:
        found = [(match.start(), i, match.end()) for i, p in enumerate(compiled) if (match := p.search(text))]
        if not found:
            break
        # The earliest match; of two at the same place, the pattern that was given first.
        start, which, end = min(found)
        if denied(text, start, 0) or _DENIED_BEHIND.match(text, end):
            return [failed(f"the verdict {text[start:end].strip()[:40]!r} is denied")] * n
        values.append((1.0, 2.0, 1.5)[which])
        text = text[end:]
    if len(values) != n:
        return wrong_count(len(values), n, "verdict")
    return [Parsed(value, OK) for value in values]


@functools.lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern]:
    return [re.compile(pattern) for pattern in patterns]


@functools.lru_cache(maxsize=64)
def _any_endless(patterns: tuple[str, ...]) -> bool:
    return any(is_endless(pattern) for pattern in patterns)


def two_scores(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a score of each output from the first line, within the scale; equal scores are a tie (FastChat)."""
    line = next((line for line in answer.text.splitlines() if line.strip()), "")
    scores = re.findall(r"-?\d+(?:\.\d+)?", line[:_BARE_CHARS])
    if len(line) > _BARE_CHARS or len(scores) != 2 or re.sub(r"-?\d+(?:\.\d+)?|[\s,;]", "", line):
        return [failed("no line with two scores at the start of the answer")]
    one, two = map(float, scores)
    # A second score of 1 that was cut off may have been a 10.
    last = answer.finish_reason in CUT_OFF and answer.text.endswith(scores[1])
    if last and 0 < two * 10 <= spec.high:
        return [failed(f"the answer was cut off ({answer.finish_reason}) at its second score", TRUNCATED)]
    if not all(spec.low <= score <= spec.high for score in (one, two)):
        return [failed(f"scores {one:g} and {two:g} are not within {spec.low:g} and {spec.high:g}")]
    return [Parsed(1.0 if one > two else 2.0 if two > one else 1.5, OK)]


def _is_permutation(names: list, spec: ParserSpec) -> bool:
    """Whether the two names mean the two outputs, one each."""
    if not all(isinstance(name, str) for name in names):
        return False
    return sorted((name in spec.second) - (name in spec.first) for name in names) == [-1, 1]
