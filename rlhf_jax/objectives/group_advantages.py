"""Advantages from the rewards of several responses to one prompt, instead of from a value model.

Rewards are [B], the N responses of a prompt next to each other. All results are float32 and constant to
differentiation. Groups and the batch are the global ones, whatever mesh they lie on.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, ScalarLike

from rlhf_jax.objectives.policy_gradient import whiten

BASELINES = ("none", "group", "leave_one_out")
SCALES = ("none", "group", "batch")
KL_PLACES = ("loss", "reward", "reward_to_go")


def advantages_of_groups(
    scores_B: Float[Array, " B"],
    kl_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    kl_coef: ScalarLike,
    *,
    samples: int,
    baseline: str,
    scale: str,
    kl_in: str,
) -> Float32[Array, "B R"]:
    """The advantage of each token, 0 where the mask is False.

    GRPO is baseline group, scale group; Dr. GRPO group, none; RLOO leave_one_out, none; REINFORCE++ none, batch, with
    the KL in reward_to_go; its variant with a baseline group, batch.

    kl_in: reward: a response's reward is its score less kl_coef times its whole KL, and it is one action (Ahmadian et
    al. 2024, eq. 5). reward_to_go: from the advantage of a token goes kl_coef times the KL from it on (Hu et al. 2025,
    eq. 9): what came before was not its doing. loss: not here.
    """
    mask_BR = mask_BR.astype(bool)
    penalty_BR = jnp.where(mask_BR, jnp.asarray(kl_coef, jnp.float32) * kl_BR.astype(jnp.float32), 0.0)
    rewards_B = scores_B.astype(jnp.float32)
    if kl_in == "reward":
        rewards_B = rewards_B - jnp.sum(penalty_BR, axis=1)
    advantages_B = group_advantages(rewards_B, samples, baseline=baseline, scaled=scale == "group")
    advantages_BR = jnp.broadcast_to(advantages_B[:, None], mask_BR.shape)
    if kl_in == "reward_to_go":
        advantages_BR = advantages_BR - jnp.cumsum(penalty_BR[:, ::-1], axis=1)[:, ::-1]
    return whiten(advantages_BR, mask_BR) if scale == "batch" else jnp.where(mask_BR, advantages_BR, 0.0)


def group_advantages(
    rewards_B: Float[Array, " B"], samples: int, *, baseline: str, scaled: bool
) -> Float32[Array, " B"]:
    """Rewards less a baseline: none, the group's mean, or the mean of the group's others.

    scaled: over the deviation of the group's rewards (that of a sample, over N - 1, as peers have it) + 1e-6; exactly 0
    in a group whose rewards are equal, where rounding would be all there is to divide.
    """
    rewards_GN = rewards_B.astype(jnp.float32).reshape(-1, samples)
    mean_G1 = jnp.mean(rewards_GN, axis=1, keepdims=True)
    centred_GN = jnp.where(_varied(rewards_GN), rewards_GN - mean_G1, 0.0)
    # r - (sum - r) / (N - 1) = (r - mean) * N / (N - 1), which loses fewer digits.
    advantages_GN = {
        "none": rewards_GN,
        "group": centred_GN,
        "leave_one_out": centred_GN * (samples / max(samples - 1, 1)),
    }[baseline]
    if scaled:
        variance_G1 = jnp.sum(jnp.square(centred_GN), axis=1, keepdims=True) / max(samples - 1, 1)
        advantages_GN = advantages_GN / (jnp.sqrt(variance_G1) + 1e-6)
    return advantages_GN.reshape(-1)


def varied_groups(scores_B: Float[Array, " B"], samples: int) -> Bool[Array, " B"]:
    """For each response whether the scores of its group differ: if not, the group says nothing (DAPO, section 3.2)."""
    varied_G1 = _varied(scores_B.astype(jnp.float32).reshape(-1, samples))
    return jnp.repeat(varied_G1[:, 0], samples)


def _varied(x_GN: Array) -> Array:
    # Equal responses may be scored with other rounding, some 1e-7 of the score.
    spread_G1 = jnp.max(x_GN, axis=1, keepdims=True) - jnp.min(x_GN, axis=1, keepdims=True)
    return spread_G1 > 1e-6 * jnp.max(jnp.abs(x_GN), axis=1, keepdims=True)
