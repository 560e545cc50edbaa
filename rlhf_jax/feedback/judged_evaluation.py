"""The win rate of a policy against a baseline at every evaluation of its run, by a judge whose answers are kept.

A preference counts as in AlpacaEval: 1 for the policy's response, 0 for the baseline's, 1/2 for a tie, and the
probability where the judge tells one. The baseline is a file of outputs, or what the policy itself answered before its
first step. It is counted here and not in `evaluation`, which compares finished files and knows their intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.annotation.parsing.contracts import PAIRWISE
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.asked_rows import Question, asked, check_pool, prompt_key
from rlhf_jax.feedback.reward_sources import read_baseline
from rlhf_jax.feedback.running_judge import RunningJudge, asking_of
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import at

FIELD = "win_rate.judges"


class JudgedEvaluation:
    """Measures the responses of an evaluation.

    page: the group win_rate. records: of the prompts that are sampled at every evaluation, in their order.
    """

    def __init__(self, page: Mapping[str, Any], seed: int, workdir: str, records: list[dict]) -> None:
        path = page["baseline"]
        self._records = records[: page["max_instructions"] or len(records)]
        self._first = at(workdir) / "samples" / "000000.jsonl"
        self._judge = RunningJudge(page["judges"], asking_of(page), workdir, group="win_rate", seed=seed)
        check_pool(self._judge.pool, FIELD, PAIRWISE)
        self._baseline = read_baseline(path, "win_rate.baseline", self._records) if path else None

    def __call__(self, outputs: list[str], step: int) -> dict[str, float]:
        """win_rate from 0 to 1, how many responses have no judgment, and judge_usd, in dollars, where known.

        outputs: on process 0 the responses to all prompts of the evaluation; the others hear what it found.
        """
        found = self._measured(outputs, step) if startup.is_main() else None
        return startup.from_main("win rate", found, timeout_s=startup.SLOW_S)

    def _measured(self, outputs: list[str], step: int) -> dict[str, float]:
        records, outputs = self._records, outputs[: len(self._records)]
        rows = [
            Question(asked(record) | {"output_1": other, "output_2": output}, (None, b))
            for b, (record, other, output) in enumerate(
                zip(records, self._others(outputs, step), outputs, strict=True)
            )
        ]
        found = self._judge.ask(rows, len(outputs))
        scores = [score for score, able in zip(found.scores, found.readable, strict=True) if able]
        if not scores:
            raise UserError(
                f"{FIELD}: no judgment of {len(outputs)} of {self._judge.pool.name} can be read; use another"
            )
        told = {
            "win_rate": (math.fsum(scores) / len(scores) + 1) / 2,
            "win_rate_unjudged": float(len(outputs) - len(scores)),
        }
        return told | ({"judge_usd": math.fsum(found.usd)} if self._judge.priced else {})

    def _others(self, outputs: list[str], step: int) -> list[str]:
        """The baseline's outputs, in the order of the records."""
        if self._baseline is not None:
            return [self._baseline[prompt_key(record)] for record in self._records]
        # A run that goes on finds its first answers among its samples.
        if step == 0:
            return outputs
        if not self._first.exists():
            raise UserError(
                f"win_rate.baseline: no {self._first}, the answers before the first step; give a file of outputs"
            )
        lines = self._first.read_text().splitlines()[: len(self._records)]
        return [json.loads(line)["output"] for line in lines]


def judged_evaluation(config: ConfigDict, workdir: str, records: list[dict]) -> JudgedEvaluation | None:
    """Opens what measures the win rate; None where the page names no judge for it."""
    page = config.win_rate.to_dict()
    return JudgedEvaluation(page, config.seed, workdir, list(records)) if page["judges"] else None
