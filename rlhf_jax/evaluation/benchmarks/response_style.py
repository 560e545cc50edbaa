"""What a response looks like: its length and its markdown, counted as arena-hard-auto counts them.

Headers, list items and bold phrases are counted outside of blocks of code. Two responses differ in length by
(a - b) / (a + b), and in each of the others, taken per character or token, by (a - b) / (a + b + 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LENGTH = "length"
_CODE = re.compile(r"```[^`]*```")
_COUNTED = {
    "headers": (re.compile(r"^#{1,6}\s", re.MULTILINE),),
    "lists": (re.compile(r"^[^\S\n]*(?:\d+\.|[-*+])\s", re.MULTILINE),),
    # Two patterns, as one may stand within the other.
    "bold": (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")),
}
STYLES = (LENGTH, *_COUNTED)


def style_counts(text: str) -> dict[str, float]:
    """Length in characters, and the number of headers, list items and bold phrases."""
    return {LENGTH: float(len(text))} | {name: float(_count(name, text)) for name in _COUNTED}


def _count(name: str, text: str) -> int:
    prose = _CODE.sub("", text)
    return sum(len(pattern.findall(prose)) for pattern in _COUNTED[name])


def _counter(name: str) -> Callable[[str], float]:
    return lambda text: float(_count(name, text))


# As controls of `length_control`: that regression holds any of them equal, not only the length.
CONTROLS: Mapping[str, Callable[[str], float]] = {LENGTH: len} | {name: _counter(name) for name in _COUNTED}


def style_differences(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """How much more of each style our response has than theirs, by game [N]: 0 where they are alike.

    ours, theirs: of each game what `style_counts` says, or the same counts with a length in tokens.
    """
    a, b = (np.array([[one[name] for name in STYLES] for one in some], np.float64) for some in (ours, theirs))
    # An empty response has no density; as if it had one character, it has none of anything.
    length_a, length_b = np.maximum(a[:, 0], 1), np.maximum(b[:, 0], 1)
    both = np.maximum(a[:, 0] + b[:, 0], 1)
    found = {LENGTH: (a[:, 0] - b[:, 0]) / both}
    for k, name in enumerate(STYLES[1:], 1):
        x, y = a[:, k] / length_a, b[:, k] / length_b
        found[name] = (x - y) / (x + y + 1)
    return {name: found[name] for name in names}
