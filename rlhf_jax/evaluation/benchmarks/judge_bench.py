"""JudgeBench (Tan et al. 2024): whether a judge finds the right one of two responses, shown in both orders.

Of the two decisions on a pair each that agrees with the label counts +1, each for the other side -1, a tie or no answer
0; the pair is correct above 0, incorrect below, and undecided else. Accuracy is the share of correct pairs of all: an
undecided pair is not correct. Where every pair was judged in one order only, as reward models are, its one decision
counts. The four parts are those of the paper, by what a pair's source begins with; any other source gets a row of its
own, and counts overall, as in the benchmark's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.win_rate import wilson_interval

PARTS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
OVERALL = "overall"
_OTHER = {"A>B": "B>A", "B>A": "A>B"}


class Decided(NamedTuple):
    """A pair's source, its label ("A>B" or "B>A"), and the decisions on it, both in the label's order; None: none."""

    source: str
    label: str
    decisions: Sequence[str | None]


@dataclass(frozen=True)
class PartScore:
    """Accuracy in percent on a part's n pairs, with a Wilson interval at 95 %.

    n_tied: pairs that are neither correct nor incorrect. n_both: correct in both orders. n_inconsistent: with two
    different decisions. n_missing: pairs that lack a decision.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    n: int
    n_correct: int
    n_incorrect: int
    n_tied: int
    n_both: int
    n_inconsistent: int
    n_missing: int


@dataclass(frozen=True)
class JudgeBench:
    """A judge on JudgeBench. n_orders: 2, or 1 where no pair was judged in a second order."""

    name: str
    n_orders: int
    parts: tuple[PartScore, ...]


def judge_bench(name: str, pairs: Sequence[Decided], *, min_coverage: float = 0.8) -> JudgeBench:
    """Measures the decisions of a judge, overall last.

    Raises UserError where fewer than `min_coverage` of the pairs have all their decisions: the benchmark's rule counts
    the others against the judge, whatever it was that failed.
    """
    n_orders = max((len(pair.decisions) for pair in pairs), default=0)
    complete = sum(len(pair.decisions) == n_orders and None not in pair.decisions for pair in pairs)
    if not n_orders or complete < max(1, min_coverage * len(pairs)):
        raise UserError(
            f"benchmark: {name}: {complete if n_orders else 0} of {len(pairs)} pairs have a decision in each order; a "
            f"number needs one pair and {100 * min_coverage:g} %: judge the missing ones, or lower min_coverage"
        )
    parts: dict[str, list[Decided]] = {part: [] for part in PARTS.values()}
    for pair in pairs:
        known = next((part for start, part in PARTS.items() if pair.source.startswith(start)), None)
        parts.setdefault(known or f"other: {pair.source or 'no source'}", []).append(pair)
    scores = [_part(part, some, n_orders) for part, some in parts.items() if some]
    return JudgeBench(name, n_orders, (*scores, _part(OVERALL, pairs, n_orders)))


def _part(name: str, pairs: Sequence[Decided], n_orders: int) -> PartScore:
    points = [_points(pair) for pair in pairs]
    n, n_correct = len(pairs), sum(x > 0 for x in points)
    n_incorrect = sum(x < 0 for x in points)
    padded = [[*pair.decisions, *[None] * (n_orders - len(pair.decisions))] for pair in pairs]
    return PartScore(
        name,
        100 * n_correct / n,
        wilson_interval(n_correct / n, n),
        n,
        n_correct,
        n_incorrect,
        n - n_correct - n_incorrect,
        sum(all(d == pair.label for d in found) for pair, found in zip(pairs, padded, strict=True)),
        sum(len(set(found)) > 1 for found in padded),
        sum(None in found for found in padded),
    )


def _points(pair: Decided) -> int:
    right, wrong = pair.label, _OTHER[pair.label]
    return sum((decision == right) - (decision == wrong) for decision in pair.decisions)
