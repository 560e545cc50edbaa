"""Parsers of verdicts in running text: in sentences ("I prefer Output (a).") and by a user's regular expressions.

A user's pattern that could take more than seconds is refused when the judge is read (`cost_problem`). Python's engine
backtracks, and the ways in which the parts of a pattern can match at one place multiply. A bounded repetition has as
many as its bounds allow, an endless one (`*`, `+`) as many as the text has characters. At most one endless repetition
is allowed, beside few enough bounded ones, so that a search takes a bounded number of steps.
"""

import functools
import re

# The parser of the re module itself: a pattern is read exactly as it will run. It has no public name.
from re import _constants as ops
from re import _parser as parser

from rlhf_jax.annotation.answers.answers import CUT_OFF, OK, Answer
from rlhf_jax.annotation.parsing.contracts import (
    Parsed,
    ParserSpec,
    failed,
    json_spans,
    matches,
    verdicts,
    wrong_count,
)
from rlhf_jax.annotation.parsing.numbers import in_order, split_number
from rlhf_jax.annotation.parsing.parse_forms import choice
from rlhf_jax.annotation.parsing.said import numbers_of
from rlhf_jax.annotation.parsing.second_thoughts import denied, hollowed, turned_back

_LINE_CHARS = 200
_OUTPUT = r"outputs?\s{0,5}[*_]{0,2}\("
_NAMED = r"\b(?i:outputs?)\s{0,5}[*_]{0,2}\(NAME\)"
# All that a line says: the name, perhaps after "My final verdict is".
_CALLED = r"(?:verdict|answer|choice|preference|preferred|winner|best|better|decision|result)"
_LABEL = (
    rf"(?i:[\w ,*_]{{0,60}}\b{_CALLED}\b(?:\s(?:output|one))?(?:\s(?:is|would be))?[\s*_:=\"'`-]{{0,8}})?"
)
_VERDICT_LINE = rf"[\s\"'`*_(\[#-]{{0,12}}{_LABEL}{_NAMED[2:]}[\s\"'`*_)\].!]{{0,12}}"

_ANY_OUTPUT = re.compile(rf"\b{_OUTPUT}", re.IGNORECASE)
# The mark stays with its sentence: a question decides nothing.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
# Words with which a sentence about an output may speak for the other one: anywhere in it, or before its name.
_AGAINST = re.compile(
    r"\b(?:not|never|neither|nor|cannot|worse|worst|weaker|inferior|poorer|loses|lost|fails?|failed|reject(?:s|ed)?"
    r"|avoid|rather than|instead of|prefer(?:red|able)? to|superior to|hardly|barely|scarcely|far from|opposite|reverse"
    r"|(?<!no )(?<!without )(?<!without a )(?<!beyond )doubt(?:s|ful)?)\b|n[’']t\b"
    r"|\b(?:is|was) (?:bad|wrong|incorrect|false|harmful|unhelpful|useless|poor|beaten|less)\b"
    r"|\b(?:than|over|beats?|beaten by|outperforms?|unlike|except|without|but|although|though|if|unless|both|either"
    rf"|less|least)\b.{{0,40}}\b{_OUTPUT}",
    re.IGNORECASE,
)
# A sentence decides for an output when it says so, or when it says only its name and perhaps why.
_FOR = re.compile(
    r"\b(?:better|best|prefer(?:s|red|able)?|superior|winner|wins?|won|choose|chosen|chose|choice|pick(?:ed)?|select(?:ed)?"
    r"|stronger|strongest|favou?r(?:ed|s)?|beats|outperforms|surpasses|verdict|go with|vote"
    r"|more (?:help|use|truth|faith|insight)ful|more (?:accurate|correct|complete|relevant|concise|detailed|informative"
    r"|coherent|comprehensive|precise|clear|natural|creative|engaging|thorough|specific|appropriate|suitable|factual"
    r"|polite|harmless|honest|convincing|fluent|fitting|direct|balanced|nuanced|practical|logical|consistent|reliable"
    r"|structured|organi[sz]ed|readable|to the point))\b",
    re.IGNORECASE,
)
_ONLY_NAMED = re.compile(
    rf"[\s\"'`*_(\[#:-]{{0,12}}(?:(?:so|thus|therefore|hence|overall|I think|I say|answer:|my answer:?),?\s)?"
    rf"{_OUTPUT}[^()]{{1,60}}\)[\s\"'`*_)\].!:,-]{{0,8}}(?:$|(?:because|since|as|due to|for|given)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
# What leaves it open, and what makes both alike.
_OPEN = re.compile(
    r"\?|\b(?:maybe|perhaps|possibly|might|could|would|should|equal(?:ly)?|ties?|tied|same|as \w{1,20} as|on par"
    r"|comparable|similar|second[- ]best|runner[- ]up|outperformed|surpassed|superficial(?:ly)?|seemingly"
    r"|supposedly)\b",
    re.IGNORECASE,
)
# A second thought, or a word for the one that has no name.
_TURNED = re.compile(
    r"\b(?:no,? wait|wait,? no|wait,|scratch that|on (?:second thought|reflection)|correction|changed? my mind"
    r"|actually,? no|at random|randomly|no (?:clear |real |strong )?preference|no opinion)\b"
    r"|\bthe other (?:one |output |response )?(?:is|was|wins|seems|comes|looks)\b",
    re.IGNORECASE,
)


# What names the other one, before the name or in the line above it: "The less preferred output is:", "Worst:".
_WORSE = (
    r"\b(?:worst|worse|losers?|losing|loses|reject(?:ed|s)?|less|least|inferior|weak(?:er|est)|poor(?:er|est)"
    r"|discard(?:ed)?|eliminated?|opposite|reverse)\b"
)
_LOSING = re.compile(rf"{_WORSE}|\b(?:not|never)\b|n[’']t\b", re.IGNORECASE)
_LOSING_ALONE = re.compile(_WORSE, re.IGNORECASE)
_ALIKE = re.compile(
    r"(?:(?:it[’']s|it is|they are|i say|verdict:) )?(?:an? )?(?:tie|tied|draw|neither|both|equal|none|no preference)"
    r"(?: of them)?",
    re.IGNORECASE,
)
_STATES = re.compile(r"\b(?:is|are|was|were|has|have|does|seems|looks)\b", re.IGNORECASE)
_HEADING_WORDS = 4


def sentence(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read "Output (a)" in a sentence that decides for it, or as all that the last line says.

    It counts only if the other output is not named as well and nothing says that it is not the better one. Of several
    examples exactly one each. An answer that was cut off might yet have named the other: only the bare verdict counts.
    """
    if n == 1 and answer.finish_reason in CUT_OFF:
        return choice(answer, spec, n, k)
    lines = [split_number(line) for line in answer.text.splitlines() if line.strip()]
    named = [(i, matches(rest, spec, _NAMED)) for i, rest in lines]
    named = [(i, names) for i, names in named if names]
    what = '"Output (...)"'
    if n > 1:
        # A line that names two outputs is prose; its number then says nothing about whose verdicts they are.
        once = all(len(names) == 1 for _, names in named)
        numbered = [(i if once else None, name) for i, names in named for name in names]
        parsed = verdicts(in_order(numbered, n), spec, n, what)
        if parsed[0].status == OK and _any_doubted([rest for _, rest in lines], answer.text):
            return [failed('a line with "Output (...)" does not decide for it')] * n
        return parsed
    said = [matches(rest, spec, _VERDICT_LINE, whole=True) for _, rest in lines if len(rest) <= _LINE_CHARS]
    bare = [names[0] for names in said if names]
    # When the last line is nothing but the verdict it decides, whatever sentences above say.
    if bare and len(lines[-1][1]) <= _LINE_CHARS and said[-1]:
        if _is_of_loser(lines[-1][1], lines[-2][1] if len(lines) > 1 else ""):
            return [failed('"Output (...)" is called the worse one')]
        return verdicts(bare, spec, n, what)
    parsed = verdicts([name for _, names in named for name in names], spec, n, what)
    if parsed[0].status == OK and _doubted(answer.text):
        return [failed('"Output (...)" stands in no sentence that decides for it')]
    return parsed


def _doubted(text: str) -> bool:
    """Whether the sentences that name an output may mean that the other is better, or that none is."""
    first = _ANY_OUTPUT.search(text)
    if _TURNED.search(text) or (first and turned_back(text, first.end())):
        return True
    pieces = _SENTENCE_END.split(text)
    named = [
        (before, one) for before, one in zip(["", *pieces], pieces, strict=False) if _ANY_OUTPUT.search(one)
    ]
    if any(_AGAINST.search(one) for _, one in named):
        return True
    # One that decides is enough: others may describe the same output.
    return not any(
        _is_bare(before, one) or (_FOR.search(one) and not _OPEN.search(one)) for before, one in named
    )


def _is_bare(before: str, sentence: str) -> bool:
    return _ONLY_NAMED.fullmatch(sentence) is not None and not _is_of_loser(sentence, before)


def _any_doubted(lines: list[str], text: str) -> bool:
    """Whether a line about one of several examples leaves its verdict open, or words behind take one back."""
    above = ["", *lines]
    named = [(before, line) for before, line in zip(above, lines, strict=False) if _ANY_OUTPUT.search(line)]
    return turned_back(text, _ANY_OUTPUT.search(text).end()) or any(
        _doubted(line) or _is_of_loser(line, before) for before, line in named
    )


def _is_of_loser(line: str, above: str) -> bool:
    """Whether a line that only names an output names the other one, by its own words or by the heading above."""
    label = _ANY_OUTPUT.split(line)[0]
    if re.search(r"\w", label):
        return _LOSING.search(label) is not None
    # "The other is less clear, so the best is:" is about the best.
    heading = re.split(r"[,;]|[.!?]\s", above)[-1].strip(" \t#*_`\"'")
    bare = heading.rstrip(":.!?*_ ")
    if "(" in heading or len(above) > _LINE_CHARS:
        return False
    if heading.endswith((":", "?")) or above.lstrip().startswith(("#", "**")):
        return bool(_ALIKE.fullmatch(bare) or _LOSING.search(bare))
    # Without such a mark it must be short: "Worst", but not "The other is worse".
    short = len(bare.split()) < _HEADING_WORDS and not _STATES.search(bare)
    return bool(_ALIKE.fullmatch(bare) or (short and _LOSING_ALONE.search(bare)))


# A user's own patterns, and the bound on the time that they take.

# "Output (a) is not the better one": the pattern's verdict, turned around.
_DENIED_BEHIND = re.compile(
    r"[\s*_`\"')\]]{0,6}(?:(?:is|was|does|did|seems|looks|would be)(?: clearly| slightly| much| far| simply)?\s?"
    r"(?:not\b|n[’']t\b|(?:the )?(?:worse|worst|weaker|inferior|poorer|wrong|incorrect|false|rejected)\b)"
    r"|loses\b|fails\b|[^.!?\n]{0,60}\bbut no\s?(?:[.,;!\n]|$))",
    re.IGNORECASE,
)
_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
# Ways to match at one place, without and with an endless repetition beside them.
_MOST_WAYS = 1_000
_MOST_WAYS_ENDLESS = 20
# Characters, from the end, that a pattern with an endless repetition is searched in.
_ENDLESS_CHARS = 4_000


def regex(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read the earliest match of any pattern, then the next after it, as many as there are examples.

    AlpacaFarm's and AlpacaEval's reading, so a single example with two matches is unreadable here too.
    """
    compiled, found = _compiled(spec.patterns), []
    # Quadratic at worst for such patterns, so the text is kept short (`cost_problem`).
    whole = answer.text[-_ENDLESS_CHARS:] if _any_endless(spec.patterns) else answer.text
    text = whole
    # One more than there are examples, so that a surplus is noticed.
    while len(found) <= n:
        each = [(match.start(), i, match.end()) for i, p in enumerate(compiled) if (match := p.search(text))]
        if not each:
            break
        # The earliest match; of two at the same place, the pattern that was given first.
        start, which, end = min(each)
        if denied(text, start, 0) or _DENIED_BEHIND.match(text, end):
            return [failed(f"the verdict {text[start:end].strip()[:40]!r} is denied")] * n
        # A pattern may begin with the end of the line before.
        begins = len(whole) - len(text[start:].lstrip())
        text = text[end:]
        found.append((begins, len(whole) - len(text), (1.0, 2.0, 1.5)[which]))
    if len(found) != n:
        return wrong_count(len(found), n, "verdict")
    words = hollowed(whole, [span[:2] for span in json_spans(whole)])
    if turned_back(words, found[-1][1]):
        return [failed("words behind the verdict take it back")] * n
    numbers = numbers_of(words, [begins for begins, _, _ in found], n) if n > 1 else [None]
    values = in_order([(number, one[2]) for number, one in zip(numbers, found, strict=True)], n)
    if not values:
        return [failed(f"the verdicts are not numbered 1 to {n}")] * n
    return [Parsed(value, OK) for value in values]


@functools.lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern]:
    return [re.compile(pattern) for pattern in patterns]


@functools.lru_cache(maxsize=64)
def _any_endless(patterns: tuple[str, ...]) -> bool:
    return any(_is_endless(pattern) for pattern in patterns)


def _ways(pattern: str) -> tuple[int, int]:
    """Count a pattern's endless repetitions, and the ways in which the rest can match at one place.

    Errors: ValueError that says what cannot be bounded; re.error for what is no pattern.
    """
    return _sequence(parser.parse(pattern))


def cost_problem(pattern: str) -> str:
    """Say what makes a pattern too slow in the worst case, and the way out; "" when nothing does."""
    try:
        endless, finite = _ways(pattern)
    except ValueError as error:
        return str(error)
    if endless > 1:
        return f"{endless} endless repetitions; give all but one an end, as in \\s{{0,20}}"
    if finite > (_MOST_WAYS_ENDLESS if endless else _MOST_WAYS):
        return f"its repetitions can match in {finite:,} ways; give them smaller bounds"
    return ""


def _is_endless(pattern: str) -> bool:
    """Return whether a pattern has a repetition without an end."""
    return _ways(pattern)[0] > 0


def _sequence(items: object) -> tuple[int, int]:
    endless, finite = 0, 1
    for op, value in items:
        more, factor = _one(op, value)
        # Capped: products of nested bounds become integers of thousands of digits.
        endless, finite = endless + more, min(finite * factor, 10**9)
    return endless, finite


def _one(op: object, value: object) -> tuple[int, int]:
    # What a group matched is known at run time only, so its length has no bound here.
    if op in (ops.GROUPREF, ops.GROUPREF_EXISTS, ops.GROUPREF_IGNORE):
        raise ValueError("a reference to a group; write out what it may be")
    if op in _REPEATS:
        return _repeat(*value)
    if op is ops.BRANCH:
        branches = [_sequence(branch) for branch in value[1]]
        return max(endless for endless, _ in branches), sum(finite for _, finite in branches)
    if op is ops.SUBPATTERN:
        return _sequence(value[-1])
    if op is ops.ATOMIC_GROUP:
        return _sequence(value)
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return _sequence(value[1])
    return 0, 1


def _repeat(least: int, most: int, items: object) -> tuple[int, int]:
    endless, finite = _sequence(items)
    if most == 1:
        return endless, finite + 1
    # (a+)+ and the like: exponential, the classical trap.
    if endless:
        raise ValueError("a repetition inside an endless one or around one; repeat single characters only")
    if most is ops.MAXREPEAT or most > _MOST_WAYS:
        if len(items) != 1 or finite != 1 or items[0][0] is ops.BRANCH:
            raise ValueError("an endless repetition of a group; give it an end, as in (...){0,5}")
        return 1, 1
    return 0, min((most - least + 1) * finite**most, 10**9)
