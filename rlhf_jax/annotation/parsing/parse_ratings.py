"""The parsers of ratings: one number on the judge's scale, or one for each of several criteria.

Both read one example or several in one request. Ratings by criteria are summed or averaged.
"""

import functools
import re
from collections.abc import Iterator

from rlhf_jax.annotation.answers.answers import CUT_OFF, OK, TRUNCATED, Answer
from rlhf_jax.annotation.parsing.contracts import (
    Parsed,
    ParserSpec,
    failed,
    is_number,
    json_objects,
    json_spans,
    wrong_count,
)
from rlhf_jax.annotation.parsing.numbers import (
    NUMBER,
    STARTS,
    Found,
    answered,
    in_order,
    number_at,
    split_number,
    taken_back,
)

_LINE_CHARS = 200
# Takes the place of what was cut out. No pattern of a verdict matches it, so the parts around it cannot join.
_HOLLOW = "\ufffc"
_DRESS = r"[\s*_`\"'\[\](){}]{0,10}"
_OPENING = r"[\s*_`\"'“«„\[({#|>]{0,12}"
_CLOSING = re.compile(r"[\s*_`\"'”»“\])}.!,|]{0,12}")
# "6 (very good)": a remark without another number.
_REMARK = re.compile(r"[\s*_]{0,4}\([^()\d]{1,100}\)[\s*_.!]{0,6}")
_WHAT = r"(?:rating|score|grade|verdict|mark)"
_WHOSE = r"(?:(?:the|my|its|an?|overall|final|total|quality)\s){0,3}"
_IS = r"(?:\s?(?:is|was|of|would be|will be)\b(?:\s(?:a|an)\b)?)?[\s*_`\"'|]{0,6}(?:[:=]|->|→|[-–—](?=\s))?"
_FOR = r"(?:\s(?:for|of)\s(?:the|this|that|its)\s\w{1,20})?"
_ASIDE = r"(?:\s?[(\[][^()\[\]\n]{0,80}[)\]](?=[\s*_`\"']{0,6}(?:[:=]|is\b)))?"
_LABEL = rf"{_WHOSE}(?<![^\W_]){_WHAT}s?(?![^\W_]){_FOR}[*_`\"']{{0,4}}{_ASIDE}{_IS}"
# "My overall rating for this response (1-7) is: **6**": whose, what, for what, an aside, then the number.
_LABELLED = re.compile(
    rf"(?:{_LABEL}|\bscale (?:of|from) {_HOLLOW}\s?[:=]){_OPENING}[-−–]?{STARTS}", re.IGNORECASE
)
# What may stand before a number that is all its line says.
_ONLY_LABEL = re.compile(
    rf"(?:example\s?\d{{1,4}}\s?[:.)])?{_OPENING}(?:{_LABEL})?{_OPENING}[-−–]?", re.IGNORECASE
)
_TO = r"\d{1,3}\s?(?:-|–|—|to|\.\.)\s?(\d{1,3})\b"
# Every way in which a judge names a scale; each has one group, the scale's upper end.
_SCALES = re.compile(
    rf"\b{_WHAT}s?\s?[(\[]{_TO}|\bscale (?:of|from) {_TO}"
    rf"|\bscale (?:of|from) (\d{{1,3}})\b(?!\s?(?:-|–|to\b))|{_TO}[- ]scale"
    r"|\b(\d{1,3})[- ]points?\s(?:\w{1,12}\s)?scale"
    r"|[(\[]\s?(?:out of|of|from|max\.?|maximum|/)(?: of)?\s(\d{1,3})\s?[)\]]",
    re.IGNORECASE,
)
_FINAL = re.compile(r"\b(?:overall|final)\b", re.IGNORECASE)
# "I'd give it a 5", "I rate this response 6", "it deserves a 5".
_GIVEN = re.compile(
    r"\b(?:I(?:[’']d|[’']ll|\swould|\swill)?\s(?:give|rate|score|grade|award|assign)\s(?:it|this|that|the)(?:\s\w{1,20}){0,2}?"
    r"|(?:deserves|earns|merits|gets|receives)\s(?:an?|(?:an?|the)\s(?:rating|score)\sof))"
    rf"(?:\s(?:as|at|with|a|an|the|of|rating|score|it)){{0,4}}[:\s]\s?[*_`\"'\[]{{0,6}}{STARTS}",
    re.IGNORECASE,
)
# MT-bench asks for "[[5]]".
_BRACKETS = re.compile(r"\[\[(?P<inside>[^\[\]\n]{0,40})\]\]")
_TAGGED = re.compile(rf"<{_WHAT}>(?P<inside>[^<>\n]{{0,40}})</{_WHAT}>", re.IGNORECASE)
_KEYS = frozenset(
    {"rating", "score", "overall", "overall_rating", "overall_score", "final_rating", "final_score"}
)


def rating(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a number alone on its line, or called the rating anywhere ("Rating: 6", "[[6]]", "I'd give it a 6").

    Numbers that differ are unreadable, but "[[6]]" goes before an overall or final rating, and that before others. Of
    several examples each has a line of its own. Outside the scale it is unreadable, never clipped.
    """
    # First of all: in "Rating (1-7): 5" the ends of the scale are numbers too.
    text = _without_scale(answer.text, spec)
    if other := _other_scale(text, spec):
        return [failed(f"{other!r} speaks of another scale than {spec.low:g} to {spec.high:g}")] * n
    if n > 1:
        lines = [split_number(line) for line in text.splitlines()]
        read = [(number, one) for number, rest in lines if (one := _of_line(rest, spec)) is not None]
        found = in_order(read, n)
        if len(found) != n:
            return wrong_count(len(found), n, "rating")
        return _all_or_none([_rated(one, spec) for one in found])
    # From the most explicit form to the least: the first in which anything is found decides, readable or not.
    for tier in (_marked, _final, _plain, _last_line):
        # A rating that is said twice is one rating; two different ones are none.
        found = {(one.value, one.problem): one for one in tier(text, spec)}
        if found:
            break
    if len(found) != 1:
        return wrong_count(len(found), 1, "rating")
    (one,) = found.values()
    if again := _correction(one, text, spec):
        return [failed(f"the rating is taken back: {again}")]
    if answer.finish_reason in CUT_OFF and _could_go_on(one, text, spec):
        return [failed(f"the answer was cut off ({answer.finish_reason}) at its rating", TRUNCATED)]
    return [_rated(one, spec)]


def _last_line(text: str, spec: ParserSpec) -> Iterator[Found]:
    """The number that the last line gives as the answer, where nothing in the text is called a rating."""
    for value in answered(text):
        found = _of_line(value, spec) if isinstance(value, str) else _of_json(value, spec)
        if found is not None:
            yield found


def _correction(one: Found, text: str, spec: ParserSpec) -> str:
    """Words by which the judge takes its rating back for another number, "" for none."""
    text = _without_objects(text)
    others = (
        words for words, match in taken_back(text) if number_at(text, match, spec.high).value != one.value
    )
    return next(others, "")


def _without_scale(text: str, spec: ParserSpec) -> str:
    """Blank every mention of the scale's two ends: "(1-7)", "from 1 (worst) to 7 (best)"."""
    low, high = (re.escape(f"{end:g}") for end in (spec.low, spec.high))
    # A remark may follow each end: "from 1 (worst) to 7 (best)", "1 = poor, 7 = excellent".
    note = r"(?:\s?\([^()\d\n]{1,40}\)|\s?=\s?[^\d\n()]{1,40}?)?"
    pattern = rf"(?<![\d.,/-]){low}{note}\s?(?:-|–|—|to|and|through|bis|,|\.\.\.?|…)\s?{high}{note}(?![\d.,]\d|\d|\s?%)"
    return re.sub(pattern, lambda match: _HOLLOW, text, flags=re.IGNORECASE)


def _other_scale(text: str, spec: ParserSpec) -> str:
    """Find words by which the judge puts its rating on another scale, "" if there are none."""
    for match in _SCALES.finditer(text):
        end = float(next(number for number in match.groups() if number))
        if end != spec.high:
            return match.group()
    return ""


def _marked(text: str, spec: ParserSpec) -> Iterator[Found]:
    """ "[[6]]", "<rating>6</rating>" and {"rating": 6}."""
    for pattern in (_BRACKETS, _TAGGED):
        for match in pattern.finditer(text):
            yield _whole(match.group("inside"), spec) or Found(None, f"{match.group()!r} is no number", 0)
    for value in json_objects(text):
        named = [value[key] for key in value if key.casefold() in _KEYS]
        for one in named:
            yield _of_json(one, spec)


def _of_json(value: object, spec: ParserSpec) -> Found:
    """Read a value of a JSON object as a number, which it is itself or as text."""
    found = _whole(value, spec) if isinstance(value, str) else None
    if found is None:
        found = (
            Found(float(value), "", 0) if is_number(value) else Found(None, f"{value!r:.40} is no number", 0)
        )
    return found


def _final(text: str, spec: ParserSpec) -> Iterator[Found]:
    return (found for label, found in _labelled(_without_objects(text), spec) if _FINAL.search(label))


def _plain(text: str, spec: ParserSpec) -> Iterator[Found]:
    text = _without_objects(text)
    yield from (found for _, found in _labelled(text, spec))
    for line in text.splitlines():
        found = _of_line(line, spec)
        if found is not None:
            yield found
    # "5/7" or "5 out of 7" anywhere needs no label: it names the scale itself.
    for match in NUMBER.finditer(text):
        found = number_at(text, match, spec.high)
        if (
            found.out_of is not None
            and (found.plainly or _ends(text, found.end))
            and not denied(text, match.start())
        ):
            yield found


def _without_objects(text: str) -> str:
    pieces, done = [], 0
    for start, end, _ in json_spans(text):
        pieces += [text[done:start], _HOLLOW]
        done = end
    return "".join([*pieces, text[done:]])


def _labelled(text: str, spec: ParserSpec) -> Iterator[tuple[str, Found]]:
    """Numbers that the judge calls its rating, with the words by which it does."""
    for pattern in (_LABELLED, _GIVEN):
        for label in pattern.finditer(text):
            match = NUMBER.match(text, label.end())
            if match and not denied(text, label.start()):
                found = number_at(text, match, spec.high)
                if match.group("word") is None or _ends(text, found.end):
                    yield text[max(0, label.start() - 20) : label.end()], found


def _ends(text: str, end: int) -> bool:
    """Whether a clause ends here: "Rating: one" is a number, "Rating: one of the best" is none."""
    return re.match(r"[\s*_`\"'\])}]{0,10}(?:[.!,;\n(]|$)", text[end : end + 20]) is not None


def denied(text: str, start: int, reach: int = 14) -> bool:
    """Return whether the words before `start`, or the `reach` characters after it, deny the verdict there."""
    # Only the clause that the verdict stands in: "this is not perfect. Rating: 6" denies nothing.
    before = re.split(r"[.!?;,\n{}]|\bbut\b", text[max(0, start - 40) : start + reach])[-1]
    return re.search(r"\b(?:not|never|cannot|without|no)\b|n[’']t\b", before, re.IGNORECASE) is not None


def _of_line(line: str, spec: ParserSpec) -> Found | None:
    """The number that is all a line says, None for a line that says more."""
    return None if len(line) > _LINE_CHARS else _whole(line, spec)


def _whole(text: str, spec: ParserSpec) -> Found | None:
    label = _ONLY_LABEL.match(text)
    match = NUMBER.match(text, label.end())
    if match is None:
        return None
    found = number_at(text, match, spec.high)
    rest = text[found.end :]
    bare = found.problem or _CLOSING.fullmatch(rest) or _REMARK.fullmatch(rest)
    return found if bare and (not found.problem or _CLOSING.fullmatch(rest) or len(text) < 20) else None


def _could_go_on(found: Found, text: str, spec: ParserSpec) -> bool:
    """Whether the digits are the last of a text that was cut off, and one more could be on the scale."""
    if found.value is None or not text.rstrip(" \t*").endswith(tuple("0123456789")):
        return False
    # "Rating: 1" may have become 10 on a scale to 10; on a scale to 7 nothing can follow the 1.
    return found.out_of is None and (not spec.whole or 0 < found.value * 10 <= spec.high)


def _rated(found: Found, spec: ParserSpec) -> Parsed:
    problem = found.problem or _off_scale(found.value, spec)
    return failed(f"rating {problem}") if problem else Parsed(None, OK, rating=found.value)


def _off_scale(value: float, spec: ParserSpec) -> str:
    """Say what is wrong with a number on this scale, "" if nothing is."""
    if not spec.low <= value <= spec.high:
        return f"{value:g} is not within {spec.low:g} and {spec.high:g}"
    return f"{value:g} is not a whole number" if spec.whole and value != int(value) else ""


def _all_or_none(parsed: list[Parsed]) -> list[Parsed]:
    """Trust none of a request's ratings if one is off the scale: the judge has lost count, or the scale."""
    bad = next((p for p in parsed if p.status != OK), None)
    return parsed if bad is None else [bad] * len(parsed)


# Several criteria, each with a number of its own.


def ratings(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a rating per criterion, from JSON or lines "Relevance: 4"; their sum or mean is the rating."""
    wanted = [aspect.casefold() for aspect in spec.aspects]
    told = _without_scale(answer.text, spec)
    if other := _other_scale(told, spec) or _other_scale_of(told, wanted, spec):
        return [failed(f"{other!r} speaks of another scale than {spec.low:g} to {spec.high:g}")] * n
    found = _objects(answer.text, wanted, spec) or _lines(answer.text, wanted, spec)
    # The same ratings twice, as in a summary at the end, are one answer.
    if n == 1 and len({_values(one) for one in found}) == 1:
        found = found[:1]
    if len(found) != n:
        return wrong_count(len(found), n, "rating of every criterion")
    return _all_or_none([_combined([one[aspect] for aspect in wanted], spec) for one in found])


def _values(found: dict[str, Found]) -> tuple:
    return tuple((aspect, one.value) for aspect, one in sorted(found.items()))


def _objects(text: str, wanted: list[str], spec: ParserSpec) -> list[dict[str, Found]]:
    """The criteria of every JSON object that has all of them, as numbers or as text that is one."""
    made = []
    for start, _, value in json_spans(text):
        folded = {str(name).casefold(): one for name, one in value.items()}
        if all(_could_be(folded.get(aspect)) for aspect in wanted) and not denied(text, start, 0):
            made.append({aspect: _of_json(folded[aspect], spec) for aspect in wanted})
    return made


def _other_scale_of(text: str, wanted: list[str], spec: ParserSpec) -> str:
    """Words that give a criterion another scale, as "Relevance (1-10)"; "" if there are none."""
    for aspect in wanted:
        for match in _scale_of(aspect).finditer(text):
            if float(match[1]) != spec.high:
                return match.group()
    return ""


@functools.lru_cache(maxsize=64)
def _scale_of(aspect: str) -> re.Pattern:
    between = r"[\s*_]{0,4}[(\[]\d{1,3}\s?(?:-|–|to)\s?(\d{1,3})\b"
    return re.compile(rf"(?<!\w){re.escape(aspect)}{between}", re.IGNORECASE)


def _could_be(value: object) -> bool:
    return is_number(value) or isinstance(value, str)


def _lines(text: str, wanted: list[str], spec: ParserSpec) -> list[dict[str, Found]]:
    """Criteria rated in lines: the i-th rating of each criterion belongs to the i-th example."""
    text = _without_scale(text, spec)
    columns = []
    for aspect in wanted:
        found = []
        for label in _label(aspect).finditer(text):
            if match := NUMBER.match(text, label.end()):
                found.append(number_at(text, match, spec.high))
        columns.append(found)
    # A criterion that is missing for one example would shift its ratings to the wrong ones.
    if len({len(column) for column in columns}) != 1:
        return []
    return [dict(zip(wanted, row, strict=True)) for row in zip(*columns, strict=True)]


@functools.lru_cache(maxsize=64)
def _label(aspect: str) -> re.Pattern:
    # A remark in brackets may stand between the name and its number: "Relevance (to the instruction): 4".
    aside = r"(?:\([^()\n]{0,80}\))?"
    return re.compile(
        rf"(?<!\w){re.escape(aspect)}(?!\w){_DRESS}{aside}{_DRESS}(?:rating|score)?{_DRESS}(?:[:=|]|->|→|[-–—]\s)"
        rf"{_DRESS}[-−]?(?=[\dA-Za-z])",
        re.IGNORECASE,
    )


def _combined(found: list[Found], spec: ParserSpec) -> Parsed:
    for aspect, one in zip(spec.aspects, found, strict=True):
        if problem := one.problem or _off_scale(one.value, spec):
            return failed(f"{aspect} {problem}")
    values = [one.value for one in found]
    total = sum(values) / (len(values) if spec.reduce == "mean" else 1)
    return Parsed(None, OK, rating=total, aspects=tuple(zip(spec.aspects, values, strict=True)))
