"""What can be said of a policy by its responses and its log-probs: lengths, ends, reward, KL, perplexity, accuracy.

Everything is given as numbers, one a response or a labelled pair, so that nothing here reads a model or a file. A value
that cannot be had (no reward model, no pairs) is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation.measures.reward_accuracy import GroupAccuracy, reward_accuracy


class ResponseNumbers(NamedTuple):
    """The responses of one policy to n prompts, in numbers.

    Attributes:
      tokens, characters: lengths; the tokens as they were sampled, the one that ends a response included.
      ended: whether the policy ended it by itself, and not `max_new_tokens`.
      rewards: of a reward model; NaN where it could not read one. None: there is no reward model.
      policy, reference: log-probs of a response's tokens, summed, in nats. None: they are not to be compared.
      other, other_tokens: the same of another language model, and how many tokens it read; NaN and 0 where it could
        not read a response.
    """

    tokens: np.ndarray
    characters: np.ndarray
    ended: np.ndarray
    rewards: np.ndarray | None = None
    policy: np.ndarray | None = None
    reference: np.ndarray | None = None
    other: np.ndarray | None = None
    other_tokens: np.ndarray | None = None


class PairNumbers(NamedTuple):
    """What a policy says of n labelled pairs; each column is (chosen, rejected), log-probs of a response summed.

    tokens: of each response as the policy reads it. reference: None where there is none.
    """

    policy: np.ndarray
    tokens: np.ndarray
    reference: np.ndarray | None = None


class Estimate(NamedTuple):
    """A mean over n values with its standard error, None with fewer than two."""

    value: float
    se: float | None
    n: int


class PolicyMeasures(NamedTuple):
    """A policy in numbers.

    Attributes:
      tokens, characters: mean, median and longest of the responses' lengths.
      ended: the share of responses that the policy ended by itself.
      reward: the mean score of those that a reward model could read.
      kl: KL(policy || reference) of a response in nats, estimated from what the policy sampled (k1: the mean of
        log pi - log pi_ref, summed over tokens), which is unbiased and may be below 0.
      perplexity: of another language model on the responses, exp of the mean NLL of all their tokens.
      perplexity_tokens: how many these are.
      mean_logprob: accuracy on labelled pairs of the mean log-prob of a token as a reward (Yuan et al. 2023).
      implicit_reward: accuracy of log pi - log pi_ref, summed over a response (Rafailov et al. 2023).
    """

    name: str
    responses: int
    tokens: tuple[float, float, int]
    characters: tuple[float, float, int]
    ended: float
    reward: Estimate | None
    kl: Estimate | None
    perplexity: float | None
    perplexity_tokens: int
    mean_logprob: GroupAccuracy | None
    implicit_reward: GroupAccuracy | None


def measure_policy(name: str, said: ResponseNumbers, pairs: PairNumbers | None = None) -> PolicyMeasures:
    """Measures a policy by its responses and, where there are any, labelled pairs."""
    kl = None
    if said.policy is not None and said.reference is not None:
        kl = mean_estimate(np.asarray(said.policy, np.float64) - said.reference)
    # Summed before dividing: a mean over responses of their perplexities would count a short one like a long one.
    read = 0 if said.other_tokens is None else int(said.other_tokens.sum())
    perplexity = None
    if read:
        perplexity = float(np.exp(-np.nansum(np.asarray(said.other, np.float64)) / read))
    mean_logprob = implicit = None
    if pairs is not None:
        mean_logprob = _accuracy(pairs.policy / np.maximum(pairs.tokens, 1))
        implicit = None if pairs.reference is None else _accuracy(pairs.policy - pairs.reference)
    return PolicyMeasures(
        name,
        len(said.tokens),
        _lengths(said.tokens),
        _lengths(said.characters),
        float(np.mean(said.ended)),
        None if said.rewards is None else mean_estimate(said.rewards[~np.isnan(said.rewards)]),
        kl,
        perplexity,
        read,
        mean_logprob,
        implicit,
    )


def mean_estimate(values: np.ndarray) -> Estimate | None:
    """The mean of independent values and its standard error; None without a value."""
    n = len(values)
    if not n:
        return None
    se = float(np.std(values, ddof=1, dtype=np.float64) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(np.mean(values, dtype=np.float64)), se, n)


def _lengths(values: np.ndarray) -> tuple[float, float, int]:
    return float(values.mean()), float(np.median(values)), int(values.max())


def _accuracy(scores_N2: np.ndarray) -> GroupAccuracy:
    return reward_accuracy(scores_N2[:, 0], scores_N2[:, 1]).overall


def flat_measures(found: PolicyMeasures) -> dict[str, Any]:
    """The measures as one row of plain values, as a CSV file has them; None where there is no value."""
    row: dict[str, Any] = {"name": found.name, "responses": found.responses}
    for unit in ("tokens", "characters"):
        row |= {
            f"{unit}_{what}": x
            for what, x in zip(("mean", "median", "max"), getattr(found, unit), strict=True)
        }
    row["ended"] = found.ended
    for what in ("reward", "kl"):
        value, se, n = getattr(found, what) or (None, None, 0)
        row |= {what: value, f"{what}_se": se, f"{what}_n": n}
    row |= {"perplexity": found.perplexity, "perplexity_tokens": found.perplexity_tokens}
    for what in ("mean_logprob", "implicit_reward"):
        group = getattr(found, what)
        low, high = group.interval if group else (None, None)
        row |= {
            f"{what}_accuracy": group.accuracy if group else None,
            f"{what}_low": low,
            f"{what}_high": high,
            f"{what}_pairs": group.n if group else 0,
        }
    return row


def policies_text(rows: Sequence[PolicyMeasures]) -> str:
    """A table for the terminal, a line for every policy."""
    titles = (
        "policy",
        "tokens",
        "ended",
        "reward",
        "KL (nats)",
        "perplexity",
        "mean log-prob",
        "implicit reward",
    )
    lines = [titles] + [
        (
            row.name,
            f"{row.tokens[0]:.1f}",
            f"{100 * row.ended:.1f} %",
            _said(row.reward, "+.3f"),
            _said(row.kl, ".3f"),
            "-" if row.perplexity is None else f"{row.perplexity:.2f}",
            _share(row.mean_logprob),
            _share(row.implicit_reward),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _said(found: Estimate | None, digits: str) -> str:
    if found is None:
        return "-"
    return f"{found.value:{digits}}" + ("" if found.se is None else f" ± {found.se:.3f}")


def _share(found: GroupAccuracy | None) -> str:
    if found is None:
        return "-"
    return f"{found.accuracy:.1f} % [{found.interval[0]:.1f}, {found.interval[1]:.1f}]"
