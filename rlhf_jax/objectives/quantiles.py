"""Quantiles of scores, and the loss that learns from responses of a quantile (Lu et al. 2022, Quark)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.objectives.reduce import Mean, masked_mean


def ranked(
    scores_N: Float[Array, " N"], counted_N: Bool[Array, " N"], quantiles: int
) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
    """(entries from best to worst, quantile of each entry).

    Of equal scores the entry that stands first is the better one, so neighbours in the order may have equal scores and
    different quantiles: quantiles are of equal size, to one entry, whatever the scores are. With n entries that count,
    the one of rank r is in quantile floor(r * quantiles / n), and 0 is the best. Entries that do not count are last in
    the order, and their quantile is `quantiles`.
    """
    order_N = jnp.lexsort((-scores_N, ~counted_N))
    n = jnp.sum(counted_N)
    rank_N = jnp.arange(len(scores_N))
    sorted_N = jnp.where(rank_N < n, rank_N * quantiles // jnp.maximum(n, 1), quantiles)
    return order_N, jnp.zeros_like(order_N).at[order_N].set(sorted_N)


def quantile_loss(
    logprobs_BR: Float[Array, "B R"],
    kl_BR: Float[Array, "B R"],
    entropy_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    kl_coef: float,
    entropy_coef: float,
) -> dict[str, Mean]:
    """-log pi + kl_coef * KL(pi || pi_ref) - entropy_coef * H, a mean over response tokens (Lu et al. 2022, eq. 2).

    kl_BR: exact, of the next token's whole distribution. Every token of the global batch weighs the same; the reference
    code divided by all positions of a row, pads too, so that short rows taught less.
    """
    loss_BR = -logprobs_BR + kl_coef * kl_BR - entropy_coef * entropy_BR
    return {
        "loss": masked_mean(loss_BR, mask_BR),
        "loss/nll": masked_mean(-logprobs_BR, mask_BR),
        "loss/kl": masked_mean(kl_BR, mask_BR),
        "policy/entropy": masked_mean(entropy_BR, mask_BR),
    }
