"""Looks at what an evaluation knows beside the curves of runs: judges, labels, the reward model, the leaderboard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.evaluation.doctor.examine import examine_run, looked_for
from rlhf_jax.evaluation.doctor.findings import Finding, Rule, worst_first
from rlhf_jax.evaluation.doctor.judge_rules import BOARD_RULES, JUDGE_RULES, JudgeTaste, without_noise
from rlhf_jax.evaluation.doctor.label_rules import LABEL_RULES, count_contradictions
from rlhf_jax.evaluation.doctor.preference_rules import RULES as PREFERENCE_RULES
from rlhf_jax.evaluation.doctor.preference_rules import below_longer
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.agreement import Biases
from rlhf_jax.evaluation.report.report_data import JudgeResult, ReportStage

_LONGER = next(rule for rule in PREFERENCE_RULES if "longer wins" in rule.name)


class RewardAccuracy(NamedTuple):
    """A reward model's accuracy beside that of "longer wins", in percent of the same n pairs; of: which pairs."""

    accuracy: float
    longer: float
    n: int
    of: str


class Examined(NamedTuple):
    """All findings, the worst first, and what was looked for: subject -> names of rules."""

    findings: tuple[Finding, ...]
    looked_for: Mapping[str, Sequence[str]]


NOTHING = Examined((), {})


def examine_results(
    stages: Sequence[ReportStage] = (),
    *,
    board: Sequence[LeaderboardRow] = (),
    judges: Sequence[JudgeTaste] = (),
    labels: Sequence[Mapping] = (),
    rewards: Sequence[RewardAccuracy] = (),
    config: Mapping[str, Any] | None = None,
) -> Examined:
    """Looks at everything that is given; config: the evaluation's settings."""
    found: list[Finding] = []
    looked: dict[str, list[str]] = {}
    for stage in stages:
        if stage.rows:
            found += [about(one, stage.name) for one in examine_run(stage.rows, stage.settings)]
            looked[stage.name] = looked_for(stage.rows)
    sides = [
        ("judges", JUDGE_RULES, judges),
        ("labels", LABEL_RULES, count_contradictions(labels) if labels else ()),
        ("reward model", [_of_pairs(_LONGER)], rewards),
        ("leaderboard", BOARD_RULES, board if any(row.length_controlled for row in board) else ()),
    ]
    for subject, rules, evidence in sides:
        if evidence:
            each = (rule.finding(evidence, config) for rule in rules)
            found += [about(one, subject) for one in each if one is not None]
            looked[subject] = [rule.name for rule in rules]
    return Examined(tuple(worst_first(found)), looked)


def about(finding: Finding, subject: str) -> Finding:
    """The finding with its subject."""
    return dataclasses.replace(finding, subject=subject)


def tastes(results: Sequence[JudgeResult]) -> list[JudgeTaste]:
    """The judges of an agreement table with what they prefer; the first row is that of all labels.

    Rows of a human and of rules are no judges: no order was shown to them.
    """
    human = next((one for one in results if one.name == "another human" and one.biases is not None), None)
    longer = (
        without_noise(human.biases.prefers_longer, human.agreement.agreement)
        if human is not None
        else math.nan
    )
    judges = [one for one in results if one.biases is not None and one.biases.n_first]
    return [JudgeTaste(one.name, one.biases, longer, alone=one is judges[0]) for one in judges]


def place_taste(name: str, found: Biases) -> JudgeTaste:
    """What a judge of methods prefers, as far as its labels can tell: outputs of a better method may be longer."""
    return JudgeTaste(name, dataclasses.replace(found, prefers_longer=math.nan, n_longer=0))


def _of_pairs(rule: Rule) -> Rule:
    """The rule on a reward model in training, for one whose scores of pairs are known."""

    def look(rewards: Sequence[RewardAccuracy]) -> Any:
        # All kinds of pairs have to say it: where outputs are nearly equal, any model is a coin.
        seen = [below_longer(one.accuracy, one.longer, one.n, one.of) for one in rewards if one.n]
        return seen[0] if seen and all(seen) else None

    return dataclasses.replace(rule, look=look, metrics=())
