"""AlpacaEval's table of evaluators: how annotators compare with a gold crowd, what they cost and what moves them.

Annotations are label rows: instruction, input, output_1, output_2, preference, and for costs price_usd or
price_per_example (dollars) and time_per_example (seconds) or latency_ms. A pair annotated several times, by
seed or by person, stands in several rows; the k-th row of a pair is its k-th annotation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.agreement import Biases, biases
from rlhf_jax.evaluation.measures.pair_order import Pair, one_way_round, pair_of
from rlhf_jax.evaluation.measures.win_rate import read_preferences


@dataclass(frozen=True)
class Share:
    """A number over n pairs; NaN over none."""

    value: float
    n: int


@dataclass(frozen=True)
class Evaluator:
    """One annotator's row. Percent, except as said.

    human_agreement: mean of 1 - |label - gold majority|, over single annotations. bias: how far the majority
    of its annotations is from the gold majority. variance: how far one annotation is from the majority of its
    others; NaN for one annotation a pair. spearman, pearson: of its win rates of the generators with the
    gold ones, in [-1, 1]. prefers_1: output_1. usd, seconds: per 1,000 annotations, NaN where unknown.
    """

    name: str
    human_agreement: Share
    bias: Share
    variance: Share
    spearman: Share
    pearson: Share
    biases: Biases
    prefers_1: Share
    usd: Share
    seconds: Share
    n_parsed: int
    n_rows: int


def evaluator(
    name: str,
    rows: Sequence[Mapping],
    gold: Sequence[Mapping],
    *,
    is_gold: bool = False,
    min_per_generator: int = 100,
    min_coverage: float = 0.8,
) -> Evaluator:
    """The row of an annotator's `rows` against the `gold` crowd's (AlpacaEval `analyze_evaluators`).

    The majority of several labels is their mode, or their median where some are graded; where two labels are
    equally frequent, every number is the mean over both choices (AlpacaEval draws one). is_gold: the rows are
    the gold ones: agreement is of one against the others' majority, bias is 0. Correlations are over the
    generators (`generator` or `generator_2`) with more than `min_per_generator` gold rows, if three or more.
    A pair that the gold rows have the other way round is turned, except where a place is what is measured.

    Raises UserError when fewer than `min_coverage` of the rows have a label, or no pair is in both.
    """
    labels = read_preferences([row["preference"] for row in rows], f"{name}: preference")
    parsed = int((~np.isnan(labels)).sum())
    if parsed == 0 or parsed < min_coverage * len(rows):
        raise UserError(
            f"{name}: {parsed} of {len(rows)} rows have a label; a comparison needs one and "
            f"{100 * min_coverage:g} %: annotate the missing ones again, or lower min_coverage"
        )
    gold = one_way_round(gold).rows
    as_gold = one_way_round(rows, gold).rows
    mine, theirs = _by_pair(as_gold), _by_pair(gold)
    if not mine.keys() & theirs.keys():
        raise UserError(f"{name}: none of its {len(mine)} pairs is among the {len(theirs)} gold ones")
    variance = one_against_the_rest(mine)
    agreement = variance if is_gold else _single_against_majority(mine, theirs)
    bias = Share(0.0, len(mine)) if is_gold else _majorities(mine, theirs)
    spearman, pearson = _correlations(as_gold, gold, min_per_generator)
    return Evaluator(
        name=name,
        human_agreement=Share(100 * agreement.value, agreement.n),
        bias=Share(bias.value if is_gold else 100 * (1 - bias.value), bias.n),
        variance=Share(100 * (1 - variance.value), variance.n),
        spearman=spearman,
        pearson=pearson,
        biases=_biases(_once(as_gold), rows),
        prefers_1=Share(100 * (2 - float(np.nanmean(labels))), parsed),
        usd=_per_thousand(rows, ("price_usd", "price_per_example"), 1.0),
        seconds=_seconds(rows),
        n_parsed=parsed,
        n_rows=len(rows),
    )


def one_against_the_rest(annotations: Mapping[Pair, Sequence[float]]) -> Share:
    """Mean score of each annotation against the majority of the pair's others; pairs with two or more."""
    width = max((len(labels) for labels in annotations.values()), default=0)
    split = [
        [(labels[k], [*labels[:k], *labels[k + 1 :]]) for labels in annotations.values() if k < len(labels)]
        for k in range(width)
    ]
    return _mean_over_numbers(split)


def _single_against_majority(mine: Mapping[Pair, list[float]], gold: Mapping[Pair, list[float]]) -> Share:
    width = max(len(labels) for labels in mine.values())
    shared = [(labels, gold[pair]) for pair, labels in mine.items() if pair in gold]
    return _mean_over_numbers(
        [[(labels[k], crowd) for labels, crowd in shared if k < len(labels)] for k in range(width)]
    )


def _mean_over_numbers(split: Sequence[Sequence[tuple[float, Sequence[float]]]]) -> Share:
    """AlpacaEval's expectation: the mean over annotation numbers k of the mean score over pairs.

    split[k] holds (k-th label, labels it is compared with) of every pair; n is the most pairs of any k.
    """
    means, pairs = [], 0
    for compared in split:
        choices = [(_majority([label]), _majority(others)) for label, others in compared]
        scores = [_score(a, b) for a, b in choices if a and b]
        means += [float(np.mean(scores))] if scores else []
        pairs = max(pairs, len(scores))
    return Share(float(np.mean(means)) if means else math.nan, pairs)


def _majorities(mine: Mapping[Pair, list[float]], gold: Mapping[Pair, list[float]]) -> Share:
    choices = [(_majority(mine[pair]), _majority(gold[pair])) for pair in mine if pair in gold]
    scores = [_score(a, b) for a, b in choices if a and b]
    return Share(float(np.mean(scores)) if scores else math.nan, len(scores))


def _majority(labels: Sequence[float]) -> tuple[float, ...]:
    """The most frequent labels, each as likely as the others; the median where some label is graded.

    Missing labels (NaN) have no vote; () where no label is left.
    """
    votes = [label for label in labels if not math.isnan(label)]
    if not votes:
        return ()
    if any(label not in (1.0, 2.0) for label in votes):
        return (float(np.median(votes)),)
    twos = sum(label == 2.0 for label in votes)
    return (1.0, 2.0) if 2 * twos == len(votes) else (2.0,) if 2 * twos > len(votes) else (1.0,)


def _score(a: Sequence[float], b: Sequence[float]) -> float:
    """1 - |a - b|, mean over the choices."""
    return 1 - float(np.mean([abs(x - y) for x, y in itertools.product(a, b)]))


def _by_pair(rows: Sequence[Mapping]) -> dict[Pair, list[float]]:
    """The labels of every pair, in the order of the rows; NaN where one is missing."""
    labels = read_preferences([row["preference"] for row in rows])
    found: dict[Pair, list[float]] = {}
    for row, label in zip(rows, labels, strict=True):
        found.setdefault(pair_of(row), []).append(float(label))
    return found


def _once(rows: Sequence[Mapping]) -> list[Mapping]:
    """The first row of every pair, as AlpacaEval takes it, that has a label."""
    labels = read_preferences([row["preference"] for row in rows])
    found: dict[Pair, Mapping] = {}
    for row, label in zip(rows, labels, strict=True):
        if not math.isnan(label):
            found.setdefault(pair_of(row), row)
    return list(found.values())


def _biases(once: Sequence[Mapping], rows: Sequence[Mapping]) -> Biases:
    """Length and lists over distinct pairs, the first place over all rows whose order is known."""
    texts = [[row[side] for row in once] for side in ("output_1", "output_2")]
    taste = biases([row["preference"] for row in once], *texts)
    shown = [row for row in rows if row.get("order") in ("12", "21")]
    if not shown:
        return taste
    texts = [[row[side] for row in shown] for side in ("output_1", "output_2")]
    switched = [row["order"] == "21" for row in shown]
    place = biases([row["preference"] for row in shown], *texts, switched=switched)
    return Biases(
        taste.prefers_longer,
        taste.n_longer,
        taste.prefers_list,
        taste.n_list,
        place.prefers_first,
        place.n_first,
    )


def _correlations(rows: Sequence[Mapping], gold: Sequence[Mapping], least: int) -> tuple[Share, Share]:
    """Spearman and Pearson correlation of win rates by generator."""
    mine, theirs = (dict(_rates(some, least if some is gold else 0)) for some in (rows, gold))
    shared = [name for name in theirs if name in mine]
    none = Share(math.nan, len(shared))
    x, y = [mine[name] for name in shared], [theirs[name] for name in shared]
    if len(shared) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return none, none
    from scipy import stats  # Here, because it takes half a second and every report imports this module.

    return tuple(Share(float(of(x, y).statistic), len(shared)) for of in (stats.spearmanr, stats.pearsonr))


def _rates(rows: Sequence[Mapping], least: int) -> Iterator[tuple[str | int, float]]:
    labels = read_preferences([row["preference"] for row in rows])
    by: dict[str | int, list[float]] = {}
    for row, label in zip(rows, labels, strict=True):
        name = _generator(row)
        if name is not None and not math.isnan(label):
            by.setdefault(name, []).append(float(label))
    yield from ((name, float(np.mean(found))) for name, found in by.items() if len(found) > least)


def _generator(row: Mapping) -> str | int | None:
    """Who wrote output_2, by text or number; None where that is not said."""
    for value in (row.get("generator"), row.get("generator_2")):
        if isinstance(value, str | int) and not isinstance(value, bool) and value not in ("", 0):
            return value
    return None


def _per_thousand(rows: Sequence[Mapping], names: Sequence[str], scale: float) -> Share:
    found = [next((x for name in names if (x := _number(row.get(name))) is not None), None) for row in rows]
    known = [value for value in found if value is not None]
    return Share(1000 * scale * float(np.mean(known)) if known else math.nan, len(known))


def _number(value: object) -> float | None:
    """A cost, also where a file has it as text; None for what is no finite number."""
    try:
        # True is the number 1 to Python, and no cost.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _seconds(rows: Sequence[Mapping]) -> Share:
    wall = _per_thousand(rows, ("time_per_example",), 1.0)
    return wall if wall.n else _per_thousand(rows, ("latency_ms",), 1e-3)
