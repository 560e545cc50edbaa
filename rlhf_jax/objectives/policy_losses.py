"""Policy losses without a value model, each composed of four parts: ratio, clipping, aggregation and sampler weights.

GRPO (Shao et al. 2024), Dr. GRPO (Liu et al. 2025), DAPO (Yu et al. 2025), GSPO (Zheng et al. 2025), CISPO (MiniMax
2025), dual clip (Ye et al. 2020), RLOO (Ahmadian et al. 2024) and REINFORCE++ (Hu et al. 2025) are choices among them;
configs/grpo.py names which. Arrays are [B, R] over response tokens, `mask_BR` True on real ones. Rows without any real
token count nowhere. What comes from the rollout is constant to differentiation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, ScalarLike

from rlhf_jax.objectives.policy_gradient import at_tokens, constants_at_tokens, token_kl
from rlhf_jax.objectives.reduce import Mean, masked_mean

RATIOS = ("token", "sequence", "sequence_token")
CLIPPINGS = ("ppo", "cispo")
AGGREGATIONS = ("tokens", "sequences", "constant")
KL_GRADIENTS = ("exact", "direct")
CORRECTIONS = ("none", "token", "sequence")


class PolicyLoss(NamedTuple):
    """Which policy loss it is.

    Attributes:
      ratio: see `log_ratio`.
      clipping: see `clipped_losses`, as `clip_low`, `clip_high` and `dual_clip`, which is none at 0.
      aggregation: see `aggregate`, as `max_tokens`.
      kl_estimator, kl_gradient: see `kl_losses`; only read where a KL is in the loss.
    """

    ratio: str
    clipping: str
    clip_low: float
    clip_high: float
    dual_clip: float
    aggregation: str
    max_tokens: int
    kl_estimator: str = "k3"
    kl_gradient: str = "exact"


def composed_policy_loss(
    logprobs_BR: Float[Array, "B R"],
    old_logprobs_BR: Float[Array, "B R"],
    advantages_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    weights_BR: Float[Array, "B R"] | None = None,
    ref_logprobs_BR: Float[Array, "B R"] | None = None,
    kl_coef_B: Float[Array, " B"] | None = None,
    *,
    how: PolicyLoss,
) -> dict[str, Mean]:
    """The loss of these choices, and its metrics over real tokens (names as in `policy_loss`).

    weights_BR: of the sampler correction, see `sampler_weights`; None is 1 everywhere.
    ref_logprobs_BR: of the model that a KL in the loss goes to, with weight kl_coef_B, which has to be the same in all
        rows; None where there is no such KL. Then `loss/policy` and `loss/kl` are the two parts.
    Metrics beside those of `policy_loss`: `policy/clipfrac_low`, `policy/clipfrac_high` and `policy/clipfrac_dual`, the
    shares of tokens that are held at either end of the range or by the dual clip.
    """
    (logprobs_BR,) = at_tokens(mask_BR, logprobs_BR)
    old_logprobs_BR, advantages_BR = constants_at_tokens(mask_BR, old_logprobs_BR, advantages_BR)
    log_ratio_BR = log_ratio(logprobs_BR, old_logprobs_BR, mask_BR, level=how.ratio)
    losses_BR, held = clipped_losses(
        log_ratio_BR,
        logprobs_BR,
        advantages_BR,
        clipping=how.clipping,
        low=how.clip_low,
        high=how.clip_high,
        dual=how.dual_clip,
    )
    if weights_BR is not None:
        losses_BR = losses_BR * constants_at_tokens(mask_BR, weights_BR)[0]
    sizes = {"over": how.aggregation, "max_tokens": how.max_tokens}
    loss, parts = aggregate(losses_BR, mask_BR, **sizes), {}
    if ref_logprobs_BR is not None:
        kl = {"estimator": how.kl_estimator, "gradient": how.kl_gradient}
        kl_BR = kl_losses(logprobs_BR, old_logprobs_BR, ref_logprobs_BR, mask_BR, **kl)
        parts = {"loss/policy": loss, "loss/kl": aggregate(kl_BR, mask_BR, **sizes)}
        # Of the same rows and tokens, so that both terms have one weight.
        loss = Mean(loss.sum + aggregate(kl_coef_B[:, None] * kl_BR, mask_BR, **sizes).sum, loss.weight)
    shares = {f"policy/clipfrac{end}": masked_mean(where_BR, mask_BR) for end, where_BR in held.items()}
    return {
        "loss": loss,
        **parts,
        # Of tokens at every level of the ratio, so that it says the same of all of them.
        "policy/approxkl": masked_mean(0.5 * jnp.square(logprobs_BR - old_logprobs_BR), mask_BR),
        "policy/ratio": masked_mean(jnp.exp(log_ratio_BR), mask_BR),
        **shares,
    }


def log_ratio(
    logprobs_BR: Float[Array, "B R"],
    old_logprobs_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    level: str,
) -> Float32[Array, "B R"]:
    """The logarithm of new over old probability at each token.

    token: of the token. sequence: GSPO's, the mean of these over the response at each of its tokens (Zheng et al. 2025,
    eq. 7). sequence_token: GSPO-token's (eq. 14), of the same value, but each token's gradient is its own; so the two
    differ only where the advantages of a response's tokens do.
    """
    (log_ratio_BR,) = at_tokens(mask_BR, logprobs_BR - old_logprobs_BR)
    if level == "token":
        return log_ratio_BR
    lengths_B1 = jnp.maximum(jnp.sum(mask_BR, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    (mean_BR,) = at_tokens(mask_BR, jnp.broadcast_to(_row_sum(log_ratio_BR) / lengths_B1, mask_BR.shape))
    if level == "sequence":
        return mean_BR
    # The sum of a constant and of a 0 that has the token's gradient.
    return jax.lax.stop_gradient(mean_BR) + (log_ratio_BR - jax.lax.stop_gradient(log_ratio_BR))


def clipped_losses(
    log_ratio_BR: Float[Array, "B R"],
    logprobs_BR: Float[Array, "B R"],
    advantages_BR: Float[Array, "B R"],
    *,
    clipping: str,
    low: ScalarLike,
    high: ScalarLike,
    dual: float,
) -> tuple[Float32[Array, "B R"], dict[str, Bool[Array, "B R"]]]:
    """Loss of each token, and where it is held: "" (anywhere), "_low", "_high", "_dual".

    With ratio r and range [1 - low, 1 + high] (DAPO's clip-higher where they differ):
    ppo: max(-A r, -A clip(r)) (Schulman et al. 2017, eq. 7); with `dual` > 1 it is at most -A * dual where A < 0 (Ye et
    al. 2020, eq. 5), so that a token which became likely since it was sampled cannot push without limit. A held token
    has no gradient.
    cispo: -stop_gradient(clip(r)) A log pi (MiniMax 2025, eq. 4): the weight is held, and every token has a gradient.
    """
    ratio_BR = jnp.exp(log_ratio_BR)
    near_BR = jnp.clip(ratio_BR, 1.0 - low, 1.0 + high)
    if clipping == "cispo":
        losses_BR = -jax.lax.stop_gradient(near_BR) * advantages_BR * logprobs_BR
        below_BR, above_BR = ratio_BR < near_BR, ratio_BR > near_BR
        return losses_BR, _ends(below_BR, above_BR, jnp.zeros_like(below_BR))
    plain_BR, clipped_BR = -advantages_BR * ratio_BR, -advantages_BR * near_BR
    losses_BR, held_BR = jnp.maximum(plain_BR, clipped_BR), clipped_BR > plain_BR
    far_BR = jnp.zeros_like(held_BR)
    if dual:
        most_BR = -advantages_BR * dual
        far_BR = (advantages_BR < 0) & (losses_BR > most_BR)
        losses_BR = jnp.where(far_BR, most_BR, losses_BR)
    # A bad token is held where it became unlikely enough, a good one where it became likely enough.
    return losses_BR, _ends(held_BR & (advantages_BR < 0), held_BR & (advantages_BR > 0), far_BR)


def aggregate(
    losses_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], *, over: str, max_tokens: int
) -> Mean:
    """One number of the losses of tokens, before the division.

    tokens: the mean over all tokens (DAPO, eq. 8), in which a long response weighs more than a short one. sequences:
    the mean over a response's tokens, then over responses (GRPO, eq. 3), in which the tokens of a long one weigh less.
    constant: the sum over the number of responses times `max_tokens` (Dr. GRPO, section 3.2), in which neither happens.
    """
    (losses_BR,) = at_tokens(mask_BR, losses_BR)
    if over == "tokens":
        return masked_mean(losses_BR, mask_BR)
    lengths_B1 = jnp.sum(mask_BR, axis=1, keepdims=True, dtype=jnp.float32)
    # Divided row by row here, and by a number of rows at the end: so neither micro-batches nor the mesh matter.
    divisor_B1 = jnp.maximum(lengths_B1, 1.0) if over == "sequences" else float(max_tokens)
    rows = jnp.sum(lengths_B1 > 0, dtype=jnp.float32)
    return Mean(jnp.sum(_row_sum(losses_BR) / divisor_B1), rows)


def kl_losses(
    logprobs_BR: Float[Array, "B R"],
    old_logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    estimator: str,
    gradient: str,
) -> Float32[Array, "B R"]:
    """A KL to the reference at each token that can be minimised, 0 at pads.

    exact: the estimate times the ratio of new to old probability, both differentiated (DeepSeek-V3.2, section 3.1). Its
    mean over what the old policy sampled is KL(policy || reference) for k1 and k3 at any parameters, so its gradient is
    right, too; k2's is that of mean(d^2) / 2. direct: the estimate alone, as GRPO was published (eq. 4). Then k2 has
    the gradient of KL(policy || reference) on fresh samples, k3 that of KL(reference || policy), and k1 none.
    """
    old_logprobs_BR, ref_logprobs_BR = constants_at_tokens(mask_BR, old_logprobs_BR, ref_logprobs_BR)
    (logprobs_BR,) = at_tokens(mask_BR, logprobs_BR)
    kl_BR = token_kl(logprobs_BR, ref_logprobs_BR, mask_BR, estimator=estimator)
    return kl_BR if gradient == "direct" else jnp.exp(logprobs_BR - old_logprobs_BR) * kl_BR


def sampler_weights(
    logprobs_BR: Float[Array, "B R"],
    sampler_logprobs_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    level: str,
    cap: ScalarLike,
) -> tuple[Float32[Array, "B R"], dict[str, Mean]]:
    """Truncated importance weights of what another policy sampled than the one that learns from it, and their metrics.

    min(pi_old / pi_sampler, cap) (Ionides 2008; Yao et al. 2025, "TIS"): of the token, or of the whole sequence at each
    of its tokens; 0 at pads. A rollout that lags behind, or one in other arithmetic, is put right by them where none is
    at the cap: token by token up to the distribution of what stands before a token, as a sequence exactly.
    `sampling/correction_mean` is their mean over tokens, `sampling/correction_capped` the share at the cap.
    """
    (log_weights_BR,) = at_tokens(mask_BR, logprobs_BR - sampler_logprobs_BR)
    if level == "sequence":
        log_weights_BR = jnp.broadcast_to(_row_sum(log_weights_BR), mask_BR.shape)
    limit = jnp.log(jnp.asarray(cap, jnp.float32))
    # Capped as logarithms: those of a long sequence may be beyond what exp can hold.
    (weights_BR,) = at_tokens(mask_BR, jnp.exp(jnp.minimum(log_weights_BR, limit)))
    return jax.lax.stop_gradient(weights_BR), {
        "sampling/correction_mean": masked_mean(weights_BR, mask_BR),
        "sampling/correction_capped": masked_mean(log_weights_BR > limit, mask_BR),
    }


def _ends(low_BR: Array, high_BR: Array, dual_BR: Array) -> dict[str, Array]:
    return {"": low_BR | high_BR | dual_BR, "_low": low_BR, "_high": high_BR, "_dual": dual_BR}


def _row_sum(x_BR: Array) -> Array:
    return jnp.sum(x_BR, axis=1, keepdims=True)
