"""Learning from several scored responses to a prompt: RRHF (Yuan et al. 2023, section 3.1).

N candidates stand beside each other; `there_BN` says which of them exist. What stands in the others, NaN too, counts
nowhere, nor does a prompt of weight 0. With a candidate's summed log-prob s_i, its |y_i| tokens and its score r_i

    p_i = s_i / |y_i| ** length_penalty
    L_rank = sum over i, j with r_i < r_j of max(0, p_i - p_j)      (equal scores make no pair; there is no margin)
    L_ft = -s_i of the response with the highest score              (the first one, of equals)

and the loss of a prompt is rank_weight * L_rank + sft_weight * L_ft.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real, ScalarLike

from rlhf_jax.objectives.reduce import Mean, masked_mean

# By what log-probs are divided. paper: ranks by each response's tokens, L_ft by nothing. token_mean: L_ft by its
# tokens, too. longest_row: both by the longest prompt + response of the prompt. The released code does the last, as it
# overwrites its labels before it counts them; published numbers were made so.
NORMALISATIONS = ("paper", "token_mean", "longest_row")


class Ranked(NamedTuple):
    """The log-probs of N candidates for each prompt, and what they are ranked by.

    Attributes:
      sums_BN: log-probs, summed over the tokens of each response.
      counts_BN: tokens of each response, its end included.
      rows_BN: tokens of each prompt with its response.
      scores_BN: what a reward model, a judge or a person gives the responses; higher is better.
      there_BN: whether there is such a candidate.
    """

    sums_BN: Float[Array, "B N"]
    counts_BN: Int[Array, "B N"]
    rows_BN: Int[Array, "B N"]
    scores_BN: Float[Array, "B N"]
    there_BN: Bool[Array, "B N"]


def rrhf(
    found: Ranked,
    weight_B: Bool[Array, " B"] | Real[Array, " B"],
    *,
    rank_weight: ScalarLike = 1.0,
    sft_weight: ScalarLike = 1.0,
    length_penalty: ScalarLike = 1.0,
    normalisation: str = "paper",
) -> dict[str, Mean]:
    """The loss of RRHF, a mean over prompts, and how far the policy ranks as the scores do.

    A prompt whose scores are all equal has no pair and keeps its L_ft, as in the released code. `rank/accuracy`: the
    share of ordered pairs whose better response has the higher p; a tie of p is not accurate. `rank/best`: how often
    the response with the highest p has the highest score, of prompts with a pair.
    """
    there_BN = found.there_BN & (weight_B != 0)[:, None]
    # Set before any arithmetic: 0 * NaN would reach the gradient.
    sums_BN = jnp.where(there_BN, found.sums_BN.astype(jnp.float32), 0.0)
    scores_BN = jnp.where(there_BN, found.scores_BN.astype(jnp.float32), -jnp.inf)
    longest_B1 = jnp.max(jnp.where(there_BN, found.rows_BN, 1), axis=1, keepdims=True)
    by_row = normalisation == "longest_row"
    counts_BN = jnp.where(there_BN, longest_B1 if by_row else found.counts_BN, 1).astype(jnp.float32)
    p_BN = sums_BN / counts_BN**length_penalty

    # [b, i, j]: j is better than i. A missing candidate would be worse than all others, so it is left out by name.
    both_BNN = there_BN[:, :, None] & there_BN[:, None, :]
    pair_BNN = both_BNN & (scores_BN[:, :, None] < scores_BN[:, None, :])
    gap_BNN = p_BN[:, :, None] - p_BN[:, None, :]
    # Not jnp.maximum: where two responses are as likely as each other it would hand on half of a gradient.
    rank_B = jnp.sum(jnp.where(pair_BNN & (gap_BNN > 0), gap_BNN, 0.0), axis=(1, 2))

    best_B1 = jnp.argmax(scores_BN, axis=1, keepdims=True)
    divisor_BN = jnp.ones_like(counts_BN) if normalisation == "paper" else counts_BN
    sft_B = -jnp.take_along_axis(sums_BN / divisor_BN, best_B1, axis=1)[:, 0]

    likeliest_B1 = jnp.argmax(jnp.where(there_BN, p_BN, -jnp.inf), axis=1, keepdims=True)
    is_best_B = jnp.take_along_axis(scores_BN, likeliest_B1, 1) == jnp.take_along_axis(scores_BN, best_B1, 1)
    # A prompt without any candidate has nothing to learn from.
    counted_B = jnp.where(there_BN.any(axis=1), weight_B, 0)
    return {
        "loss": masked_mean(rank_weight * rank_B + sft_weight * sft_B, counted_B),
        "loss/rank": masked_mean(rank_B, counted_B),
        "loss/sft": masked_mean(sft_B, counted_B),
        "rank/accuracy": masked_mean(gap_BNN < 0, pair_BNN * weight_B[:, None, None]),
        "rank/best": masked_mean(is_best_B[:, 0], counted_B * pair_BNN.any(axis=(1, 2))),
        "logps/best": masked_mean(jnp.take_along_axis(p_BN, best_B1, axis=1)[:, 0], counted_B),
    }
