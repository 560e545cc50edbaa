"""What the doctor finds in an evaluation: in the runs that it names, its judges and labels, its reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from rlhf_jax.annotation.labels.labels_file import read_labels
from rlhf_jax.evaluation.doctor.examine_results import (
    Examined,
    RewardAccuracy,
    examine_results,
    place_taste,
    tastes,
)
from rlhf_jax.evaluation.doctor.judge_rules import JudgeTaste
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.agreement import biases
from rlhf_jax.evaluation.report.report_data import JudgeResult, ReportStage


def examine_evaluation(
    config: ConfigDict,
    *,
    board: Sequence[LeaderboardRow],
    judged: Mapping[str, Sequence[Mapping]],
    judges: Sequence[JudgeResult] = (),
    reward_model: object | None = None,
    stages: Sequence[ReportStage] = (),
) -> Examined:
    """Looks at everything that an evaluation knows.

    judged: method -> its labelled rows against the baseline. judges: agreement with the human of the labels that
    config.labels names. reward_model: a `true_utility.RewardModelAgreement`.
    """
    page = config.to_dict()
    return examine_results(
        stages,
        board=board,
        judges=[*tastes(judges), *_tastes_here(judged)],
        labels=read_labels(config.labels).rows if config.utility and config.labels else (),
        rewards=_rewards(reward_model),
        config=page,
    )


def _tastes_here(judged: Mapping[str, Sequence[Mapping]]) -> list[JudgeTaste]:
    """What those who judged the methods prefer, each by the orders that it was shown."""
    rows = [row for some in judged.values() for row in some if row.get("order") in ("12", "21")]
    # Rows of both orders together say nothing of the first place, and rows of somebody's own files may have no order.
    names = {str(row.get("pool") or row.get("annotator") or "judge") for row in rows}
    if not rows:
        return []
    found = biases(
        [row["preference"] for row in rows],
        [row["output_1"] for row in rows],
        [row["output_2"] for row in rows],
        switched=[row["order"] == "21" for row in rows],
    )
    return [place_taste(f"{', '.join(sorted(names)[:3])} (judging the methods)", found)]


def _rewards(model: object | None) -> list[RewardAccuracy]:
    if model is None:
        return []
    human, clear = model.human, model.clear
    clear_pairs = f"pairs whose true utilities are {model.margin:g} apart"
    return [
        RewardAccuracy(human.accuracy, model.human_longer.rate, human.n_total, "pairs of the human's labels"),
        RewardAccuracy(clear.rate, model.clear_longer.rate, clear.n, clear_pairs),
    ]
