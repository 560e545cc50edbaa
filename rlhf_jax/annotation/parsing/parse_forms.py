"""Parsers of answers that have a form: a bare name, JSON, a list, a chain, probabilities, or simply the text.

Most are verdicts on pairs, for one example or several in one request. `order` ranks several outputs, `decision` reads
the Decisions API's distributions, of pairs and of ratings, and `parse_text` takes a completion as it is.
"""

import math
import re

from rlhf_jax.annotation.answers.answers import (
    CUT_OFF,
    LOW_MASS,
    OK,
    PARSE_ERROR,
    REFUSED,
    TRUNCATED,
    Answer,
)
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
from rlhf_jax.annotation.parsing.own_words import split_thoughts, without_end_token
from rlhf_jax.annotation.parsing.said import Said, each_object, holding

# A bare verdict is short; whatever is longer explains, and is for other parsers.
_BARE_CHARS = 100
_LINE_CHARS = 200
_CALLED = r"(?i:(?:(?:my|the|final) ){0,3}(?:answer|verdict|choice)\s?(?:is|:)\s?)?"
_DRESSED = _CALLED + r"[\s\"'`*(\[]*(?i:output\s*)?[(\[]?NAME[\s\"'`*)\].!]*"
# Of two dicts, as Python writes them; of the numbers of outputs.
_LIST = re.compile(r"\[[^\[\]]{0,500}\]")
_NUMBERS = re.compile(r"\[[\d\s,]{1,500}\]")
# "2 > 1 = 3".
_CHAIN_PART = r"(?:output\s?)?[(\[#]?(\d{1,4})[)\]]?"
_CHAIN = re.compile(rf"{_CHAIN_PART}(?:\s{{0,9}}[>=]\s{{0,9}}{_CHAIN_PART})+", re.IGNORECASE)
_CHAIN_LABEL = re.compile(
    r"[\w ,*_]{0,60}\b(?:ranking|order|verdict|answer|result)\b[\w ]{0,20}[*_ ]{0,6}:", re.IGNORECASE
)
# A list of numbers in running text may be anything; it is a ranking when it is all its line says, or is called one.
_LIST_LABEL = re.compile(
    r"[\s*_`\"'#>-]{0,12}(?:[\w ,*_()-]{0,80}\b(?:ranking|order(?:ed|ing)?|verdict|answer|result|preference"
    r"|best (?:first|to worst)|rank (?:them|these|it|the (?:outputs|responses)))\b[\w ()-]{0,30}[*_`]{0,3}"
    r"(?:\s?[:=]|\s(?:is|are|as)\b|\s?$)[\s*_`\"']{0,6})?",
    re.IGNORECASE,
)
_NO_ORDER = re.compile(r"\b(?:ranks|scores?|weights?|ratings?|points|grades?)\b", re.IGNORECASE)
_LIST_ENDS = re.compile(
    r"[\s*_`\"')]{0,6}(?:$|[.;,](?:\s|$)|\s?(?:because|since|as)\b|\([^()\d\n]{1,60}\)[\s*_.]{0,4}$)",
    re.IGNORECASE,
)
# The worst first: what such an answer puts first is not what it prefers.
_BACKWARDS = re.compile(
    r"\b(?:worst|lowest|weakest|poorest|least(?:\s\w{1,12})?)[\s_-]{0,3}(?:first\b|(?:to|>|→)[\s_-]{0,3}(?:the )?"
    r"(?:best|highest|strongest|most)\b)|\b(?:ascending|increasing|reversed?)\s(?:order|ranking)\b",
    re.IGNORECASE,
)
# {"ordered": [...], "tie": true} says two things.
_TIES, _SAYS_NO = ("tie", "tied", "draw", "equal", "is_tie"), (False, None, 0, "", "no", "none", "false")


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


def cot_json(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read JSON objects that list the outputs best first under `key`: names, or {"model": name, "rank": 1 or 2}."""
    spans, found = json_spans(answer.text), []
    for start, end, outer in spans:
        for number, inner, first in each_object(outer, lambda one: _best(_under(one, spec.key), spec)):
            # AlpacaEval's name for it, then the plain one.
            said = inner.get("concise_explanation", inner.get("explanation"))
            found.append(Said(start, end, first, number, said if isinstance(said, str) else None))
    what = f'JSON object that orders both outputs under "{spec.key}"'
    return _preferences(answer.text, found, [span[:2] for span in spans], spec, n, what)


def _preferences(
    text: str, found: list[Said], spans: list[tuple[int, int]], spec: ParserSpec, n: int, what: str
) -> list[Parsed]:
    """Make labels of the names of better outputs that hold."""
    kept, problem = holding(text, found, n, spans)
    if problem or (kept and _BACKWARDS.search(text)):
        return [failed(problem or "the answer ranks the worst first")] * n
    parsed = verdicts([one.value for one in kept], spec, n, what)
    if parsed[0].status != OK:
        return parsed
    # Not strict: a verdict may be repeated, and then there is one label and several explanations.
    return [Parsed(p.preference, OK, explanation=one.note) for p, one in zip(parsed, kept, strict=False)]


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
    """The value under a key however it is capitalised; None for two, or beside a key that calls it a tie."""
    if any(name.casefold() in _TIES and value not in _SAYS_NO for name, value in found.items()):
        return None
    values = [value for name, value in found.items() if name.casefold() == key.casefold()]
    return values[0] if values and all(value == values[0] for value in values) else None


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
    lists, found = list(_LIST.finditer(answer.text)), []
    for match in lists:
        ranked = literal(match.group())
        if isinstance(ranked, list) and all(isinstance(entry, dict) for entry in ranked):
            first = _best(ranked, spec)
            if first is not None:
                found.append(Said(*match.span(), first))
    spans = [match.span() for match in lists]
    return _preferences(answer.text, found, spans, spec, n, "list that ranks both outputs 1 and 2")


def _is_permutation(names: list, spec: ParserSpec) -> bool:
    """Whether the two names mean the two outputs, one each."""
    if not all(isinstance(name, str) for name in names):
        return False
    return sorted((name in spec.second) - (name in spec.first) for name in names) == [-1, 1]


def order(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read all k outputs by their numbers, best first: "2 > 1 = 3", [2, 1, 3] or {"ordered": [2, 1, 3]}."""
    text = answer.text
    spans = json_spans(text)
    candidates = [Said(start, end, _as_ranks(_under(found, spec.key), k)) for start, end, found in spans]
    for match in _NUMBERS.finditer(text):
        # A list inside a JSON object is part of it: under another key it is no ranking.
        if not _inside(match.start(), spans) and _is_called_order(text, *match.span()):
            candidates.append(Said(*match.span(), _as_ranks(literal(match.group()), k)))
    place = 0
    for line in text.splitlines(keepends=True):
        candidates.append(Said(place, place + len(line), _chain(line, k)))
        place += len(line)
    found = sorted((one for one in candidates if one.value is not None), key=lambda one: one.start)
    kept, problem = holding(text, found, 1, [span[:2] for span in spans])
    # The same ranking in several forms is one; two different ones are unreadable.
    ranks = {one.value for one in kept}
    if problem or (ranks and _BACKWARDS.search(text)):
        return [failed(problem or "the answer ranks the worst first")]
    if len(ranks) != 1:
        return wrong_count(len(ranks), 1, f"ranking of outputs 1 to {k}")
    return [Parsed(None, OK, ranks=ranks.pop())]


def _is_called_order(text: str, start: int, end: int) -> bool:
    """Whether a list is all that its line says, perhaps behind a label that calls it an order."""
    before = text[max(0, start - _LINE_CHARS) : start].rpartition("\n")[2]
    behind = text[end : end + _LINE_CHARS].partition("\n")[0]
    # In a label "not" belongs to the verdict; `holding` sees to it.
    label = _LIST_LABEL.fullmatch(before)
    return label is not None and not _NO_ORDER.search(before) and _LIST_ENDS.match(behind) is not None


def _inside(place: int, spans: list[tuple[int, int, dict]]) -> bool:
    return any(start <= place < end for start, end, _ in spans)


def _chain(line: str, k: int) -> tuple[int, ...] | None:
    """The ranks of a line that is one chain, perhaps after "My ranking:"."""
    label = _CHAIN_LABEL.match(line)
    chain = line[label.end() if label else 0 :].strip(" \t\r\n*`.\"'")
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
