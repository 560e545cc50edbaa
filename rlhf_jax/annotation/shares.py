"""Probabilities as endpoints report them: which can be counted on, and what is wrong with the others."""

import math
from collections.abc import Sequence

_CLOSE = 1e-3  # Servers round; the sampled token is often listed twice.


def known_logprobs(
    alternatives: Sequence[tuple[str, float]], names: Sequence[str]
) -> tuple[dict[str, float], str]:
    """The log-probabilities of the exact tokens `names`, and what is wrong with them ("" for nothing).

    Wrong is what no probability can be: not a number, above 1, one token with two of them, more than 1 in sum.
    """
    known: dict[str, float] = {}
    for token, value in alternatives:
        if token not in names:
            continue
        if not isinstance(value, int | float) or math.isnan(value) or value > _CLOSE:
            return {}, f"the token {token!r} has the log-probability {value}, which is none"
        if not _same(known.get(token, value), value):
            return (
                {},
                f"the token {token!r} is listed with {known[token]:g} and {value:g}; which holds is unclear",
            )
        known[token] = value
    total = math.fsum(math.exp(min(value, 0.0)) for value in known.values())
    if total > 1.0 + 10 * _CLOSE:
        return {}, f"the probabilities of the tokens asked for add up to {total:.3g}"
    return known, ""


def _same(one: float, two: float) -> bool:
    return one == two or abs(one - two) <= _CLOSE
