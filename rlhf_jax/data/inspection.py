"""Shows training data as text: rows of tokens in which what is trained is marked, and how long rows are."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

COLOUR, PLAIN = ("\033[32m", "\033[0m"), ("[[", "]]")
_BAR = 40  # Characters of the longest bar.


def marked(
    ids: Integer[np.ndarray, "T"], trained: Bool[np.ndarray, "T"], tokenizer: Any, marks: tuple[str, str]
) -> str:
    """Returns the text of a row, special tokens included, with marks around every stretch of trained tokens."""
    borders = [0, *(np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist(), len(ids)]
    # Each stretch is what it adds to the text before it: alone it could lose its first space.
    texts = [_text(ids[:stop], tokenizer) for stop in borders]
    pieces = []
    for (start, stop), (before, after) in zip(pairwise(borders), pairwise(texts), strict=True):
        piece = after[len(before) :]
        pieces.append(f"{marks[0]}{piece}{marks[1]}" if stop > start and trained[start] else piece)
    return "".join(pieces)


def histogram(lengths: Integer[np.ndarray, "n"], bins: int) -> list[str]:
    """Draws at most `bins` lines "  16-23 |######  120": how many rows have so many tokens."""
    step = max(1, -(-(int(lengths.max()) + 1) // bins))
    counts = np.bincount(lengths // step)
    digits = len(str(len(counts) * step))
    lines = []
    for i, count in enumerate(counts.tolist()):
        # Rounded up, so that a single row among thousands still shows.
        bar = "#" * (-(-count * _BAR // int(counts.max())))
        label = f"{i * step:>{digits}}-{(i + 1) * step - 1:<{digits}}" if step > 1 else f"{i:>{digits}}"
        lines.append(f"  {label} |{bar}{' ' if bar else ''}{count}")
    return lines


def inspection_summary(lengths: Integer[np.ndarray, "n"]) -> str:
    """Mean and some quantiles in one line."""
    names = {"median": 50, "90 %": 90, "95 %": 95, "99 %": 99, "longest": 100}
    # Of the upper kind: a limit of so many tokens holds that share of the rows.
    found = {name: int(np.percentile(lengths, q, method="higher")) for name, q in names.items()}
    return f"mean {lengths.mean():.1f}, " + ", ".join(f"{name} {x}" for name, x in found.items())


def share_over(lengths: Integer[np.ndarray, "n"], limit: int) -> float:
    """The share of rows of more than `limit` tokens."""
    return float((lengths > limit).mean())


def _text(ids: Sequence[int] | np.ndarray, tokenizer: Any) -> str:
    if not len(ids):
        return ""
    return tokenizer.decode(
        [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
