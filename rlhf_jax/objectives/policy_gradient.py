"""The losses of proximal policy optimisation (Schulman et al. 2017), and a measure of the values.

Arrays are [B, R] over response tokens, `mask_BR` True on real ones. What comes from the rollout (old
log-probs, old values, advantages, returns) is constant to differentiation. Everything is set to 0 at pads
before any exp or square: masking only the result would let an overflow there into the gradient, as 0 * inf.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, ScalarLike

from rlhf_jax.objectives.reduce import Mean, masked_mean


def policy_loss(
    logprobs_BR: Float[Array, "B R"],
    old_logprobs_BR: Float[Array, "B R"],
    advantages_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    clip: ScalarLike,
) -> dict[str, Mean]:
    """max(-A r, -A clip(r, 1 - clip, 1 + clip)) per token, r = exp(logprobs - old_logprobs) (eq. 7).

    Before the first update r is exactly 1 and the loss is -mean(A). Metrics, over real tokens:
    `policy/approxkl` = mean((log r)^2) / 2; `policy/clipfrac` = share of tokens where the clipped term is
    the larger one, so that they have no gradient; `policy/ratio` = mean r. (A largest ratio is no mean.)
    """
    (logprobs_BR,) = _at_tokens(mask_BR, logprobs_BR)
    old_logprobs_BR, advantages_BR = _constants(mask_BR, old_logprobs_BR, advantages_BR)
    log_ratio_BR = logprobs_BR - old_logprobs_BR
    ratio_BR = jnp.exp(log_ratio_BR)
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * jnp.clip(ratio_BR, 1.0 - clip, 1.0 + clip)
    return {
        "loss": masked_mean(jnp.maximum(plain_BR, clipped_BR), mask_BR),
        "policy/approxkl": masked_mean(0.5 * jnp.square(log_ratio_BR), mask_BR),
        "policy/clipfrac": masked_mean(clipped_BR > plain_BR, mask_BR),
        "policy/ratio": masked_mean(ratio_BR, mask_BR),
    }


def value_loss(
    values_BR: Float[Array, "B R"],
    old_values_BR: Float[Array, "B R"],
    returns_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    clip: ScalarLike,
) -> dict[str, Mean]:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 per token, as in OpenAI's PPO code.

    V_old is the value at rollout time, in the same units as the returns, and so is `clip`.
    `val/clipfrac` is the share of tokens where the clipped term is the larger one, so that they have no
    gradient.
    """
    (values_BR,) = _at_tokens(mask_BR, values_BR)
    old_values_BR, returns_BR = _constants(mask_BR, old_values_BR, returns_BR)
    near_BR = jnp.clip(values_BR, old_values_BR - clip, old_values_BR + clip)
    plain_BR, clipped_BR = jnp.square(values_BR - returns_BR), jnp.square(near_BR - returns_BR)
    return {
        "loss": masked_mean(0.5 * jnp.maximum(plain_BR, clipped_BR), mask_BR),
        "val/clipfrac": masked_mean(clipped_BR > plain_BR, mask_BR),
    }


def explained_variance(
    values_BR: Float[Array, "B R"], returns_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]
) -> Float32[Array, ""]:
    """1 - Var(returns - values) / Var(returns) over all real tokens: 1 is perfect, 0 as good as a constant.

    A ratio of variances is no mean, so it is taken over a whole rollout and not summed over micro-batches.
    0 where the returns do not vary (or there are none): there is nothing to explain.
    """
    values_BR, returns_BR = _constants(mask_BR, values_BR, returns_BR)
    count = jnp.maximum(jnp.sum(mask_BR, dtype=jnp.float32), 1.0)

    def variance(x_BR: Array) -> Array:
        return jnp.sum(jnp.where(mask_BR, jnp.square(x_BR - jnp.sum(x_BR) / count), 0.0)) / count

    residual, total = variance(returns_BR - values_BR), variance(returns_BR)
    varies = total > 1e-12 * jnp.sum(jnp.square(returns_BR)) / count  # less is rounding of the mean
    return jnp.where(varies, 1.0 - residual / jnp.where(varies, total, 1.0), 0.0)


def _at_tokens(mask_BR: Array, *xs_BR: Array) -> tuple[Array, ...]:
    """float32, and 0 at pads."""
    return tuple(jnp.where(mask_BR, x_BR.astype(jnp.float32), 0.0) for x_BR in xs_BR)


def _constants(mask_BR: Array, *xs_BR: Array) -> tuple[Array, ...]:
    return jax.lax.stop_gradient(_at_tokens(mask_BR, *xs_BR))
