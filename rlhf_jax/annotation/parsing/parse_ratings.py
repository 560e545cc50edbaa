"""The parsers of ratings: one number on the judge's scale, or one for each of several criteria.

Both read one example or several in one request. Ratings by criteria are summed or averaged.
"""

import functools
import re
from collections.abc import Iterator

from rlhf_jax.annotation.answers.answers import CUT_OFF, OK, TRUNCATED, Answer
from rlhf_jax.annotation.parsing.contracts import (
    TWO_VALUES,
    Parsed,
    ParserSpec,
    failed,
    is_number,
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
from rlhf_jax.annotation.parsing.said import Said, each_object, holding, numbers_of
from rlhf_jax.annotation.parsing.scales import WHAT, scale_problem, without_scale
from rlhf_jax.annotation.parsing.second_thoughts import HOLLOW, denied, hypothetical

_LINE_CHARS = 200
_DRESS = r"[\s*_`\"'\[\](){}]{0,10}"
_OPENING = r"[\s*_`\"'“«„\[({#|>]{0,12}"
_CLOSING = re.compile(r"[\s*_`\"'”»“\])}.!,|]{0,12}")
# "6 (very good)": a remark without another number.
_REMARK = re.compile(r"[\s*_]{0,4}\([^()\d]{1,100}\)[\s*_.!]{0,6}")
_WHOSE = r"(?:(?:the|my|its|an?|overall|final|total|quality)\s){0,3}"
_IS = r"(?:\s?(?:is|was|of|would be|will be)\b(?:\s(?:a|an)\b)?)?[\s*_`\"'|]{0,6}(?:[:=]|->|→|[-–—](?=\s))?"
_FOR = r"(?:\s(?:for|of)\s(?:the|this|that|its)\s\w{1,20})?"
_ASIDE = r"(?:\s?[(\[][^()\[\]\n]{0,80}[)\]](?=[\s*_`\"']{0,6}(?:[:=]|is\b)))?"
_LABEL = rf"{_WHOSE}(?<![^\W_]){WHAT}s?(?![^\W_]){_FOR}[*_`\"']{{0,4}}{_ASIDE}{_IS}"
# "My overall rating for this response (1-7) is: **6**": whose, what, for what, an aside, then the number.
_LABELLED = re.compile(
    rf"(?:{_LABEL}|\bscale (?:of|from) {HOLLOW}\s?[:=]){_OPENING}[-−–]?{STARTS}", re.IGNORECASE
)
# What may stand before a number that is all its line says.
_ONLY_LABEL = re.compile(
    rf"(?:example\s?\d{{1,4}}\s?[:.)])?{_OPENING}(?:{_LABEL})?{_OPENING}[-−–]?", re.IGNORECASE
)
_FINAL = re.compile(r"\b(?:overall|final)\b", re.IGNORECASE)
# "Overall: 5", at the beginning of a line or a sentence.
_OVERALL = re.compile(
    rf"(?:^|[.;|]\s)[\s*_#|-]{{0,8}}(?:my\s)?(?:overall|final)[*_]{{0,3}}\s?[:=]{_OPENING}[-−–]?{STARTS}",
    re.IGNORECASE | re.MULTILINE,
)
# "I'd give it a 5", "I rate this response 6", "it deserves a 5".
_GIVEN = re.compile(
    r"\b(?:I(?:[’']d|[’']ll|\swould|\swill)?\s(?:give|rate|score|grade|award|assign)\s(?:it|this|that|the)(?:\s\w{1,20}){0,2}?"
    r"|(?:deserves|earns|merits|gets|receives)\s(?:an?|(?:an?|the)\s(?:rating|score)\sof))"
    rf"(?:\s(?:as|at|with|a|an|the|of|rating|score|it)){{0,4}}[:\s]\s?[*_`\"'\[]{{0,6}}{STARTS}",
    re.IGNORECASE,
)
# MT-bench asks for "[[5]]".
_BRACKETS = re.compile(r"\[\[(?P<inside>[^\[\]\n]{0,40})\]\]")
_TAGGED = re.compile(rf"<{WHAT}>(?P<inside>[^<>\n]{{0,40}})</{WHAT}>", re.IGNORECASE)
_CLAUSE_ENDS = re.compile(
    r"[\s*_`\"'\])}]{0,10}(?:[.!,;\n(]|$|[-–—:](?=\s)|(?:because|since|as|due|overall)\b)", re.IGNORECASE
)
_RATED = re.compile(r"[ -](?:response|answer|output|text|rating|score|from me|in my)\b", re.IGNORECASE)
_KEYS = frozenset(
    {"rating", "score", "overall", "overall_rating", "overall_score", "final_rating", "final_score"}
)


def rating(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read a number alone on its line, or called the rating anywhere ("Rating: 6", "[[6]]", "I'd give it a 6").

    Numbers that differ are unreadable, but "[[6]]" goes before an overall or final rating, and that before others. Of
    several examples each has a line of its own. Outside the scale it is unreadable, never clipped.
    """
    # First of all: in "Rating (1-7): 5" the ends of the scale are numbers too.
    text = without_scale(answer.text, spec)
    if problem := scale_problem(answer.text, spec):
        return [failed(problem)] * n
    cut = answer.finish_reason in CUT_OFF
    if n > 1:
        lines = [split_number(line) for line in text.splitlines()]
        read = [(number, one) for number, rest in lines if (one := _of_line(rest, spec)) is not None]
        found = in_order(read, n)
        if len(found) != n:
            return wrong_count(len(found), n, "rating")
        # Whose rating is corrected is not always said, so none of them holds.
        if again := _correction([], text, spec):
            return [failed(f"a rating is taken back: {again}")] * n
        if cut and _could_go_on(read[-1][1], text, spec):
            return [failed(f"the answer was cut off ({answer.finish_reason}) at a rating", TRUNCATED)] * n
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
    if again := _correction([one.value], text, spec):
        return [failed(f"the rating is taken back: {again}")]
    if cut and _could_go_on(one, text, spec):
        return [failed(f"the answer was cut off ({answer.finish_reason}) at its rating", TRUNCATED)]
    return [_rated(one, spec)]


def _last_line(text: str, spec: ParserSpec) -> Iterator[Found]:
    """The number that the last line gives as the answer, where nothing in the text is called a rating."""
    for value in answered(text):
        found = _of_line(value, spec) if isinstance(value, str) else _of_json(value, spec)
        if found is not None:
            yield found


def _correction(values: list[float | None], text: str, spec: ParserSpec) -> str:
    """Words by which the judge takes a rating back for another number, "" for none; `values`: those it may repeat."""
    text = _without_objects(text)
    others = (
        words for words, match in taken_back(text) if number_at(text, match, spec.high).value not in values
    )
    return next(others, "")


def _marked(text: str, spec: ParserSpec) -> Iterator[Found]:
    """ "[[6]]", "<rating>6</rating>" and {"rating": 6}."""
    for pattern in (_BRACKETS, _TAGGED):
        for match in pattern.finditer(text):
            found = _whole(match.group("inside"), spec) or Found(None, f"{match.group()!r} is no number", 0)
            yield _given(found, text, *match.span())
    for start, end, value in json_spans(text):
        named = [value[key] for key in value if key.casefold() in _KEYS]
        for one in named:
            yield _given(_of_json(one, spec), text, start, end)


def _given(found: Found, text: str, start: int, end: int) -> Found:
    """The number found at a place of the text, or why it is not given to the response at hand."""
    if found.problem or not hypothetical(text, start, end):
        return found
    return Found(None, f"{text[start:end][:40]!r} is spoken of, not given", found.end)


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
        # Only at the end of a clause: "9/10 dentists agree" is no rating.
        ends = _ends(text, found.end) or _RATED.match(text, found.end)
        if found.out_of is not None and ends and not denied(text, match.start()):
            yield _given(found, text, match.start(), found.end)


def _without_objects(text: str) -> str:
    pieces, done = [], 0
    for start, end, _ in json_spans(text):
        pieces += [text[done:start], HOLLOW]
        done = end
    return "".join([*pieces, text[done:]])


def _labelled(text: str, spec: ParserSpec) -> Iterator[tuple[str, Found]]:
    """Numbers that the judge calls its rating, with the words by which it does."""
    for pattern in (_LABELLED, _GIVEN, _OVERALL):
        for label in pattern.finditer(text):
            match = NUMBER.match(text, label.end())
            if match and not denied(text, label.start()):
                found = number_at(text, match, spec.high)
                # "Rating: one of the best" and "Overall: 3 errors" give no number.
                plain = match.group("word") is None and pattern is not _OVERALL
                if plain or _ends(text, found.end):
                    said = text[max(0, label.start() - 20) : label.end()]
                    yield said, _given(found, text, match.start(), found.end)


def _ends(text: str, end: int) -> bool:
    """Whether a clause ends here: "Rating: one" is a number, "Rating: one of the best" is none."""
    return _CLAUSE_ENDS.match(text[end : end + 20]) is not None


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
    text = answer.text
    if problem := scale_problem(text, spec, wanted):
        return [failed(problem)] * n
    found, problem = _objects(text, wanted, spec, n)
    if not found and not problem:
        text = without_scale(text, spec)
        found, problem = _lines(text, wanted, spec, n)
    if problem:
        return [failed(problem)] * n
    # The same ratings twice, as in a summary at the end, are one answer.
    if n == 1 and len({_values(one) for one in found}) == 1:
        found = found[:1]
    if len(found) != n:
        return wrong_count(len(found), n, "rating of every criterion")
    # A correction may be of any criterion, of any example.
    if again := _correction([], text, spec):
        return [failed(f"a rating is taken back: {again}")] * n
    if answer.finish_reason in CUT_OFF and _any_could_go_on(found, text, spec):
        return [failed(f"the answer was cut off ({answer.finish_reason}) at its last rating", TRUNCATED)] * n
    return _all_or_none([_combined([one[aspect] for aspect in wanted], spec) for one in found])


def _any_could_go_on(found: list[dict[str, Found]], text: str, spec: ParserSpec) -> bool:
    each = [one for row in found for one in row.values()]
    last = max(each, key=lambda one: one.end)
    return last.end > 0 and _could_go_on(last, text, spec)


def _values(found: dict[str, Found]) -> tuple:
    return tuple((aspect, one.value) for aspect, one in sorted(found.items()))


def _objects(text: str, wanted: list[str], spec: ParserSpec, n: int) -> tuple[list[dict[str, Found]], str]:
    """The criteria of every JSON object that has all of them, as numbers or as text that is one; what is wrong."""

    def criteria(value: dict) -> dict[str, object] | None:
        folded: dict[str, object] = {}
        for name, one in value.items():
            # A name that is given twice, capitalised differently, has no single rating.
            same = str(name).casefold() not in folded or folded[str(name).casefold()] == one
            folded[str(name).casefold()] = one if same else TWO_VALUES
        if not all(_could_be(folded.get(aspect)) for aspect in wanted):
            return None
        return {aspect: folded[aspect] for aspect in wanted}

    spans, said = json_spans(text), []
    for start, end, outer in spans:
        said += [Said(start, end, made, number) for number, _, made in each_object(outer, criteria)]
    kept, problem = holding(text, said, n, [span[:2] for span in spans])
    return [{aspect: _of_json(value, spec) for aspect, value in one.value.items()} for one in kept], problem


def _could_be(value: object) -> bool:
    return is_number(value) or isinstance(value, str)


def _lines(text: str, wanted: list[str], spec: ParserSpec, n: int) -> tuple[list[dict[str, Found]], str]:
    """Criteria rated in lines: the i-th rating of each criterion belongs to the i-th example, if none is numbered."""
    columns = []
    for aspect in wanted:
        labels = [(label, NUMBER.match(text, label.end())) for label in _label(aspect).finditer(text)]
        found = [(label.start(), number_at(text, match, spec.high)) for label, match in labels if match]
        columns.append(_column(text, found, n))
        if found and not columns[-1]:
            return [], f"the ratings are not numbered 1 to {n}"
    # A criterion that is missing for one example would shift its ratings to the wrong ones.
    if len({len(column) for column in columns}) != 1:
        return [], ""
    return [dict(zip(wanted, row, strict=True)) for row in zip(*columns, strict=True)], ""


def _column(text: str, found: list[tuple[int, Found]], n: int) -> list[Found]:
    """The ratings of one criterion in the order of the examples."""
    if n == 1 or len(found) != n:
        return [one for _, one in found]
    numbers = numbers_of(text, [start for start, _ in found], n)
    return in_order([(number, one) for number, (_, one) in zip(numbers, found, strict=True)], n)


@functools.lru_cache(maxsize=64)
def _label(aspect: str) -> re.Pattern:
    # A remark in brackets may stand between the name and its number: "Relevance (to the instruction): 4".
    aside = r"(?:\([^()\n]{0,80}\))?"
    return re.compile(
        rf"(?<!\w)(?<!lack of )(?<!absence of )(?<!loss of ){re.escape(aspect)}(?!\w){_DRESS}{aside}{_DRESS}"
        rf"(?:rating|score)?{_DRESS}(?:[:=|]|->|→|[-–—]\s){_DRESS}[-−]?(?=[\dA-Za-z])",
        re.IGNORECASE,
    )


def _combined(found: list[Found], spec: ParserSpec) -> Parsed:
    for aspect, one in zip(spec.aspects, found, strict=True):
        if problem := one.problem or _off_scale(one.value, spec):
            return failed(f"{aspect} {problem}")
    values = [one.value for one in found]
    total = sum(values) / (len(values) if spec.reduce == "mean" else 1)
    return Parsed(None, OK, rating=total, aspects=tuple(zip(spec.aspects, values, strict=True)))
