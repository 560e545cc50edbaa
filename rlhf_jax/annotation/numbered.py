"""Answers about several examples, a line each: "Example 2: b". The numbers say whose line it is, not the order."""

import re
from collections.abc import Sequence
from typing import TypeVar

_EXAMPLE = r"(?:example|pair|no\.?)\s?#?(\d{1,4})\)?[*_]{0,2}\s?[:.)-]"
_NUMBERED = re.compile(
    rf"[\s*_`#(-]{{0,6}}(?:{_EXAMPLE}|(\d{{1,4}})\s?[:.)](?=\s))[*_]{{0,2}}", re.IGNORECASE
)

Value = TypeVar("Value")


def split_number(line: str) -> tuple[int | None, str]:
    """The number a line begins with as "Example 2:" or "2." do, and the rest of the line."""
    match = _NUMBERED.match(line)
    return (int(match.group(1) or match.group(2)), line[match.end() :]) if match else (None, line)


def in_order(numbered: Sequence[tuple[int | None, Value]], n: int) -> list[Value]:
    """The values by their numbers, as they are without any; none when the numbers are not 1 to `n`."""
    numbers = [number for number, _ in numbered if number is not None]
    if numbers and sorted(numbers) != list(range(1, n + 1)):
        return []
    if numbers and len(numbers) == len(numbered):
        numbered = sorted(numbered, key=lambda pair: pair[0])
    return [value for _, value in numbered]
