"""Computes what only the embedded world can tell: true utilities, and who agrees with its human and with the truth.

Rates are in percent and travel with their n. The human is `microfarm.human.prefer`: noisy choice by utility.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.annotation.answers.answers import NOISE, OK
from rlhf_jax.annotation.labels.labels_file import read_labels
from rlhf_jax.data.records.records import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.agreement import (
    Calibration,
    agreement,
    biases,
    calibration,
    labels_from_scores,
)
from rlhf_jax.evaluation.measures.win_rate import wilson_interval
from rlhf_jax.evaluation.report.report_data import JudgeResult
from rlhf_jax.microfarm import human
from rlhf_jax.microfarm.families import parse
from rlhf_jax.microfarm.utility import utility
from rlhf_jax.training.run.missing_inputs import made_by

HUMANS = ("h0", "h1")
# Labels; a rate over fewer says nothing about one judge of a pool.
_FEWEST = 20


@dataclass(frozen=True)
class Rate:
    """A share in percent of n cases with its Wilson interval at 95 %; NaN over no case."""

    rate: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class RewardModelAgreement:
    """A reward model on the pairs of the scored responses.

    clear, clear_longer: share of clear pairs (utilities at least `margin` apart) that it, and the rule
    "longer output wins", order as the true utility does. human, human_longer: both against the human's labels
    on all pairs. result: its row in the table of judges. left_out: reason -> rows without a pair.
    """

    margin: float
    clear: Rate
    clear_longer: Rate
    human: Calibration
    human_longer: Rate
    result: JudgeResult
    left_out: dict[str, int]


@dataclass(frozen=True)
class PairCounts:
    """Two outputs of each of N prompts, what two humans prefer [N], and by how much utilities differ [N]."""

    outputs_1: list[str]
    outputs_2: list[str]
    human_1: np.ndarray
    human_2: np.ndarray
    # The utility of output_2 minus that of output_1.
    gaps: np.ndarray

    @property
    def longer(self) -> np.ndarray:
        """Returns the labels that the rule "longer output wins" gives."""
        return labels_from_scores([len(x) for x in self.outputs_1], [len(x) for x in self.outputs_2])


def utilities(
    prompts: Sequence[tuple[str, str]], texts: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Computes the true utility of every method's outputs [N], in [0, 1]."""
    return {
        name: np.array([utility(*prompt, text) for prompt, text in zip(prompts, outputs, strict=True)])
        for name, outputs in texts.items()
    }


def families(prompts: Sequence[tuple[str, str]]) -> list[str]:
    """Finds the instruction family of every prompt [N]; "" for one from outside the world."""
    tasks = (parse(*prompt) for prompt in prompts)
    return [task.family if task else "" for task in tasks]


def judge_agreement(path: str, *, margin: float, seed: int) -> tuple[list[JudgeResult], str]:
    """Compares the labels of a labels.parquet with the human's: (results, a line on which rows were used).

    Results in this order: the judges' own labels, all usable labels (with the flipped ones, as trainers read
    them), another human, "longer output wins", then each judge of a pool with enough labels. Empty when no
    label is usable. Raises UserError when the file is missing or not of the annotate job.
    """
    rows = read_labels(path).rows
    used = [row for row in rows if row["status"] in (OK, NOISE) and row["preference"] is not None]
    others = Counter(row["status"] for row in rows) - Counter(row["status"] for row in used)
    line = f"labels: {len(used)} of {len(rows)} usable; left out: {_counts(others)}"
    if not used:
        return [], line
    pairs = _pairs(
        [(row["instruction"], row["input"], row["output_1"], row["output_2"]) for row in used], seed
    )
    # Clear pairs only: where outputs are nearly as good, even the human's label is close to a coin flip.
    clear = np.abs(pairs.gaps) >= margin
    # Whether the judge was shown output_2 first, for its position bias.
    switched = np.array([row["order"] == "21" for row in used])
    results = []
    for name, labels, where, asked in _label_columns(used, pairs):
        at = np.flatnonzero(where)
        if len(at):
            ones, twos = [pairs.outputs_1[i] for i in at], [pairs.outputs_2[i] for i in at]
            shown = switched[at] if asked else None
            agreed = agreement(labels[at], pairs.human_1[at], clear=clear[at])
            results.append(JudgeResult(name, agreed, biases(labels[at], ones, twos, switched=shown)))
    return results, line


def _label_columns(
    rows: Sequence[Mapping], pairs: PairCounts
) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    """Yields (name, labels [N], which rows [N], whether a judge saw an order) of all that is compared."""
    labels = np.array([row["preference"] for row in rows], np.float64)
    # "" for labels of noise, for which no judge was asked.
    annotator = np.array([row["annotator"] or "" for row in rows])
    every, judged = np.ones(len(rows), bool), np.array([row["status"] == OK for row in rows])
    pool = rows[0]["pool"]
    yield pool, labels, judged, True
    if not judged.all():
        yield f"{pool} with label noise", labels, every, False
    yield "another human", pairs.human_2, every, False
    yield "longer output wins", pairs.longer, every, False
    # A judge of a pool gets a row of its own; a judge alone has one already, under the pool's name.
    names = sorted(set(annotator[judged]))
    for name in names if len(names) > 1 else []:
        if (mine := judged & (annotator == name)).sum() >= _FEWEST:
            yield name, labels, mine, True


def reward_model(path: str, *, margin: float, seed: int) -> tuple[RewardModelAgreement | None, str]:
    """Compares a reward model's order of the first two responses to each prompt with the truth and the human.

    path: scores.parquet of the score job. Also returns a line on which rows were used. None when no row has
    two different scored responses. Raises UserError when the file is missing or lacks a column.
    """
    rows = read_table(path, made_by=made_by("score", "scores"))
    missing = [name for name in ("instruction", "responses", "scores") if name not in rows[0]]
    if missing:
        raise UserError(
            f"scored: {path} has no column {missing[0]!r}; write it with: {made_by('score', 'scores')}"
        )
    left_out: Counter = Counter()
    used = []
    for row in rows:
        reason = _unusable(row)
        left_out.update([reason] if reason else [])
        used += [] if reason else [row]
    line = f"scored: {len(used)} pairs of {len(rows)} prompts; left out: {_counts(left_out)}"
    if not used:
        return None, line
    pairs = _pairs(
        [(row["instruction"], row.get("input") or "", *row["responses"][:2]) for row in used], seed
    )
    one, two = (np.array([row["scores"][k] for row in used], np.float64) for k in (0, 1))
    labels, clear = labels_from_scores(one, two), np.abs(pairs.gaps) >= margin
    # The sign of the gap as a label in [1, 2]: a gap above 0 says that output_2 is better.
    truth = labels_from_scores(np.zeros(len(used)), pairs.gaps)
    found = RewardModelAgreement(
        margin=margin,
        clear=_rate(labels[clear], truth[clear]),
        clear_longer=_rate(pairs.longer[clear], truth[clear]),
        human=calibration(one, two, pairs.human_1),
        human_longer=_rate(pairs.longer, pairs.human_1),
        result=JudgeResult(
            "reward model, on its own pairs",
            agreement(labels, pairs.human_1, clear=clear),
            biases(labels, pairs.outputs_1, pairs.outputs_2),
        ),
        left_out=dict(left_out),
    )
    return found, line


def _pairs(quads: Sequence[tuple[str, str, str, str]], seed: int) -> PairCounts:
    """Makes pairs of (instruction, input, output_1, output_2), with both humans' labels and the utility gaps."""
    chosen = [np.array([human.prefer(*q, seed=seed, human=who) for q in quads], np.float64) for who in HUMANS]
    gaps = np.array([utility(*q[:2], q[3]) - utility(*q[:3]) for q in quads])
    return PairCounts([q[2] for q in quads], [q[3] for q in quads], *chosen, gaps)


def _rate(labels: np.ndarray, truth: np.ndarray) -> Rate:
    """Computes the share of labels that agree with the truth; an undecided label is half right."""
    n = len(labels)
    if n == 0:
        return Rate(math.nan, (math.nan, math.nan), 0)
    share = float((1 - np.abs(labels - truth)).mean())
    return Rate(100 * share, wilson_interval(share, n), n)


def _unusable(row: Mapping) -> str:
    """Why a row has no pair of scored responses; "" when it has one."""
    responses, scores = row["responses"] or [], row["scores"] or []
    if len(responses) < 2 or len(scores) < 2:
        return "fewer than two responses"
    if any(score is None or not math.isfinite(score) for score in scores[:2]):
        return "no score"
    return "identical responses" if responses[0] == responses[1] else ""


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in Counter(counter).most_common()) or "none"
