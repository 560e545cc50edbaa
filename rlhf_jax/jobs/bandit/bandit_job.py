"""The bandit of "A Critical Evaluation of AI Feedback" (Sharma et al. 2024, figure 6), from samples to a figure.

Its finding: a student that is tuned on a strong teacher's samples is worth more than the student after RLAIF, which is
worth more than the student. `bandit_policies` is the experiment. Here it is run for several seeds; the numbers of the
first are shown, with means and intervals over all. The paper's notebook draws once, without a seed.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.files.tables import whole_file
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.bandit import bandit_policies as bandit
from rlhf_jax.jobs.bandit.bandit_report import draw_figure, report_page
from rlhf_jax.jobs.bandit.bandit_results import POLICIES, Bandit, results_json, results_text
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import one_writer, write_json
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import Needs

NEEDS = Needs()
_RATE = ranges.number(0, 1e4, above=True)
# A program holds arms x arms float32 numbers of every seed, and a loss of every step.
_STEPS, _DRAWN = ranges.whole(1, 10**6), ranges.whole(1, 10**7)
ranges.own_rows(
    "bandit",
    n_seeds=ranges.whole(1, 100),
    arms=ranges.whole(2, 1000),
    spread=ranges.number(1e-3),
    # The reward is divided by it.
    beta=ranges.number(1e-6),
    **{
        "teacher.peak": ranges.number(0),
        "teacher.samples": _DRAWN,
        "student.peak": ranges.number(0),
        "student.pairs": _DRAWN,
        "reward_model.steps": _STEPS,
        "reward_model.learning_rate": _RATE,
        "sft.steps": _STEPS,
        "sft.learning_rate": _RATE,
    },
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes bandit.json, bandit.csv (the first seed's curves), plots/bandit.png and report.html; prints the table."""
    ranges.check_ranges(config.to_dict())
    for role, peak in (("teacher", config.teacher.peak), ("student", config.student.peak)):
        if peak > config.arms - 1:
            raise UserError(
                f"{role}.peak: {peak}; the last of {config.arms} arms is {config.arms - 1}; use at most that, "
                "or more arms"
            )
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        folder, started = Path(workdir), time.monotonic()
        write_json(folder / "config.json", config.to_dict())
        found = run_bandit(config)
        seconds = time.monotonic() - started
        text = results_text(found)
        write_json(folder / "bandit.json", results_json(found))
        _write_curves(folder / "bandit.csv", found)
        draw_figure(found, folder / "plots" / "bandit.png")
        with whole_file(folder / "report.html") as partial:
            partial.write_text(report_page(found, config, seconds), encoding="utf-8")
        print(
            f"{_asked(config, found)}\n{text}\nin {seconds:.0f} s; report: {folder / 'report.html'}",
            flush=True,
        )


def run_bandit(config: ConfigDict) -> Bandit:
    """Draws the samples of every seed, fits both tables, and writes down RLAIF's policy."""
    K, seeds = config.arms, tuple(config.seed + i for i in range(config.n_seeds))
    teacher_K = bandit.bell_curve(K, config.teacher.peak, config.spread)
    student_K = bandit.bell_curve(K, config.student.peak, config.spread)
    drawn = [
        bandit.draw_samples(student_K, teacher_K, config.student.pairs, config.teacher.samples, seed)
        for seed in seeds
    ]
    pairs_SKK = np.stack([one.pairs_KK for one in drawn])
    taught_SK = np.stack([one.taught_K for one in drawn])
    by, at = config.reward_model, config.sft
    rewards = bandit.descend(bandit.pair_loss_of, pairs_SKK, K, by.steps, by.learning_rate)
    logits = bandit.descend(bandit.imitation_loss, taught_SK, K, at.steps, at.learning_rate)
    policies = {
        "teacher": np.tile(teacher_K, (len(seeds), 1)),
        "student": np.tile(student_K, (len(seeds), 1)),
        "rlaif": bandit.best_policy(student_K, rewards.table_SK, config.beta),
        "sft": bandit.softmax(logits.table_SK),
    }
    return Bandit(seeds, policies, rewards, logits, np.trace(pairs_SKK, axis1=1, axis2=2))


def _asked(config: ConfigDict, found: Bandit) -> str:
    return (
        f"bandit of {config.arms} arms, seed {config.seed}: {config.student.pairs:,} pairs of the student's samples, "
        f"{found.ties_S[0]:,} of them ties; {config.teacher.samples:,} samples of the teacher's; beta {config.beta:g}"
    )


def _write_curves(path: Path, found: Bandit) -> None:
    """One row for each arm, with every digit of the first seed's policies and learned reward."""
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("arm", "true_reward", *POLICIES, "learned_reward"))
        for arm, reward in enumerate(found.rewards.table_SK[0].tolist()):
            probabilities = (float(found.policies[name][0, arm]) for name in POLICIES)
            writer.writerow((arm, arm, *probabilities, reward))
