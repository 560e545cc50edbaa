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

Pair = tuple[str, ...]


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
    if config.gold:
        _against_gold(annotators, _labels(config.gold), config, found)
    for (a, rows_a), (b, rows_b) in itertools.combinations(annotators.items(), 2):
        mine, theirs = _first(rows_a), _first(rows_b)
        columns = _shared(mine, theirs)
        if not columns[0]:
            raise UserError(f"annotators: {a} and {b} label no pair in common; give labels of the same pairs")
        found.reliability[f"agreement of {a} and {b}"] = _agreement(*columns)
        found.reliability[f"Cohen's kappa, {a} and {b}"] = cohen_kappa(*columns, level="interval")
    if len(annotators) > 1:
        _among(annotators, found)


def _against_gold(
    annotators: Mapping[str, list[dict]], gold: list[dict], config: ConfigDict, found: Measured
) -> None:
    how = {"min_per_generator": config.min_per_generator, "min_coverage": config.min_coverage}
    for name, rows in annotators.items():
        found.evaluators.append(evaluator(name, rows, gold, **how))
        # Weighted by squared distance: with labels of 1 and 2 alone that is the plain kappa,
        # and graded labels that lie close together count as nearly equal, not as different.
        kappa = cohen_kappa(*_shared(_first(rows), _first(gold)), level="interval")
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
    if (crowd := _crowd(gold)) is not None:
        _of_crowd(crowd, f"within {GOLD}", found)


def _among(annotators: Mapping[str, list[dict]], found: Measured) -> None:
    """Measures all annotators as one crowd, over every pair that any of them labels."""
    firsts = [_first(rows) for rows in annotators.values()]
    pairs = list(dict.fromkeys(pair for labels in firsts for pair in labels))
    _of_crowd([[labels.get(pair) for pair in pairs] for labels in firsts], "among the annotators", found)


def _of_crowd(crowd: Sequence[Sequence[float | None]], where: str, found: Measured) -> None:
    """Fleiss' kappa over the pairs that have all labels, where labels are sides or draws; Krippendorff's alpha."""
    # Fleiss' kappa needs the same number of labels for every pair; Krippendorff's alpha allows missing ones.
    complete = [item for item in zip(*crowd, strict=True) if None not in item]
    if complete and all(label in _CATEGORIES for item in complete for label in item):
        found.reliability[f"Fleiss' kappa {where}"] = fleiss_kappa(list(zip(*complete, strict=True)))
    found.reliability[f"Krippendorff's alpha {where}"] = krippendorff_alpha(crowd, level="interval")


def _agreement(one: Sequence[float | None], two: Sequence[float | None]) -> Reliability:
    """Computes 1 minus the mean distance of the labels: the share of equal ones where all are 1 or 2."""
    gaps = [abs(a - b) for a, b in zip(one, two, strict=True) if a is not None and b is not None]
    value = 1.0 - math.fsum(gaps) / len(gaps) if gaps else math.nan
    return Reliability(value, len(gaps), 2 * len(gaps))


def _shared(mine: Mapping[Pair, float], theirs: Mapping[Pair, float]) -> list[list[float | None]]:
    shared = [pair for pair in mine if pair in theirs]
    return [[labels[pair] for pair in shared] for labels in (mine, theirs)]


def _labels(path: str) -> list[dict]:
    rows = read_table(path)
    require_columns(rows, (*PAIR, "preference"), path)
    usable = usable_labels(rows, path)
    if line := usable.line(path):
        print(line, flush=True)
    return usable.rows


def _pair(row: Mapping) -> Pair:
    return (row["instruction"], row.get("input") or "", row["output_1"], row["output_2"])


def _first(rows: Sequence[Mapping]) -> dict[Pair, float | None]:
    """Returns the first label of every pair."""
    # Reversed, since later items of a dict overwrite earlier ones.
    return {_pair(row): row["preference"] for row in reversed(rows)}


def _crowd(rows: Sequence[Mapping]) -> list[list[float | None]] | None:
    """Arranges labels as [annotation number][pair], None where missing; returns None for a crowd of one."""
    # The k-th label of every pair counts as the k-th annotation, as in the evaluator table, whoever gave it.
    by: dict[Pair, list[float | None]] = {}
    for row in rows:
        by.setdefault(_pair(row), []).append(row["preference"])
    width = max(map(len, by.values()))
    return [[x[k] if k < len(x) else None for x in by.values()] for k in range(width)] if width > 1 else None
