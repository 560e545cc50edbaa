"""The scale that a judge names beside its rating: the one it was asked for, another one, or the same upside down."""

import functools
import re
from collections.abc import Iterable

from rlhf_jax.annotation.parsing.contracts import ParserSpec, json_objects
from rlhf_jax.annotation.parsing.second_thoughts import HOLLOW

WHAT = r"(?:rating|score|grade|verdict|mark)"

_WORDS = ("three", "four", "five", "six", "seven", "eight", "nine", "ten")
_END = rf"(\d{{1,3}}|(?:{'|'.join(_WORDS)}|hundred)\b)"
_TO = r"\d{1,3}\s?(?:-|–|—|to|\.\.)\s?(\d{1,3})\b"
# Every way in which a judge names a scale; each has one group, the scale's upper end.
_SCALES = re.compile(
    rf"\b{WHAT}s?\s?[(\[]{_TO}|\bscale (?:of |from )?{_TO}"
    rf"|\bscale (?:of|from) (?:a )?{_END}\b(?!\s?(?:-|–|to\b))|{_TO}[- ]scale"
    rf"|\b{_END}[- ]points?\s(?:\w{{1,12}}\s)?scale"
    r"|[(\[]\s?(?:out of|of|from|max\.?|maximum|/)(?: of)?\s(\d{1,3})\s?[)\]]"
    r"|(?:^|[\s:=*_])\d{1,3}[*_]{0,2}\s?[(\[]\s?[01]\s?(?:-|–|—|to|\.\.)\s?(\d{1,3})\s?[)\]](?![\w\[|?])",
    re.IGNORECASE,
)
# Keys of a JSON object that say where its scale ends.
_SCALE_KEYS = frozenset(
    {"max", "maximum", "max_score", "max_rating", "out_of", "scale", "scale_max", "rating_scale"}
)
_LOWER_IS_BETTER = re.compile(
    r"\b(?:lower|smaller) (?:is|are|means|=|being) (?:the )?better\b", re.IGNORECASE
)
_BEST, _WORST = r"(?:best|excellent|perfect|highest quality)", r"(?:worst|terrible|very (?:bad|poor)|poorest)"


def without_scale(text: str, spec: ParserSpec) -> str:
    """Blank every mention of the scale's two ends: "(1-7)", "from 1 (worst) to 7 (best)"."""
    low, high = (re.escape(f"{end:g}") for end in (spec.low, spec.high))
    # A remark may follow each end: "from 1 (worst) to 7 (best)", "1 = poor, 7 = excellent".
    note = r"(?:\s?\([^()\d\n]{1,40}\)|\s?=\s?[^\d\n()]{1,40}?)?"
    pattern = rf"(?<![\d.,/-]){low}{note}\s?(?:-|–|—|to|and|through|bis|,|\.\.\.?|…)\s?{high}{note}(?![\d.,]\d|\d|\s?%)"
    return re.sub(pattern, lambda match: HOLLOW, text, flags=re.IGNORECASE)


def scale_problem(text: str, spec: ParserSpec, aspects: Iterable[str] = ()) -> str:
    """Say what puts the ratings in `text` on another scale, "" if nothing does."""
    told = without_scale(text, spec)
    other = _other_scale(told, spec) or _of_objects(text, spec) or _of_aspects(told, aspects, spec)
    if other:
        return f"{other!r} speaks of another scale than {spec.low:g} to {spec.high:g}"
    upside_down = _upside_down(spec.low, spec.high).search(text) or _LOWER_IS_BETTER.search(text)
    return f"{upside_down.group()!r} turns the scale around" if upside_down else ""


def _other_scale(text: str, spec: ParserSpec) -> str:
    for match in _SCALES.finditer(text):
        said = next(number for number in match.groups() if number)
        if _number(said) != spec.high:
            return match.group()
    return ""


def _number(said: str) -> float:
    if said.isdigit():
        return float(said)
    return 100.0 if said.casefold() == "hundred" else float(3 + _WORDS.index(said.casefold()))


def _of_objects(text: str, spec: ParserSpec) -> str:
    """The end of a scale that a JSON object names beside its ratings, such as {"rating": 5, "max": 10}."""
    for found in json_objects(text):
        for key, value in found.items():
            numbers = (
                re.findall(r"\d{1,9}(?:\.\d{1,9})?", str(value)[:40]) if key.casefold() in _SCALE_KEYS else []
            )
            if numbers and float(numbers[-1]) != spec.high:
                return f"{key}: {str(value)[:40]}"
    return ""


def _of_aspects(text: str, aspects: Iterable[str], spec: ParserSpec) -> str:
    """Words that give a criterion another scale, as "Relevance (1-10)"; "" if there are none."""
    for aspect in aspects:
        for match in _scale_of(aspect).finditer(text):
            if float(match[1]) != spec.high:
                return match.group()
    return ""


@functools.lru_cache(maxsize=64)
def _scale_of(aspect: str) -> re.Pattern:
    between = r"[\s*_]{0,4}[(\[]\d{1,3}\s?(?:-|–|to)\s?(\d{1,3})\b"
    return re.compile(rf"(?<!\w){re.escape(aspect)}{between}", re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def _upside_down(low: float, high: float) -> re.Pattern:
    """ "1 = best", "1 is the best", "7 (worst)": the ends of the scale, each called by the other's name."""
    is_ = r"\s?(?:=|is|being|means|\()\s?(?:the )?"
    ends = ((low, _BEST), (high, _WORST))
    named = (rf"(?<![\d.,/-]){re.escape(f'{end:g}')}{is_}{name}\b" for end, name in ends)
    return re.compile("|".join(named), re.IGNORECASE)
