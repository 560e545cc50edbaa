"""Verdicts as they stand in an answer: which of them hold, and which example each belongs to."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlhf_jax.annotation.parsing.numbers import in_order, split_number
from rlhf_jax.annotation.parsing.second_thoughts import denied, hollowed, turned_back

# "Example 2:", "## Example 2" or "Pair 2)", at the beginning of a line or behind the one before.
_HEADING = re.compile(
    r"(?:^|[;,.|}\])])[ \t*_#(\[-]{0,12}(?:example|pair)\s?#?(\d{1,4})[*_)\]]{0,3}\s?(?:[:.)*–-]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_LINE_START = 40
_NUMBER_KEYS = ("example", "example_id", "example_number", "index", "id")
_KEY_END = re.compile(r"(?:example|pair|item)?[\s_#-]{0,3}(\d{1,4})", re.IGNORECASE)
# Verdicts stand in an object, in one of its members or in a list there: {"results": [{...}, {...}]}.
_MOST_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Said:
    """A verdict at a place of the text. number: of its example, where its JSON object says so; note: its reason."""

    start: int
    end: int
    value: object
    number: int | None = None
    note: str | None = None


def holding(
    text: str, found: list[Said], n: int, spans: Sequence[tuple[int, int]] = ()
) -> tuple[list[Said], str]:
    """Return the verdicts that hold, in the order of the examples, and why none of them can be trusted ("").

    found: as they stand in `text`, in order. spans: what is no running text there, such as JSON objects.
    """
    kept = [one for one in found if not denied(text, one.start, 0)]
    if not kept:
        return [], ""
    values, first = [one.value for one in kept], kept[0].end
    if any(one.start >= first and one.value not in values for one in found):
        return [], "the verdict is followed by another one, which is denied or corrects it"
    words = hollowed(text, spans)
    if turned_back(words, first):
        return [], "words behind the verdict take it back"
    if n == 1 or len(kept) != n:
        return kept, ""
    numbers = numbers_of(words, [one.start for one in kept], n)
    numbered = [
        (number if one.number is None else one.number, one) for number, one in zip(numbers, kept, strict=True)
    ]
    ordered = in_order(numbered, n)
    return ordered, "" if ordered else f"the verdicts are not numbered 1 to {n}"


def numbers_of(text: str, starts: Sequence[int], n: int) -> list[int | None]:
    """The number of the example that each place belongs to: that of its line, or of the last heading above it."""
    lines, done = [], 0
    for start in starts:
        line_start = text.rfind("\n", 0, start) + 1
        # The second verdict of a line has no right to the number at its beginning.
        own = split_number(text[line_start : line_start + _LINE_START])[0] if line_start >= done else None
        lines.append(own)
        done = start
    # A bare number ("2. ...") that comes twice may as well be that of a reason or a criterion.
    if None not in lines and len(set(lines)) == n:
        return lines
    headings = [(match.start(), int(match[1])) for match in _HEADING.finditer(text)]
    above = [[number for place, number in headings if place <= start] for start in starts]
    return [numbers[-1] if numbers else None for numbers in above]


def each_object(
    value: object, read: Callable[[dict], object], number: int | None = None, depth: int = 0
) -> Iterator[tuple[int | None, dict, object]]:
    """Find the outermost dicts of a JSON value of which `read` makes something: their example's number, they, it."""
    if isinstance(value, list):
        for one in value if depth else []:
            yield from each_object(one, read, None, depth)
    elif isinstance(value, dict):
        number = _own_number(value, number)
        made = read(value)
        if made is not None:
            yield number, value, made
        elif depth < _MOST_DEPTH:
            for key, one in value.items():
                named = _KEY_END.fullmatch(str(key))
                yield from each_object(one, read, int(named[1]) if named else number, depth + 1)


def _own_number(value: dict, number: int | None) -> int | None:
    for key, one in value.items():
        if str(key).casefold() in _NUMBER_KEYS:
            said = _KEY_END.fullmatch(str(one).strip())
            number = int(said[1]) if said else number
    return number
