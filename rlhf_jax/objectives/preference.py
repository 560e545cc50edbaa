"""Learning from pairs: the Bradley-Terry reward model, and what its losses and those of policies share.

`weight_B` weights pairs: 0 for a pair that only fills up a batch (it counts nowhere, even if its numbers are
NaN), 1 otherwise, or any non-negative weight. Every metric is a mean over pairs with the same weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from rlhf_jax.objectives.reduce import Mean, masked_mean

Weights = Bool[Array, " B"] | Real[Array, " B"]


def sequence_logprob(logprobs_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """Log-probability of each row's masked tokens: their sum, not their mean; 0 for an empty row."""
    return jnp.sum(jnp.where(mask_BT, logprobs_BT.astype(jnp.float32), 0.0), axis=1)


def bradley_terry(
    chosen_B: Float[Array, " B"],
    rejected_B: Float[Array, " B"],
    weight_B: Weights,
    *,
    margin_B: Float[Array, " B"] | None = None,
    centre_coef: float = 0.0,
) -> dict[str, Mean]:
    """The reward model's loss on pairs, -log sigmoid(chosen - rejected - margin), after Bradley and Terry (1952).

    `chosen_B` and `rejected_B` are the rewards of the two responses of each pair. A tie (equal rewards) is
    not an accurate pair: a constant reward model scores 0 in `rewards/accuracies`, not 1/2.
    margin_B: by how much the chosen reward should be above the other (Touvron et al. 2023, eq. 2).
    centre_coef: the weight of (chosen + rejected)^2, which keeps rewards around 0 (Eisenstein et al. 2023): differences
    alone leave their mean open.
    """
    chosen_B, rejected_B = counted(weight_B, chosen_B, rejected_B)
    below_B = rejected_B - chosen_B
    if margin_B is not None:
        below_B = below_B + counted(weight_B, margin_B)[0]
    # softplus(-x) is -log sigmoid(x) without the log of a sigmoid that has rounded to 0.
    loss_B = jax.nn.softplus(below_B)
    if centre_coef:
        loss_B = loss_B + centre_coef * jnp.square(chosen_B + rejected_B)
    return {"loss": masked_mean(loss_B, weight_B), **reward_metrics(chosen_B, rejected_B, weight_B)}


def reward_metrics(chosen_B: Array, rejected_B: Array, weight_B: Array) -> dict[str, Mean]:
    """The metrics of pairs that have a reward for either side; a tie is not accurate."""
    return {
        "rewards/chosen": masked_mean(chosen_B, weight_B),
        "rewards/rejected": masked_mean(rejected_B, weight_B),
        "rewards/margins": masked_mean(chosen_B - rejected_B, weight_B),
        "rewards/accuracies": masked_mean(chosen_B > rejected_B, weight_B),
    }


def counted(weight_B: Array, *xs_B: Array) -> tuple[Array, ...]:
    """The arrays in float32, with 0 in rows of weight 0: set before any arithmetic, or 0 * NaN reaches the gradient."""
    return tuple(jnp.where(weight_B != 0, x_B.astype(jnp.float32), 0.0) for x_B in xs_B)
