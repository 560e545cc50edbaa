"""Distance between policy and reference: estimators from samples, and the controller of its price."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, ScalarLike

from rlhf_jax.objectives.reduce import Mean, masked_mean

ESTIMATORS = ("k1", "k2", "k3")
"""Estimators of KL(policy || reference), from Schulman, "Approximating KL divergence" (2020)."""

CLIP_ERROR = 0.2
"""How far from target a relative KL error still counts (Ziegler et al. 2019, section 2.2)."""


def token_kl(
    logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    estimator: str = "k1",
) -> Float32[Array, "B R"]:
    """Per-token estimate of KL(policy || reference) at tokens sampled from the policy (nats), 0 at pads.

    With d = log policy - log reference: k1 = d, unbiased, of either sign; k2 = d^2 / 2, biased, low variance;
    k3 = exp(-d) - 1 + d, unbiased and never negative.

    AlpacaFarm clamps k1 at 0 per token. We do not: max(d, 0) overstates the KL, most of all where the policy
    has hardly moved, and the rewards no longer add up to score - kl_coef * KL.

    These are meant for rewards and metrics. As a loss, differentiated through the log-probabilities alone,
    only k2 has the gradient of the KL: k1's is 0 in expectation, k3's is that of KL(reference || policy).

    Raises:
      ValueError: for an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; choose one of {', '.join(ESTIMATORS)}")
    difference_BR = logprobs_BR.astype(jnp.float32) - ref_logprobs_BR.astype(jnp.float32)
    d_BR = jnp.where(mask_BR, difference_BR, 0.0)  # all three are 0 at d = 0
    if estimator == "k1":
        return d_BR
    if estimator == "k2":
        return 0.5 * jnp.square(d_BR)
    return jnp.expm1(-d_BR) + d_BR


def sequence_kl(kl_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Mean:
    """KL per response: summed over its tokens, averaged over rows that have any. TRL's `objective/kl`."""
    kl_B = jnp.sum(jnp.where(mask_BR, kl_BR.astype(jnp.float32), 0.0), axis=1)
    return masked_mean(kl_B, jnp.any(mask_BR, axis=1))


def adaptive_kl_coef(
    kl_coef: ScalarLike,
    sequence_kl: ScalarLike,
    *,
    target: ScalarLike,
    responses: ScalarLike,
    horizon: ScalarLike,
) -> Float32[Array, ""]:
    """kl_coef * (1 + responses / horizon * clip(sequence_kl / target - 1, -0.2, 0.2)): a proportional controller.

    `sequence_kl` is the mean per-response sum (`sequence_kl` above) of this rollout, not the per-token mean;
    `target` is in nats per response. `responses` of this rollout over `horizon`, which is counted in responses too
    (Ziegler et al. 2019, section 2.2, and TRL: 10,000), is AlpacaFarm's k_beta (0.1 at 512 responses: 5,120).
    """
    error = jnp.clip(jnp.asarray(sequence_kl, jnp.float32) / target - 1.0, -CLIP_ERROR, CLIP_ERROR)
    return jnp.asarray(kl_coef, jnp.float32) * (1.0 + responses / horizon * error)
