"""From scores to advantages: missing-EOS rule, shaped rewards, generalised advantage estimation, whitening.

Arrays are [B, R] over response tokens, `mask_BR` True on real ones (EOS included). All results are float32
and 0 at pads. They are targets: computed once per rollout, never differentiated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Real, ScalarLike


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
        carry = (jnp.where(mask_B, value_B, next_value_B), jnp.where(mask_B, advantage_B, next_advantage_B))
        return carry, jnp.where(mask_B, advantage_B, 0.0)

    zeros_B = jnp.zeros(rewards_RB.shape[1], jnp.float32)
    inputs = (rewards_RB, values_RB, mask_BR.T)
    _, advantages_RB = jax.lax.scan(back, (zeros_B, zeros_B), inputs, reverse=True)
    return advantages_RB.T, (advantages_RB + values_RB).T


def whiten(
    x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], shift_mean: bool = True
) -> Float32[Array, "B R"]:
    """Scaled to unit variance over all real tokens of the whole batch; mean 0, or kept if not `shift_mean`.

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
