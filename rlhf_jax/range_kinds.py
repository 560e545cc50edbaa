"""The kinds of ranges that a field of a config page can have: whole numbers, numbers, words, texts, flags."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_LARGEST = 2**31 - 1  # Counts are 32-bit integers on the devices.


class Range(NamedTuple):
    """fits(value): whether a value is allowed. says: what is, to be read after "use". words: the words it may be."""

    fits: Callable[[Any], bool]
    says: str
    words: tuple[str, ...] = ()


def whole(least: int, most: int = _LARGEST, says: str = "") -> Range:
    """The range of whole numbers from `least` to `most`."""
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
    """A range of finite numbers; above, below: whether `least` or `most` itself is left out."""
    limits = [f"{'above' if above else 'of at least'} {least:g}"] if least > -math.inf else []
    limits += [f"{'below' if below else 'at most'} {most:g}"] if most < math.inf else []

    def fits(value: Any) -> bool:
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not abs(value) <= sys.float_info.max
        ):
            return False
        return (least < value if above else least <= value) and (value < most if below else value <= most)

    return Range(fits, says or f"a {'' if most < math.inf else 'finite '}number {' and '.join(limits)}")


def one_of(*names: str, or_none: bool = False) -> Range:
    """A choice of one of these words; or_none: or of none, as an empty text."""

    def fits(value: Any) -> bool:
        return isinstance(value, str) and (value in names or (or_none and not value))

    return Range(fits, f"one of {', '.join(names)}{', or nothing' if or_none else ''}", names)


def some_of(*names: str, all_named: str = "") -> Range:
    """A choice of several words: a tuple, or text with commas between them; all_named: the word for all of them."""

    def fits(value: Any) -> bool:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        return isinstance(words, tuple | list) and (set(words) <= set(names) or words == [all_named])

    return Range(fits, f"{all_named + ', or ' if all_named else ''}some of {','.join(names)}", names)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


TEXT = Range(is_text, "text in UTF-8")  # A name, a title, or a path.
FLAG = Range(lambda value: isinstance(value, bool), "true or false")
SHARE = number(0, 1)
COUNT = whole(1)
ALL_OR_COUNT = whole(0, says="a whole number of at least 1: how many, or 0 for all")
NEVER_OR_EVERY = whole(0, says="a whole number of at least 1: every how many steps, or 0 for never")
PER_MINUTE = number(0, says="how many in a minute, or 0 for no limit of your own")
DTYPE = one_of("float32", "bfloat16")
AXIS = Range(
    lambda value: whole(1).fits(value) or (whole(-1, -1).fits(value)),
    "a whole number of at least 1, or -1 for the devices that are left",
)
# From 1e-6 on, because logits are divided by it.
TEMPERATURE = Range(
    lambda value: number(1e-6, 100).fits(value) or (number(0, 0).fits(value)),
    "0 for greedy, or a number of at least 1e-06 and at most 100",
)
