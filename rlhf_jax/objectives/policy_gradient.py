"""The math of learning from sampled responses: rewards of tokens, advantages, KL penalties, PPO's clipped losses.

Arrays are [B, R] over response tokens, `mask_BR` True on real ones. What comes from the rollout (old
log-probs, old values, advantages, returns) is constant to differentiation. Everything is set to 0 at pads
before any exp or square: masking only the result would let an overflow there into the gradient, as 0 * inf.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Real, ScalarLike

from rlhf_jax.objectives.reduce import Mean, masked_mean

# From scores to advantages: missing-EOS rule, shaped rewards, generalised advantage estimation, whitening.
#
# Arrays are [B, R] over response tokens, `mask_BR` True on real ones (EOS included). All results are float32 and 0 at
# pads. They are targets: computed once per rollout, never differentiated.


def score_with_missing_eos(
    scores_B: Real[Array, " B"], has_eos_B: Bool[Array, " B"], *, penalty: ScalarLike
) -> Float32[Array, " B"]:
    """Replaces the score of a response that did not end by itself by `penalty`.

    The "EOS trick" of Huang et al. (2024). Replaced, not lowered: a reward model trained on finished
    responses says nothing about one cut off. (TRL's `missing_eos_penalty` is subtracted instead; AlpacaFarm
    replaces too, but only if asked to.)
    `has_eos_B` comes from the sampler and speaks of the response only: an EOS in the prompt, or a pad that
    equals EOS, must not count.
    """
    return jnp.where(has_eos_B, scores_B.astype(jnp.float32), jnp.asarray(penalty, jnp.float32))


def shaped_rewards(
    scores_B: Real[Array, " B"],
    kl_BR: Real[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    kl_coef: ScalarLike,
) -> Float32[Array, "B R"]:
    """Reward per token: -kl_coef * kl everywhere, plus the row's score at its last real token.

    So the sum over a row is score - kl_coef * (sequence KL), and a row without real tokens gets nothing, its
    score included. Integer scores are converted, never the rewards truncated.
    """
    penalty_BR = jnp.where(mask_BR, jnp.asarray(kl_coef, jnp.float32) * kl_BR.astype(jnp.float32), 0.0)
    # The last token is counted from the right and not found by length: a mask may start late or have holes.
    tokens_from_here_BR = jnp.cumsum(mask_BR[:, ::-1], axis=1)[:, ::-1]
    last_BR = mask_BR & (tokens_from_here_BR == 1)
    return jnp.where(last_BR, scores_B.astype(jnp.float32)[:, None], 0.0) - penalty_BR


def gae(
    rewards_BR: Float[Array, "B R"],
    values_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    gamma: ScalarLike,
    lam: ScalarLike,
) -> tuple[Float32[Array, "B R"], Float32[Array, "B R"]]:
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16): (advantages, returns).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = sum_k (gamma lam)^k delta_{t+k};  returns = A + V.

    `values[t]` is the value before token t is emitted. The value after the last real token is 0, also for a
    response cut off at the length limit (it is treated as ended, not bootstrapped). Masked positions are left
    out of time altogether: they neither contribute nor discount, wherever in the row they stand.
    """
    gamma, lam = jnp.asarray(gamma, jnp.float32), jnp.asarray(lam, jnp.float32)
    rewards_RB, values_RB = (
        jnp.where(mask_BR, x_BR.astype(jnp.float32), 0.0).T for x_BR in (rewards_BR, values_BR)
    )

    def back(
        later: tuple[Array, Array], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        next_value_B, next_advantage_B = later
        reward_B, value_B, mask_B = now
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        # A masked position hands on what the later token gave it, so a hole in the mask costs no discount.
        carry = (jnp.where(mask_B, value_B, next_value_B), jnp.where(mask_B, advantage_B, next_advantage_B))
        return carry, jnp.where(mask_B, advantage_B, 0.0)

    zeros_B = jnp.zeros(rewards_RB.shape[1], jnp.float32)
    inputs = (rewards_RB, values_RB, mask_BR.T)
    _, advantages_RB = jax.lax.scan(back, (zeros_B, zeros_B), inputs, reverse=True)
    # Returns are made of the plain advantages, which are whitened later, for the policy loss only.
    return advantages_RB.T, (advantages_RB + values_RB).T


def whiten(
    x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], shift_mean: bool = True
) -> Float32[Array, "B R"]:
    """Whitens x: unit variance over all real tokens of the whole batch, mean 0, or kept if not `shift_mean`.

    Biased variance, 1 / sqrt(var + 1e-8), as in OpenAI's 2019 code. Under jit the batch is the global one,
    whatever mesh it lies on; TRL and AlpacaFarm take one rank's rows, and AlpacaFarm its pads too.
    `shift_mean=True` is for advantages, False for rewards, whose sign means something.
    """
    x_BR = jnp.where(mask_BR, x_BR.astype(jnp.float32), 0.0)
    count = jnp.maximum(jnp.sum(mask_BR, dtype=jnp.float32), 1.0)
    mean = jnp.sum(x_BR) / count
    centred_BR = jnp.where(mask_BR, x_BR - mean, 0.0)
    white_BR = centred_BR * jax.lax.rsqrt(jnp.sum(jnp.square(centred_BR)) / count + 1e-8)
    return white_BR if shift_mean else jnp.where(mask_BR, white_BR + mean, 0.0)


def policy_loss(
    logprobs_BR: Float[Array, "B R"],
    old_logprobs_BR: Float[Array, "B R"],
    advantages_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    weights_BR: Float[Array, "B R"] | None = None,
    *,
    clip: ScalarLike,
) -> dict[str, Mean]:
    """PPO's clipped policy loss (Schulman et al. 2017, eq. 7) and its metrics.

    Per token it is max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r = exp(logprobs - old_logprobs), times the weight of
    the sampler correction where there is one.

    Before the first update r is exactly 1 and the loss is -mean(A). Metrics, over real tokens:
    `policy/approxkl` = mean((log r)^2) / 2; `policy/clipfrac` = share of tokens where the clipped term is
    the larger one, so that they have no gradient; `policy/ratio` = mean r. (A largest ratio is no mean.)
    """
    (logprobs_BR,) = at_tokens(mask_BR, logprobs_BR)
    old_logprobs_BR, advantages_BR = constants_at_tokens(mask_BR, old_logprobs_BR, advantages_BR)
    log_ratio_BR = logprobs_BR - old_logprobs_BR
    ratio_BR = jnp.exp(log_ratio_BR)
    # Eq. 7 maximises the smaller of two objectives; as losses that is the larger one. The
    # clipped share compares the losses and not the ratio: a ratio out of range still has
    # a gradient where the advantage pulls it back.
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * jnp.clip(ratio_BR, 1.0 - clip, 1.0 + clip)
    losses_BR = jnp.maximum(plain_BR, clipped_BR)
    if weights_BR is not None:
        losses_BR = losses_BR * constants_at_tokens(mask_BR, weights_BR)[0]
    return {
        "loss": masked_mean(losses_BR, mask_BR),
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
    """PPO's clipped value loss, as in OpenAI's code, and its metrics.

    Per token it is max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2.

    V_old is the value at rollout time, in the same units as the returns, and so is `clip`.
    `val/clipfrac` is the share of tokens where the clipped term is the larger one, so that they have no
    gradient.
    """
    (values_BR,) = at_tokens(mask_BR, values_BR)
    old_values_BR, returns_BR = constants_at_tokens(mask_BR, old_values_BR, returns_BR)
    # The larger of the two errors: clipping may slow a value down, but never makes its error look smaller.
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
    values_BR, returns_BR = constants_at_tokens(mask_BR, values_BR, returns_BR)
    count = jnp.maximum(jnp.sum(mask_BR, dtype=jnp.float32), 1.0)

    def variance(x_BR: Array) -> Array:
        return jnp.sum(jnp.where(mask_BR, jnp.square(x_BR - jnp.sum(x_BR) / count), 0.0)) / count

    residual, total = variance(returns_BR - values_BR), variance(returns_BR)
    # Equal returns leave the square of a rounding error, in float32 some 1e-14 of their mean square.
    varies = total > 1e-12 * jnp.sum(jnp.square(returns_BR)) / count
    return jnp.where(varies, 1.0 - residual / jnp.where(varies, total, 1.0), 0.0)


def at_tokens(mask_BR: Array, *xs_BR: Array) -> tuple[Array, ...]:
    """The arrays in float32, with 0 at pads."""
    return tuple(jnp.where(mask_BR, x_BR.astype(jnp.float32), 0.0) for x_BR in xs_BR)


def constants_at_tokens(mask_BR: Array, *xs_BR: Array) -> tuple[Array, ...]:
    """The same as constants to differentiation."""
    return jax.lax.stop_gradient(at_tokens(mask_BR, *xs_BR))


# KL divergence between policy and reference: estimators from samples, and the controller of its coefficient.

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
    # expm1: exp(-d) - 1 loses all its digits near d = 0, which is where every run starts.
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
    """The KL coefficient for the next rollout, by the proportional controller of Ziegler et al. 2019.

    It is kl_coef * (1 + responses / horizon * clip(sequence_kl / target - 1, -0.2, 0.2)).

    `sequence_kl` is the mean per-response sum (`sequence_kl` above) of this rollout, not the per-token mean;
    `target` is in nats per response. `responses` of this rollout over `horizon`, which is counted in responses too
    (Ziegler et al. 2019, section 2.2, and TRL: 10,000), is AlpacaFarm's k_beta (0.1 at 512 responses: 5,120).
    """
    error = jnp.clip(jnp.asarray(sequence_kl, jnp.float32) / target - 1.0, -CLIP_ERROR, CLIP_ERROR)
    return jnp.asarray(kl_coef, jnp.float32) * (1.0 + responses / horizon * error)
