"""Losses of a policy on pairs, the family of direct preference optimisation, and on single responses (KTO).

Every loss of pairs scores both responses and compares the scores. A score is the log-ratio of policy and reference, or
the policy's log-prob where there is no reference, in nats of a whole response or of its average token. `LOSSES` says
which, and how scores are compared. `weight_B` weights rows as in `preference`, and everything is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real, ScalarLike

from rlhf_jax.objectives.preference import counted, reward_metrics
from rlhf_jax.objectives.reduce import Mean, masked_mean

Weights = Bool[Array, " B"] | Real[Array, " B"]


class PairLogprobs(NamedTuple):
    """What losses read of a batch of pairs.

    Attributes:
      chosen_B, rejected_B: the policy's log-prob of either response, summed over its tokens.
      chosen_tokens_B, rejected_tokens_B: how many tokens those are, the end included.
      ref_chosen_B, ref_rejected_B: the same sums under the reference; None where there is no reference.
    """

    chosen_B: Float[Array, " B"]
    rejected_B: Float[Array, " B"]
    chosen_tokens_B: Real[Array, " B"]
    rejected_tokens_B: Real[Array, " B"]
    ref_chosen_B: Float[Array, " B"] | None = None
    ref_rejected_B: Float[Array, " B"] | None = None


class Strengths(NamedTuple):
    """The numbers of a page that comparisons read; each says which in its row of `LOSSES`."""

    beta: ScalarLike
    label_smoothing: ScalarLike
    simpo_gamma: ScalarLike


# How the scores of both sides [B] become a loss [B]. softplus(-z) is -log sigmoid(z) without the log of a sigmoid that
# has rounded to 0, and softplus(z) = softplus(-z) + z, so smoothed losses need one softplus only.


def _sigmoid(chosen_B: Array, rejected_B: Array, by: Strengths) -> Array:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z): DPO (Rafailov et al. 2023, eq. 7), and cDPO where e > 0."""
    z_B = by.beta * chosen_B - by.beta * rejected_B
    return jax.nn.softplus(-z_B) + by.label_smoothing * z_B


def _robust(chosen_B: Array, rejected_B: Array, by: Strengths) -> Array:
    """(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2e): Chowdhury et al. 2024; unbiased under flips."""
    z_B = by.beta * chosen_B - by.beta * rejected_B
    return jax.nn.softplus(-z_B) - by.label_smoothing / (1 - 2 * by.label_smoothing) * z_B


def _squared(chosen_B: Array, rejected_B: Array, by: Strengths) -> Array:
    """(h - 1 / (2 beta))^2: identity preference optimisation (Azar et al. 2023)."""
    return (chosen_B - rejected_B - 1 / (2 * by.beta)) ** 2


def _hinge(chosen_B: Array, rejected_B: Array, by: Strengths) -> Array:
    """max(0, 1 - z): SLiC's hinge on log-ratios (Zhao et al. 2023; Liu et al. 2023), as TRL's."""
    return jax.nn.relu(1 - (by.beta * chosen_B - by.beta * rejected_B))


def _simpo(chosen_B: Array, rejected_B: Array, by: Strengths) -> Array:
    """-log sigmoid(beta (chosen - rejected) - gamma) of mean log-probs: Meng et al. 2024, eq. 6; smoothed as in TRL."""
    z_B = by.beta * (chosen_B - rejected_B) - by.simpo_gamma
    return jax.nn.softplus(-z_B) + by.label_smoothing * z_B


def _odds_ratio(chosen_B: Array, rejected_B: Array, by: Strengths) -> Array:
    """-beta log sigmoid(log odds(chosen) - log odds(rejected)): Hong et al. 2024, eq. 7, beta being their lambda."""
    return by.beta * jax.nn.softplus(-log_odds_ratio(chosen_B, rejected_B))


class PreferenceLoss(NamedTuple):
    """A row of `LOSSES`.

    Attributes:
      compare: (scores of the chosen, of the rejected, strengths) -> the loss of each pair.
      mean: whether a score is that of the average token of a response; otherwise that of the whole.
      reference: whether a score is measured from a reference.
      nll: whether the mean NLL of the chosen response is part of the loss by definition.
      smoothed: whether it reads label_smoothing.
    """

    compare: Callable[[Array, Array, Strengths], Array]
    mean: bool = False
    reference: bool = True
    nll: bool = False
    smoothed: bool = False


LOSSES = {
    "sigmoid": PreferenceLoss(_sigmoid, smoothed=True),
    # Length-normalised DPO (Lambert et al. 2024, Tulu 3): TRL's sigmoid_norm, open-instruct's dpo_norm.
    "sigmoid_mean": PreferenceLoss(_sigmoid, mean=True, smoothed=True),
    "robust": PreferenceLoss(_robust, smoothed=True),
    "hinge": PreferenceLoss(_hinge),
    # The paper, OpenRLHF and the first DPO code write sums; TRL and LLaMA-Factory average over tokens. 1 / (2 beta) is
    # nats of a response in one and nats of a token in the other, so a beta of one means nothing to the other.
    "ipo_sum": PreferenceLoss(_squared),
    "ipo_mean": PreferenceLoss(_squared, mean=True),
    "simpo": PreferenceLoss(_simpo, mean=True, reference=False, smoothed=True),
    "orpo": PreferenceLoss(_odds_ratio, mean=True, reference=False, nll=True),
}
IMPORTANCE = ("none", "rejected", "wpo")
NLL = ("mean", "sum")


def pair_loss(
    pair: PairLogprobs,
    weight_B: Weights,
    *,
    beta: ScalarLike,
    loss: str = "sigmoid",
    label_smoothing: ScalarLike = 0.0,
    simpo_gamma: ScalarLike = 0.0,
    sft_coef: float = 0.0,
    sft_nll: str = "mean",
    importance: str = "none",
) -> dict[str, Mean]:
    """The loss of pairs, one of `LOSSES`, with what may be laid over any of them.

    label_smoothing: e, the assumed share of flipped labels.
    sft_coef: times the NLL of the chosen response is added: of its average token with sft_nll "mean" (RPO, Pang et al.
      2024), of the whole with "sum" (dpo-rlaif's sft_reg). ORPO has the former with weight 1, and reads neither.
    importance: "rejected" weights each pair's loss, without gradient, by pi / pi_ref of the rejected response
      (dpo-rlaif's importance_correction; it has no bound). "wpo" weights by how likely the policy would say both:
      the geometric mean of pi over the tokens of the one, times that of the other (Zhou et al. 2024, as open-instruct
      has it). The NLL keeps its own weight.

    While policy and reference are equal sigmoid and robust losses are ln 2 for every e. `rewards/*` are beta * score,
    from the same reference as the loss or none. `logps/*` are sums for every loss, `nll_loss` is the NLL that is added.
    """
    row, found = LOSSES[loss], _without_padding(pair, weight_B)
    chosen_B, rejected_B = found.chosen_B, found.rejected_B
    if row.reference and found.ref_chosen_B is not None:
        # Differences of like numbers first: exactly 0 where policy == reference, so step 0 is exactly ln 2.
        chosen_B, rejected_B = chosen_B - found.ref_chosen_B, rejected_B - found.ref_rejected_B
    if row.mean:
        chosen_B, rejected_B = chosen_B / found.chosen_tokens_B, rejected_B / found.rejected_tokens_B
    loss_B = row.compare(chosen_B, rejected_B, Strengths(beta, label_smoothing, simpo_gamma))
    more = {}
    if importance != "none":
        trust_B = jax.lax.stop_gradient(_importance(found, importance))
        loss_B = trust_B * loss_B
        more["importance"] = masked_mean(trust_B, weight_B)
    if row.nll or sft_coef:
        whole = not row.nll and sft_nll == "sum"
        nll_B = -found.chosen_B if whole else -found.chosen_B / found.chosen_tokens_B
        loss_B = loss_B + (1.0 if row.nll else sft_coef) * nll_B
        more["nll_loss"] = masked_mean(nll_B, weight_B)
    return {
        "loss": masked_mean(loss_B, weight_B),
        **reward_metrics(beta * chosen_B, beta * rejected_B, weight_B),
        "logps/chosen": masked_mean(found.chosen_B, weight_B),
        "logps/rejected": masked_mean(found.rejected_B, weight_B),
        **more,
    }


def kto(
    policy_B: Float[Array, " B"],
    ref_B: Float[Array, " B"],
    z0: Float[Array, ""] | Float[Array, " B"],
    desirable_B: Bool[Array, " B"],
    weight_B: Weights,
    *,
    beta: ScalarLike,
    desirable_weight: ScalarLike = 1.0,
    undesirable_weight: ScalarLike = 1.0,
) -> dict[str, Mean]:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024) on summed log-probs of single responses.

    With r = log pi(y|x) - log pi_ref(y|x) the loss of a desirable response is w_D (1 - sigmoid(beta (r - z0))), of an
    undesirable one w_U (1 - sigmoid(beta (z0 - r))), the mean taken over all rows. `z0`, the point from which gains
    count, comes from `kto_z0`; no gradient goes through it. `rewards/*` are beta * r of either kind of rows, and
    `rewards/accuracies` is the share of rows that lie on their own side of z0.
    """
    policy_B, ref_B = counted(weight_B, policy_B, ref_B)
    rewards_B, zero_B = beta * (policy_B - ref_B), beta * jax.lax.stop_gradient(z0) + jnp.zeros_like(policy_B)
    gain_B = jnp.where(desirable_B, rewards_B - zero_B, zero_B - rewards_B)
    # 1 - sigmoid(x) is sigmoid(-x), which does not round to 0 while it is small.
    loss_B = jnp.where(desirable_B, desirable_weight, undesirable_weight) * jax.nn.sigmoid(-gain_B)
    weight_B = weight_B.astype(jnp.float32)
    sides = {
        "chosen": jnp.where(desirable_B, weight_B, 0.0),
        "rejected": jnp.where(desirable_B, 0.0, weight_B),
    }
    return {
        "loss": masked_mean(loss_B, weight_B),
        **{f"rewards/{side}": masked_mean(rewards_B, of_B) for side, of_B in sides.items()},
        "rewards/accuracies": masked_mean(gain_B > 0, weight_B),
        **{f"logps/{side}": masked_mean(policy_B, of_B) for side, of_B in sides.items()},
        "kl": masked_mean(zero_B / beta, weight_B),
    }


def kto_z0(policy_B: Float[Array, " B"], ref_B: Float[Array, " B"], weight_B: Weights) -> Float[Array, ""]:
    """KTO's estimate of KL(pi || pi_ref), at least 0: the mean log-ratio of responses to other prompts, in nats.

    Of a whole batch: means of parts, each cut off at 0, would have another mean.
    """
    mean = masked_mean(policy_B - ref_B, weight_B)
    return jnp.maximum(0.0, mean.sum / jnp.maximum(mean.weight, 1e-9))


def log_odds_ratio(chosen_B: Float[Array, " B"], rejected_B: Float[Array, " B"]) -> Float[Array, " B"]:
    """log(odds(p) / odds(q)), odds(p) = p / (1 - p), of log p and log q, mean log-probs of a token (ORPO, eq. 4)."""
    return (chosen_B - rejected_B) - (_log_not(chosen_B) - _log_not(rejected_B))


def _log_not(logp_B: Array) -> Array:
    """log(1 - exp(x)) of x < 0, without loss near either end (Maechler 2012)."""
    # A token of probability 1 has no odds. Cut off before exp and log, or the branch that is not taken gives NaN.
    logp_B = jnp.minimum(logp_B, -1e-6)
    near_B = logp_B > -0.6931472
    far_B = jnp.where(near_B, -1.0, logp_B)
    return jnp.where(near_B, jnp.log(-jnp.expm1(jnp.where(near_B, logp_B, -0.1))), jnp.log1p(-jnp.exp(far_B)))


def _importance(pair: PairLogprobs, kind: str) -> Array:
    if kind == "wpo":
        return jnp.exp(pair.chosen_B / pair.chosen_tokens_B + pair.rejected_B / pair.rejected_tokens_B)
    return jnp.exp(pair.rejected_B - pair.ref_rejected_B)


def _without_padding(pair: PairLogprobs, weight_B: Array) -> PairLogprobs:
    """The pair in float32, with log-probs of 0 in rows of weight 0, and no response of 0 tokens to divide by."""
    sums = (pair.chosen_B, pair.rejected_B)
    tokens = [jnp.maximum(x_B, 1) for x_B in counted(weight_B, pair.chosen_tokens_B, pair.rejected_tokens_B)]
    reference = () if pair.ref_chosen_B is None else counted(weight_B, pair.ref_chosen_B, pair.ref_rejected_B)
    return PairLogprobs(*counted(weight_B, *sums), *tokens, *reference)
