"""What the bandit's seeds came to: the numbers of the first, their means and intervals over all, and the finding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from rlhf_jax.jobs.bandit.bandit_policies import Fit

# In the order of the figure's legend.
POLICIES = {"teacher": "teacher", "sft": "SFT", "rlaif": "RLAIF", "student": "student"}
FINDING = "SFT on the teacher's samples above RLAIF above the student"


class Bandit(NamedTuple):
    """All seeds. S: seeds, K: arms.

    Attributes:
      seeds: their numbers; the first is the one that is shown.
      policies: probabilities [S, K] by the names of `POLICIES`; teacher and student are the same for every seed.
      rewards: the fit of the reward model.
      logits: the fit of SFT.
      ties_S: pairs of one arm with itself.
    """

    seeds: tuple[int, ...]
    policies: Mapping[str, np.ndarray]
    rewards: Fit
    logits: Fit
    ties_S: np.ndarray


class Over(NamedTuple):
    """The first seed's number, and the mean over seeds with its 95 % interval by Student's t; NaN with one seed."""

    first: float
    mean: float
    low: float
    high: float


class PolicyNumbers(NamedTuple):
    """A policy: its mean true reward, and of the first seed the arm it chooses most, and how often."""

    reward: Over
    arm: int
    peak: float


class Finding(NamedTuple):
    """In how many of the seeds mean true rewards are in the published order, and their two gaps."""

    shows: int
    seeds: int
    sft_above_rlaif: Over
    rlaif_above_student: Over


def over_seeds(values_S: np.ndarray) -> Over:
    """Sums up one number of every seed [S]."""
    values_S = np.asarray(values_S, np.float64)
    mean, S = float(values_S.mean()), len(values_S)
    if S == 1:
        return Over(mean, mean, math.nan, math.nan)
    reach = float(stats.t.ppf(0.975, S - 1) * values_S.std(ddof=1) / math.sqrt(S))
    return Over(float(values_S[0]), mean, mean - reach, mean + reach)


def true_rewards(policy_SK: np.ndarray) -> np.ndarray:
    """Mean true rewards [S]: arm k is worth k."""
    return policy_SK @ np.arange(policy_SK.shape[-1])


def policy_numbers(found: Bandit) -> dict[str, PolicyNumbers]:
    """The numbers of every policy, in the order of `POLICIES`."""
    return {
        name: PolicyNumbers(
            over_seeds(true_rewards(found.policies[name])),
            int(found.policies[name][0].argmax()),
            float(found.policies[name][0].max()),
        )
        for name in POLICIES
    }


def finding(found: Bandit) -> Finding:
    """Holds the mean true rewards against the published order, seed by seed."""
    student_S, rlaif_S, sft_S = (true_rewards(found.policies[name]) for name in ("student", "rlaif", "sft"))
    shows_S = (sft_S > rlaif_S) & (rlaif_S > student_S)
    gaps = over_seeds(sft_S - rlaif_S), over_seeds(rlaif_S - student_S)
    return Finding(int(shows_S.sum()), len(shows_S), *gaps)


def verdict(one: Finding) -> str:
    """Says in a sentence whether the published finding shows."""
    gaps = f"{one.sft_above_rlaif.first:+.2f} and {one.rlaif_above_student.first:+.2f}"
    how = "shows" if one.shows == one.seeds else "does not show" if not one.shows else "does not always show"
    return (
        f"The published finding, {FINDING}, {how}: in {one.shows} of {one.seeds} seeds; in the first, "
        f"mean true rewards are {gaps} apart."
    )


def reward_range(found: Bandit) -> np.ndarray:
    """By how much the highest learned reward of each seed [S] is above the lowest."""
    return np.ptp(found.rewards.table_SK.astype(np.float64), axis=1)


def shown(over: Over, digits: int) -> str:
    """A mean over seeds with its interval, as text."""
    # Teacher and student are known: they have no interval either.
    if math.isnan(over.low) or over.low == over.high:
        return f"{over.mean:.{digits}f}"
    return f"{over.mean:.{digits}f} [{over.low:.{digits}f}, {over.high:.{digits}f}]"


def results_text(found: Bandit) -> str:
    """The table that the job prints."""
    several = len(found.seeds) > 1
    head = f"{'':8}   mean true reward   arg-max arm   peak probability"
    lines = [head + (f"   mean true reward over {len(found.seeds)} seeds [95 %]" if several else "")]
    for name, one in policy_numbers(found).items():
        row = f"{POLICIES[name]:8}   {one.reward.first:16.4f}   {one.arm:11d}   {one.peak:16.4f}"
        lines.append(row + (f"   {shown(one.reward, 4)}" if several else ""))
    table_K, seeds = found.rewards.table_SK[0], ", over seeds {}" if several else ""
    size, last = over_seeds(reward_range(found)), over_seeds(found.rewards.losses_ST[:, -1])
    lines += [
        f"learned reward: max - min = {size.first:.4f} (highest at arm {table_K.argmax()}, lowest at arm "
        f"{table_K.argmin()}){seeds.format(shown(size, 4))}",
        f"reward model's final loss: {last.first:.4f}{seeds.format(shown(last, 4))}; that of the last step, before "
        f"its update ({last.first:.6f}); after it {found.rewards.after_S[0]:.6f}",
        verdict(finding(found)),
    ]
    return "\n".join(lines)


def results_json(found: Bandit) -> dict[str, Any]:
    """All numbers, of every seed too; null where there is no interval."""
    gaps = finding(found)
    return {
        "seeds": list(found.seeds),
        "policies": {
            name: {
                "mean_true_reward": _plain(one.reward),
                "argmax_arm": one.arm,
                "peak_probability": one.peak,
            }
            | {"mean_true_reward_of_seeds": true_rewards(found.policies[name]).tolist()}
            for name, one in policy_numbers(found).items()
        },
        "reward_model": {
            "range": _plain(over_seeds(reward_range(found))),
            "highest_arm": int(found.rewards.table_SK[0].argmax()),
            "lowest_arm": int(found.rewards.table_SK[0].argmin()),
            "loss_of_last_step": _plain(over_seeds(found.rewards.losses_ST[:, -1])),
            "loss_after_it": _plain(over_seeds(found.rewards.after_S)),
            "ties": _plain(over_seeds(found.ties_S)),
        },
        "sft": {
            "loss_of_last_step": _plain(over_seeds(found.logits.losses_ST[:, -1])),
            "loss_after_it": _plain(over_seeds(found.logits.after_S)),
        },
        "finding": {
            "published": FINDING,
            "shows_in_seeds": gaps.shows,
            "sft_above_rlaif": _plain(gaps.sft_above_rlaif),
            "rlaif_above_student": _plain(gaps.rlaif_above_student),
            "says": verdict(gaps),
        },
    }


def _plain(over: Over) -> dict[str, float | None]:
    return {name: None if math.isnan(x) else x for name, x in over._asdict().items()}
