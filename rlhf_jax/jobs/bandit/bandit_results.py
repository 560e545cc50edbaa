"""What the bandit's seeds came to: the numbers of the first, their means and intervals over all, and the finding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation.claims.published_claims import Claim
from rlhf_jax.evaluation.claims.seeded_values import Estimate, estimate
from rlhf_jax.evaluation.claims.verdicts import BY_SIGN, NOT, OPEN, SHOWS, Verdict, estimate_text
from rlhf_jax.jobs.bandit.bandit_policies import Fit

# In the order of the figure's legend.
POLICIES = {"teacher": "teacher", "sft": "SFT", "rlaif": "RLAIF", "student": "student"}
FINDING = "SFT on the teacher's samples above RLAIF above the student"
_PUBLISHED = "figure 6, without numbers"
# What the finding says of two policies at a time.
CLAIMS = (
    Claim("SFT on the teacher's samples is above RLAIF", "greater", ("sft", "rlaif"), published=_PUBLISHED),
    Claim("RLAIF is above the student", "greater", ("rlaif", "student"), published=_PUBLISHED),
)


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


class Number(NamedTuple):
    """A number of every seed: the first one's, and the mean over seeds with its interval."""

    first: float
    over: Estimate


class PolicyNumbers(NamedTuple):
    """A policy: its mean true reward, and of the first seed the arm it chooses most, and how often."""

    reward: Number
    arm: int
    peak: float


def over_seeds(values_S: np.ndarray) -> Number:
    """Sums up one number of every seed [S]."""
    values_S = np.asarray(values_S, np.float64)
    return Number(float(values_S[0]), estimate(values_S[:, None]))


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


def gap(found: Bandit, claim: Claim) -> Number:
    """By how much the first policy of a claim is above the second, pairwise over seeds."""
    a_S, b_S = (true_rewards(found.policies[name]) for name in claim.of)
    return over_seeds(a_S - b_S)


def claims_held(found: Bandit) -> list[Verdict]:
    """Whether each of `CLAIMS` shows; a single seed has no interval, and decides by its own numbers."""
    out = []
    for claim in CLAIMS:
        ahead = gap(found, claim)
        sign = ahead.over.sign if len(found.seeds) > 1 else 1 if ahead.first > 0 else -1
        told = f"{' - '.join(POLICIES[name] for name in claim.of)} {mean_text(ahead, 4, signed=True)}"
        out.append(Verdict(claim, BY_SIGN[sign], told))
    return out


def finding_text(found: Bandit) -> str:
    """Says in a sentence whether the published finding shows."""
    student_S, rlaif_S, sft_S = (true_rewards(found.policies[name]) for name in ("student", "rlaif", "sft"))
    holds = int(((sft_S > rlaif_S) & (rlaif_S > student_S)).sum())
    words = {one.verdict for one in claims_held(found)}
    how = SHOWS if words == {SHOWS} else NOT if NOT in words else OPEN
    return f"The published finding, {FINDING}, {how}: in {holds} of {len(found.seeds)} seeds."


def reward_range(found: Bandit) -> np.ndarray:
    """By how much the highest learned reward of each seed [S] is above the lowest."""
    return np.ptp(found.rewards.table_SK.astype(np.float64), axis=1)


def mean_text(number: Number, digits: int, *, signed: bool = False) -> str:
    """A mean over seeds with its interval, as text."""
    low, high = number.over.interval
    # Teacher and student are known, so that seeds do not differ.
    known = Estimate(number.over.mean, math.nan, (math.nan, math.nan), 1, 1)
    return estimate_text(known if low == high else number.over, digits, signed=signed)


def results_text(found: Bandit) -> str:
    """The table that the job prints."""
    several = len(found.seeds) > 1
    head = f"{'':8}   mean true reward   arg-max arm   peak probability"
    lines = [head + (f"   mean true reward over {len(found.seeds)} seeds [95 %]" if several else "")]
    for name, one in policy_numbers(found).items():
        row = f"{POLICIES[name]:8}   {one.reward.first:16.4f}   {one.arm:11d}   {one.peak:16.4f}"
        lines.append(row + (f"   {mean_text(one.reward, 4)}" if several else ""))
    table_K, seeds = found.rewards.table_SK[0], ", over seeds {}" if several else ""
    size, last = over_seeds(reward_range(found)), over_seeds(found.rewards.losses_ST[:, -1])
    lines += [
        f"learned reward: max - min = {size.first:.4f} (highest at arm {table_K.argmax()}, lowest at arm "
        f"{table_K.argmin()}){seeds.format(mean_text(size, 4))}",
        f"reward model's final loss: {last.first:.4f}{seeds.format(mean_text(last, 4))}; that of the last step, before "
        f"its update ({last.first:.6f}); after it {found.rewards.after_S[0]:.6f}",
        *(f"{one.claim.says}: {one.verdict}; {one.evidence}" for one in claims_held(found)),
        finding_text(found),
    ]
    return "\n".join(lines)


def results_json(found: Bandit) -> dict[str, Any]:
    """All numbers, of every seed too; null where there is no interval."""
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
            "says": finding_text(found),
            "claims": [
                {"claim": one.claim.says, "verdict": one.verdict, "gap": _plain(gap(found, one.claim))}
                for one in claims_held(found)
            ],
        },
    }


def _plain(number: Number) -> dict[str, float | None]:
    low, high = number.over.interval
    found = {"first": number.first, "mean": number.over.mean, "low": low, "high": high}
    return {name: None if math.isnan(x) else x for name, x in found.items()}
