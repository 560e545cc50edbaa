"""Learning from ratings: a reward model's score of one response against the number that an annotator gave it.

`weight_B` weights responses: 0 for one that only fills up a batch (it counts nowhere, even if its numbers are NaN).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.objectives.preference import Weights, counted
from rlhf_jax.objectives.reduce import Mean, masked_mean


def rating_regression(
    score_B: Float[Array, " B"], target_B: Float[Array, " B"], weight_B: Weights
) -> dict[str, Mean]:
    """(target - sigmoid(score))^2, target in [0, 1]: the rating's place on its scale (Bansal et al. 2023).

    Their code trains on (rating - 1) / 6 of ratings from 1 to 7. `ratings/predicted` is the mean of the sigmoid.
    """
    score_B, target_B = counted(weight_B, score_B, target_B)
    predicted_B = jax.nn.sigmoid(score_B)
    return {
        "loss": masked_mean(jnp.square(target_B - predicted_B), weight_B),
        **_metrics(predicted_B, target_B, weight_B),
    }


def rating_ordinal(
    score_B: Float[Array, " B"],
    level_B: Int[Array, " B"],
    thresholds_K: Float[Array, " K"],
    weight_B: Weights,
) -> dict[str, Mean]:
    """Cumulative logits (McCullagh 1980): -log P(level), where P(level > k) = sigmoid(score - thresholds[k]).

    level_B: 0 to K, the place of the rating on a scale of K + 1 levels. thresholds_K: increasing. `ratings/predicted`
    is the expected place on the scale, in [0, 1], which is the mean of these K probabilities.
    """
    (score_B,) = counted(weight_B, score_B)
    K = thresholds_K.shape[0]
    above_BK = score_B[:, None] - thresholds_K
    # Of the lowest level P(level > -1) = 1 and of the highest P(level > K) = 0, which have no threshold.
    lower_B = jnp.take_along_axis(above_BK, jnp.clip(level_B - 1, 0)[:, None], axis=1)[:, 0]
    upper_B = jnp.take_along_axis(above_BK, jnp.clip(level_B, max=K - 1)[:, None], axis=1)[:, 0]
    # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)): no difference of numbers
    # that round to 1. At the ends of the scale the last term, and one of the others, is not there.
    inner_B = (level_B > 0) & (level_B < K)
    gap_B = jnp.where(inner_B, lower_B - upper_B, 1.0)
    loss_B = (
        jnp.where(level_B > 0, jax.nn.softplus(-lower_B), 0.0)
        + jnp.where(level_B < K, jax.nn.softplus(upper_B), 0.0)
        - jnp.where(inner_B, jnp.log(-jnp.expm1(-gap_B)), 0.0)
    )
    predicted_B = jax.nn.sigmoid(above_BK).mean(1)
    return {"loss": masked_mean(loss_B, weight_B), **_metrics(predicted_B, level_B / K, weight_B)}


def even_thresholds(K: int) -> Float[Array, " K"]:
    """What `increasing` takes so that a score of 0 finds all K + 1 levels equally likely."""
    share_K = jnp.arange(1, K + 1) / (K + 1)
    wanted_K = jnp.log(share_K) - jnp.log1p(-share_K)
    # The inverse of softplus.
    return jnp.concatenate([wanted_K[:1], jnp.log(jnp.expm1(jnp.diff(wanted_K)))])


def _metrics(predicted_B: Array, target_B: Array, weight_B: Array) -> dict[str, Mean]:
    return {
        "ratings/predicted": masked_mean(predicted_B, weight_B),
        "ratings/given": masked_mean(target_B, weight_B),
        "ratings/error": masked_mean(jnp.abs(predicted_B - target_B), weight_B),
    }
