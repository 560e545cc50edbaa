"""Compares annotators by their labels: each with a gold crowd, and all with one another, beyond chance agreement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from rlhf_jax.data.files.tables import read_table, require_columns
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.agreement import labels_from_scores
from rlhf_jax.evaluation.measures.evaluators import evaluator
from rlhf_jax.evaluation.measures.pair_order import Pair, one_way_round, pair_of
from rlhf_jax.evaluation.measures.reliability import (
    Reliability,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)
from rlhf_jax.jobs.label_rows import usable_labels
from rlhf_jax.jobs.measure.measure_results import Measured
from rlhf_jax.training.run.missing_inputs import named_paths

PAIR = ("instruction", "output_1", "output_2")
GOLD, LONGEST = "gold", "longer output wins"
# What a label can be for Fleiss' kappa, which knows no distance: one output, the other, or a draw.
_CATEGORIES = (1.0, 1.5, 2.0)


def compare_annotators(config: ConfigDict, found: Measured) -> None:
    """Fills in the evaluator table, where there are gold labels, and the agreement beyond chance.

    That is of every annotator with the first gold labels, of every two annotators, within the gold crowd and among all
    annotators.

    Raises UserError when gold is named without annotators, or one annotator without gold.
    """
    annotators = {name: _labels(path) for name, path in named_paths(config.annotators, "annotators").items()}
    if not annotators:
        raise UserError("annotators: names no file; gold labels are what annotators are measured against")
    if not config.gold and len(annotators) < 2:
        raise UserError(
            "gold: names no file; give gold labels, or two or more annotators, who are then compared with each other"
        )
    gold = _labels(config.gold) if config.gold else []
    labels, gold_one_way = _first_labels(annotators, gold)
    if gold:
        _against_gold(annotators, labels, gold, config, found)
        if (crowd := _crowd(gold_one_way)) is not None:
            _of_crowd(crowd, f"within {GOLD}", found)
    for (a, mine), (b, theirs) in itertools.combinations(labels.items(), 2):
        columns = _shared(a, mine, b, theirs)
        found.reliability[f"agreement of {a} and {b}"] = _agreement(*columns)
        found.reliability[f"Cohen's kappa, {a} and {b}"] = cohen_kappa(*columns, level="interval")
    if len(labels) > 1:
        _among(labels, found)


def _first_labels(
    annotators: Mapping[str, list[dict]], gold: list[dict]
) -> tuple[dict[str, dict[Pair, float]], list[Mapping]]:
    """The first label of every pair by each annotator, in the order of outputs that gold, or who comes first, has.

    Also returns the gold rows, each pair in one order, and prints what is turned, labelled again or without a partner.
    """
    gold_one_way = _one_way(GOLD, gold, ())
    known = list(gold_one_way)
    pairs = {pair_of(row) for row in gold_one_way}
    labels = {}
    for name, rows in annotators.items():
        one_way = _one_way(name, rows, known)
        known += one_way
        mine = {pair_of(row) for row in one_way}
        if lonely := len(pairs - mine):
            print(f"{name}: {lonely} of {len(pairs)} gold pairs are not among its {len(mine)}", flush=True)
        labels[name] = _first(one_way)
    return labels, gold_one_way


def _one_way(name: str, rows: Sequence[Mapping], known: Sequence[Mapping]) -> list[Mapping]:
    found = one_way_round(rows, known)
    for line in found.lines(name):
        print(line, flush=True)
    labelled = [pair_of(row) for row in found.rows if row["preference"] is not None]
    if again := len(labelled) - len(set(labelled)):
        print(
            f"{name}: {again} labels are further ones of their pair; agreement of two and Cohen's kappa take the first",
            flush=True,
        )
    return found.rows


def _against_gold(
    annotators: Mapping[str, list[dict]],
    labels: Mapping[str, Mapping[Pair, float]],
    gold: list[dict],
    config: ConfigDict,
    found: Measured,
) -> None:
    gold_labels = _first(one_way_round(gold).rows)
    how = {"min_per_generator": config.min_per_generator, "min_coverage": config.min_coverage}
    for name, rows in annotators.items():
        found.evaluators.append(evaluator(name, rows, gold, **how))
        # Weighted by squared distance: with labels of 1 and 2 alone that is the plain kappa,
        # and graded labels that lie close together count as nearly equal, not as different.
        kappa = cohen_kappa(*_shared(name, labels[name], GOLD, gold_labels), level="interval")
        found.reliability[f"Cohen's kappa, {name} and {GOLD}"] = kappa
    found.evaluators.append(evaluator(GOLD, gold, gold, is_gold=True, **how))
    # The rule that a longer output wins, as an annotator of its own: judges have to be better than that.
    by_length = labels_from_scores(*([len(row[f"output_{k}"]) for row in gold] for k in (1, 2)))
    longest = [
        {name: row.get(name) for name in (*PAIR, "input", "generator", "generator_2")} | {"preference": label}
        for row, label in zip(gold, by_length, strict=True)
    ]
    found.evaluators.append(evaluator(LONGEST, longest, gold, **how))
    found.evaluators.sort(key=lambda row: -row.human_agreement.value)


def _among(labels: Mapping[str, Mapping[Pair, float]], found: Measured) -> None:
    """Measures all annotators as one crowd, over every pair that any of them labels."""
    pairs = list(dict.fromkeys(pair for some in labels.values() for pair in some))
    crowd = [[some.get(pair) for pair in pairs] for some in labels.values()]
    _of_crowd(crowd, "among the annotators", found)


def _of_crowd(crowd: Sequence[Sequence[float | None]], where: str, found: Measured) -> None:
    """Fleiss' kappa over the pairs that have all labels, where labels are sides or draws; Krippendorff's alpha."""
    # Fleiss' kappa needs the same number of labels for every pair; Krippendorff's alpha allows missing ones.
    complete = [item for item in zip(*crowd, strict=True) if None not in item]
    if complete and all(label in _CATEGORIES for item in complete for label in item):
        found.reliability[f"Fleiss' kappa {where}"] = fleiss_kappa(list(zip(*complete, strict=True)))
    found.reliability[f"Krippendorff's alpha {where}"] = krippendorff_alpha(crowd, level="interval")


def _agreement(one: Sequence[float], two: Sequence[float]) -> Reliability:
    """Computes 1 minus the mean distance of the labels: the share of equal ones where all are 1 or 2."""
    gaps = [abs(a - b) for a, b in zip(one, two, strict=True)]
    return Reliability(1.0 - math.fsum(gaps) / len(gaps), len(gaps), 2 * len(gaps))


def _shared(a: str, mine: Mapping[Pair, float], b: str, theirs: Mapping[Pair, float]) -> list[list[float]]:
    """The labels of the pairs that both a and b label. Raises UserError where there are none."""
    shared = [pair for pair in mine if pair in theirs]
    if not shared:
        raise UserError(f"annotators: {a} and {b} label no pair in common; give labels of the same pairs")
    return [[labels[pair] for pair in shared] for labels in (mine, theirs)]


def _labels(path: str) -> list[dict]:
    rows = read_table(path)
    require_columns(rows, (*PAIR, "preference"), path)
    usable = usable_labels(rows, path)
    if line := usable.line(path):
        print(line, flush=True)
    return usable.rows


def _first(rows: Sequence[Mapping]) -> dict[Pair, float]:
    """Returns the first label of every pair that has one; a row that failed may stand before it."""
    found: dict[Pair, float] = {}
    for row in rows:
        if row["preference"] is not None:
            found.setdefault(pair_of(row), row["preference"])
    return found


def _crowd(rows: Sequence[Mapping]) -> list[list[float | None]] | None:
    """Arranges labels as [annotation number][pair], None where missing; returns None for a crowd of one."""
    # The k-th label of every pair counts as the k-th annotation, whoever gave it: no measure here asks who did.
    by: dict[Pair, list[float]] = {}
    for row in rows:
        if row["preference"] is not None:
            by.setdefault(pair_of(row), []).append(row["preference"])
    width = max(map(len, by.values()), default=0)
    return [[x[k] if k < len(x) else None for x in by.values()] for k in range(width)] if width > 1 else None
