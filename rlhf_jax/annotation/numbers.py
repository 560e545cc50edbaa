"""Numbers as judges write them: "5", "5/7", "5 out of 7", "five", "5.0", "5,5"; and what is no rating.

A number is read together with what stands right before and behind it. A range, an ordinal, a date, a share of
another scale or a number that could mean two things is nobody's rating.
"""

import re
from dataclasses import dataclass

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = r"\d{1,9}(?:[.,]\d{1,9}){0,4}"
_WORD = "|".join(_WORDS)
NUMBER = re.compile(rf"(?P<digits>{_DIGITS})|\b(?P<word>{_WORD})\b", re.IGNORECASE)
STARTS = rf"(?=\d|(?:{_WORD})\b)"  # Looks ahead for a number.

_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"\d+(?:[.,]\d+)?")
_DRESS = r"[\s*_`\"'\])}]{0,10}"
_UNITS = r"(?:\s?(?:stars?|points?|pts?|marks?)\b\.?)?"
_OUT_OF = re.compile(
    rf"{_UNITS}{_DRESS}[\s([{{]{{0,3}}(?P<how>[/\u2044\u2215]|\b(?:out of|of|von|sur)\b)\s?"
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
    r"|-(?:st|nd|rd|th|star)\b|\.\.\d|\s?\?|[,;]?[ \t]{1,3}\d",
    re.IGNORECASE,
)
# "5 (five)": the same again, or another number.
_AGAIN = re.compile(rf"\s?[(\[]\s?(?P<again>{_DIGITS}|(?:{_WORD})\b)\s?[)\]]", re.IGNORECASE)
_CAME_BEFORE = re.compile(r"(?:[\w.,/\\#$€£<>~≈±^]|\d:|\d\s?[-–—~〜/]\s?)\Z")
_SIGN = re.compile(r"(?:^|[\s\"'`*_:=([])([-−–])\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """A number of the judge's: its value, or why it is none; where its expression ends in the text; and what it is
    out of, if that was said; plainly: not in words that also count ("5 of 7 points")."""

    value: float | None
    problem: str
    end: int
    out_of: float | None = None
    plainly: bool = True


def number_at(text: str, match: re.Match, high: float) -> Found:
    """The number that `match` (of NUMBER) found in `text`, on a scale that ends at `high`."""
    value = _value(match)
    before, end = text[max(0, match.start() - 4) : match.start()], match.end()
    shown = match.group()
    if value is None:
        return Found(None, f"{shown} can be read in two ways", end)
    if _SIGN.search(before):
        value, before = -value, ""
    if _CAME_BEFORE.search(before):
        return Found(None, f"{before.lstrip()}{shown} is no single number", end)
    out_of, plainly = None, True
    if share := _OUT_OF.match(text, end):
        total = _value(NUMBER.match(share.group("total")))
        end = share.end()
        if total != high or share.group("tail"):
            return Found(
                None, f"{text[match.start() : end]!r} is not on the scale, which ends at {high:g}", end
            )
        out_of, plainly = total, share.group("how").lower() != "of"
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
    return Found(value, "", end, out_of, plainly)


def _value(match: re.Match) -> float | None:
    """The number; None for digits that are none, or two: "1.2.3", "1.000,5"."""
    if match.group("word"):
        return float(_WORDS.index(match.group("word").lower()))
    digits = match.group("digits")
    if _THOUSANDS.fullmatch(digits):
        return float(digits.replace(",", ""))
    return float(digits.replace(",", ".")) if _DECIMAL.fullmatch(digits) else None
