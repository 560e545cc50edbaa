"""Numbers as judges write them: "5", "5/7", "5 out of 7", "five", "5.0", "5,5"; and what is no rating.

A number is read together with what stands right before and behind it. A range, an ordinal, a date, a share of
another scale or a number that could mean two things is nobody's rating.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlhf_jax.annotation.parsing.contracts import json_objects

# Servers round log-probabilities, and often list the sampled token twice with slightly different values.
_CLOSE = 1e-3


def known_logprobs(
    alternatives: Sequence[tuple[str, float]], names: Sequence[str]
) -> tuple[dict[str, float], str]:
    """Collect the log-probabilities of the exact tokens `names`, and what is wrong with them ("" for nothing).

    Wrong is what no probability can be: not a number, above 1, one token with two of them, more than 1 in sum.
    """
    known: dict[str, float] = {}
    for token, value in alternatives:
        if token not in names:
            continue
        # Only the tokens asked for are checked; what the server says of others does not matter.
        if not isinstance(value, int | float) or math.isnan(value) or value > _CLOSE:
            return {}, f"the token {token!r} has the log-probability {value}, which is none"
        if not _same(known.get(token, value), value):
            return (
                {},
                f"the token {token!r} is listed with {known[token]:g} and {value:g}; which holds is unclear",
            )
        known[token] = value
    total = math.fsum(math.exp(min(value, 0.0)) for value in known.values())
    if total > 1.0 + 10 * _CLOSE:
        return {}, f"the probabilities of the tokens asked for add up to {total:.3g}"
    return known, ""


def _same(one: float, two: float) -> bool:
    return one == two or abs(one - two) <= _CLOSE


_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# All repetitions here are bounded: matching must stay linear in an answer of 40,000 digits.
_DIGITS = r"\d{1,9}(?:[.,]\d{1,9}){0,4}"
_WORD = "|".join(_WORDS)
NUMBER = re.compile(rf"(?P<digits>{_DIGITS})|\b(?P<word>{_WORD})\b", re.IGNORECASE)
# A look-ahead, so that NUMBER can match at the end of a label.
STARTS = rf"(?=\d|(?:{_WORD})\b)"

_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"\d+(?:[.,]\d+)?")
_DRESS = r"[\s*_`\"'\])}]{0,10}"
_UNITS = r"(?:\s?(?:stars?|points?|pts?|marks?)\b\.?)?"
# "5/7", "5 out of 7", "5 von 7", "5 sur 7"; also with the fraction and division slashes U+2044 and U+2215.
_OUT_OF = re.compile(
    rf"{_UNITS}{_DRESS}[\s([{{]{{0,3}}(?:[/\u2044\u2215]|\b(?:out of|of|von|sur)\b)\s?"
    rf"(?:a (?:possible |total of )?|the |possible )?[*_`\[(]{{0,4}}(?P<total>{_DIGITS}|(?:{_WORD})\b)(?P<tail>%?)",
    re.IGNORECASE,
)
_UNIT = re.compile(r"\s?(?:stars?|points?|pts?|marks?)\b\.?", re.IGNORECASE)
_PERCENT = re.compile(r"\s?(?:%|percent\b|per cent\b)", re.IGNORECASE)
# Behind a number these make it a range, a list entry, a date, an ordinal, an expression: something else.
_GOES_ON = re.compile(
    r"[\w%‰°^+#&$€£<>=~×÷]|[.,:;/|\\-]\d|[-–—]\w|\s?(?:[-–—~〜∼/\u2044\u2215]|to\b|or\b|and\b|through\b|bis\b|oder\b"
    r"|ou\b|à\b|y\b|o\b|a\b|至|到|±|\+|x\b|×|vs\b|[,(]?\s?(?:or |and |to )?(?:maybe|perhaps|possibly|even|rather)\b)"
    r"\s?(?:an? )?[*_]{0,2}(?:\d|(?:zero|one|two|three|four|five|six|seven|eight|nine|ten)\b)|\s?[%‰]"
    r"|-(?:st|nd|rd|th|star)\b|\.\.\d|\s?\?|[,;]?[ \t]{1,3}\d|\s?[¼-¾⅐-⅞]"
    r"|\s?(?:-{1,2}>|={1,2}>|[→⇒➔➜]|\b(?:minus|plus|less|times)\b)\s?[*_]{0,2}"
    r"(?:\d|(?:zero|one|two|three|four|five|six|seven|eight|nine|ten)\b)",
    re.IGNORECASE,
)
# "5 (five)": the same again, or another number.
_AGAIN = re.compile(rf"\s?[(\[]\s?(?P<again>{_DIGITS}|(?:{_WORD})\b)\s?[)\]]", re.IGNORECASE)
# Right before a number these make it the end of something else: "v2", "$5", "10:30", "4-5".
_CAME_BEFORE = re.compile(r"(?:[\w.,/\\#$€£<>~≈±^]|\d:|\d\s?[-–—~〜/]\s?|(?:^|[\s:=(])[<>≤≥]=?\s?)\Z")
# A hyphen is a minus sign only at the beginning of a word: in "4-5" it is a range.
_SIGN = re.compile(r"(?:^|[\s\"'`*_:=([])([-−–])\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """A number that a judge wrote: its value or why it is none, and where its expression ends in the text.

    out_of: the total it was given with ("5/7"), if any.
    """

    value: float | None
    problem: str
    end: int
    out_of: float | None = None


def number_at(text: str, match: re.Match, high: float) -> Found:
    """Read the number at `match` (of NUMBER) with what stands around it, on a scale that ends at `high`."""
    value = _value(match)
    before, end = text[max(0, match.start() - 4) : match.start()], match.end()
    shown = match.group()
    if value is None:
        return Found(None, f"{shown} can be read in two ways", end)
    if _SIGN.search(before):
        value, before = -value, ""
    if _CAME_BEFORE.search(before):
        return Found(None, f"{before.lstrip()}{shown} is no single number", end)
    out_of = None
    if share := _OUT_OF.match(text, end):
        total = _value(NUMBER.match(share.group("total")))
        end = share.end()
        # "3/5" on a scale to 7 is not converted: it may be another scale, or a date.
        if total != high or share.group("tail"):
            return Found(
                None, f"{text[match.start() : end]!r} is not on the scale, which ends at {high:g}", end
            )
        out_of = total
    # A percentage is a rating on a scale to 100 only.
    elif percent := _PERCENT.match(text, end):
        end = percent.end()
        if high != 100:
            return Found(None, f"{text[match.start() : end]!r} is no single number", end)
    elif unit := _UNIT.match(text, end):
        end = unit.end()
    if _GOES_ON.match(text, end):
        said = text[match.start() : end + 12].split("\n")[0]
        return Found(None, f"{said!r} is no single number", end)
    if again := _AGAIN.match(text, end):
        if abs(value) != _value(NUMBER.match(again.group("again"))):
            return Found(None, f"{text[match.start() : again.end()]!r} is no single number", end)
        end = again.end()
    return Found(value, "", end, out_of)


def _value(match: re.Match) -> float | None:
    """The value; None for digits with no or two readings: "1.2.3", "1.000,5". "1,000" is a thousand, "5,5" is 5.5."""
    if match.group("word"):
        return float(_WORDS.index(match.group("word").lower()))
    digits = match.group("digits")
    if _THOUSANDS.fullmatch(digits):
        return float(digits.replace(",", ""))
    return float(digits.replace(",", ".")) if _DECIMAL.fullmatch(digits) else None


# The end of an answer: a last line that gives the rating without the word, and corrections of a rating.

# "Answer: 5", "I'd say 5", "\boxed{5}", where no word says rating. "The answer is 5" may be about the task
# that was given, so it counts only where it is all that was said.
_LABEL = re.compile(
    r"(?:(?:so|thus|therefore|hence|overall),?\s)?(?:(?:the|my|final|overall)\s){0,2}"
    r"(?:answer|result|evaluation|assessment|judge?ment|conclusion|overall|quality|helpfulness)[*_]{0,2}\s?[:=]"
    r"[*_]{0,2}\s?"
    r"|(?:overall,\s)?(?:I(?:[’']d|[’']ll|\swould|\swill)?\s(?:say|go with|give|assign)|(?:it|this|that)(?:[’']s|\sis))"
    r"(?:\s(?:it|an?|with)){0,2}\s",
    re.IGNORECASE,
)
_IS_ALL = re.compile(r"(?:(?:the|my|final)\s){0,2}(?:answer|result)\sis[:\s]\s?", re.IGNORECASE)
# As models that were trained on mathematics give a result: \boxed{5}, $5$, <answer>5</answer>.
_FRAMES = tuple(
    re.compile(frame, re.IGNORECASE)
    for frame in (
        r"\$?\\{1,2}boxed\{([^{}\n]{1,40})\}\$?\.?",
        r"\$([^$\n]{1,40})\$\.?",
        r"<(?:answer|final|result)>([^<>\n]{1,40})</(?:answer|final|result)>",
    )
)
_KEYS = ("answer", "result")
_AROUND = " \t\n*_#"
# "Rating: 5. Actually, 6." is unreadable, not 6: such words may mean something else.
_CORRECTED = re.compile(
    r"(?:\b(?:wait|actually|hmm{1,3}|oops|i meant?|on (?:second thought|reflection)|after reconsider(?:ation|ing)"
    r"|(?:scratch|scrap|strike|forget) (?:that|it)|correction|make (?:it|that)|edit(?:ed)?(?=\s?:|\sto\b)"
    r"|revis(?:e|ed|ing|ion)(?=\s?:|\s(?:(?:this|it|that|my \w{1,12})\s)?(?:to|down|up)\b))\b"
    r"|(?:^|[.!?;,(–—-])\s{0,3}no(?=\s?[,:;–—]|\s-))"
    # "Actually, example 1 deserves a 3": the first number says which one.
    rf"(?:(?:example|pair|output|response)\s#?\d{{1,4}}(?=\s[a-z])|[^.!?\n\d]){{0,40}}?{STARTS}",
    re.IGNORECASE | re.MULTILINE,
)
_CLAUSE_ENDS = re.compile(r"[\s*_`\"'\])}]{0,10}(?:[.!,;\n(/]|$|(?:for|because|since)\b)")


def answered(text: str) -> list[object]:
    """Find what the last line gives as the answer: a text or JSON values that should be a number; [] for nothing."""
    line = text.strip().rpartition("\n")[2].strip(_AROUND)
    if line.startswith("{"):
        values = [one for one in json_objects(line) if line.endswith("}")]
        return [one[key] for one in values for key in one if key.casefold() in _KEYS]
    label = _LABEL.match(line) or (_IS_ALL.match(line) if line == text.strip(_AROUND) else None)
    rest = line[label.end() :] if label else line
    framed = next((match[1] for frame in _FRAMES if (match := frame.fullmatch(rest))), None)
    return [framed or rest] if framed or label else []


def taken_back(text: str) -> list[tuple[str, re.Match]]:
    """Find words by which the judge corrects itself to a number, each with the match of NUMBER in `text`."""
    found = []
    for words in _CORRECTED.finditer(text):
        match = NUMBER.match(text, words.end())
        if match and _CLAUSE_ENDS.match(text, match.end()):
            found.append((" ".join(words.group().split()) + f" {match.group()}", match))
    return found


# Answers to several examples with a line for each ("Example 2: b"): the number decides, not the order of lines.

_EXAMPLE = r"(?:example|pair|no\.?)\s?#?(\d{1,4})\)?[*_]{0,2}\s?[:.)-]"
# A bare number needs a blank behind its dot: "2. b" is numbered, "2.5" is a rating.
_NUMBERED = re.compile(
    rf"[\s*_`#(-]{{0,6}}(?:{_EXAMPLE}|(\d{{1,4}})\s?[:.)](?=\s))[*_]{{0,2}}", re.IGNORECASE
)

Value = TypeVar("Value")


def split_number(line: str) -> tuple[int | None, str]:
    """Split a line that begins with a number ("Example 2:", "2.") into number, or None, and rest."""
    match = _NUMBERED.match(line)
    return (int(match.group(1) or match.group(2)), line[match.end() :]) if match else (None, line)


def in_order(numbered: Sequence[tuple[int | None, Value]], n: int) -> list[Value]:
    """Sort values by their numbers, if any: [] when these are neither exactly 1 to `n` nor 0 to `n` - 1."""
    numbers = [number for number, _ in numbered if number is not None]
    if sorted(numbers) == list(range(n)):
        numbered = [(None if number is None else number + 1, value) for number, value in numbered]
        numbers = [number + 1 for number in numbers]
    # A number that is missing, doubled or too large: the judge has lost count, and no line can be trusted.
    if numbers and sorted(numbers) != list(range(1, n + 1)):
        return []
    if numbers and len(numbers) == len(numbered):
        numbered = sorted(numbered, key=lambda pair: pair[0])
    return [value for _, value in numbered]
