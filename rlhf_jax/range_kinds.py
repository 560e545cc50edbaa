"""The kinds of ranges that a field of a config page can have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

_LARGEST = 2**31 - 1  # Counts are 32-bit integers on the devices.


class Range(NamedTuple):
    """fits(value): whether a value can be right. says: what would be, after "use". words: those it may be."""

    fits: Callable[[Any], bool]
    says: str
    words: tuple[str, ...] = ()


def whole(least: int, most: int = _LARGEST, says: str = "") -> Range:
    """A whole number between two."""
    limits = f"of at least {least}" if most == _LARGEST else f"from {least} to {most}"

    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Range(fits, says or f"a whole number {limits}")


def number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    says: str = "",
) -> Range:
    """A finite number between two; above, below: without the one or the other of them."""
    limits = [f"{'above' if above else 'of at least'} {least:g}"] if least > -math.inf else []
    limits += [f"{'below' if below else 'at most'} {most:g}"] if most < math.inf else []

    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
            return False
        return (least < value if above else least <= value) and (value < most if below else value <= most)

    return Range(fits, says or f"a {'' if most < math.inf else 'finite '}number {' and '.join(limits)}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # A whole number beyond all floats.
        return False


def one_of(*names: str, or_none: bool = False) -> Range:
    """One of these words; or_none: or nothing."""

    def fits(value: Any) -> bool:
        return isinstance(value, str) and (value in names or (or_none and not value))

    return Range(fits, f"one of {', '.join(names)}{', or nothing' if or_none else ''}", names)


def some_of(*names: str, all_named: str = "") -> Range:
    """Several of these words: a tuple, or text with commas between them; all_named: the word for all of them."""

    def fits(value: Any) -> bool:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        return isinstance(words, tuple | list) and (set(words) <= set(names) or words == [all_named])

    return Range(fits, f"{all_named + ', or ' if all_named else ''}some of {','.join(names)}", names)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
