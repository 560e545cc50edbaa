"""Several responses to each prompt as one row of experience: sampled ones, and provided ones beside them.

Arrays of all responses have those of one prompt next to each other, the sampled ones first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rlhf_jax.models.responses import Batch
from rlhf_jax.objectives.reduce import masked_mean, value
from rlhf_jax.rollout.experience import (
    Metrics,
    Readings,
    RolloutSettings,
    final_scores,
    kl_of,
    rollout_metrics,
)
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation


def with_provided(sampled: Generation, batch: Batch) -> Generation:
    """The responses of each prompt that were sampled, and behind them those that its rows of the batch bring."""
    B, _, R = batch["provided_tokens"].shape
    lengths_BM = batch["provided_lengths"]
    mask_BMR = jnp.arange(R) < lengths_BM[..., None]
    ended_BM = batch["provided_ended"]
    beside = (batch["provided_tokens"], jnp.zeros(mask_BMR.shape), mask_BMR, lengths_BM, ended_BM)

    def joined(own: Array, more: Array) -> Array:
        both = jnp.concatenate([own.reshape(B, -1, *own.shape[1:]), more.astype(own.dtype)], axis=1)
        # Placed as the sampled ones are: placed otherwise, what reads them would compile again.
        return jax.device_put(both.reshape(-1, *own.shape[1:]), own.sharding)

    return Generation(*map(joined, sampled[:-1], beside), sampled.steps)


def make_candidates(
    read: Readings,
    responses: Generation,
    scored: Scored,
    settings: RolloutSettings,
    *,
    samples: int,
    prompts: int,
    kl_coef: float,
) -> tuple[Batch, Metrics]:
    """Turns one rollout into a row for each of its prompts, and the metrics of what was sampled.

    samples: responses of each prompt that were sampled; those behind them were provided. Scores are less kl_coef times
    the KL of the response, as the page estimates it.

    Rows: tokens [B, N, T], lengths, prompt_lengths, scores, candidates [B, N] and weight [B]. A response that did not
    end has the score `missing_eos_penalty`; one that ended and could not be scored is no candidate, nor is a text that
    a prompt has had already. A prompt none of whose responses ended with a score has weight 0, as there is none to be
    imitated.
    """

    def grouped(x: Array) -> Array:
        return x.reshape(prompts, -1, *x.shape[1:])

    penalty_B = kl_coef * jnp.sum(kl_of(read, settings), axis=1)
    scores_BN = grouped(final_scores(responses, scored, settings) - penalty_B)
    # What did not end is known to be bad, whether or not somebody could score it. No token is no response.
    usable_BN = grouped((responses.lengths_B > 0) & (scored.readable_B | ~responses.ended_B))
    tokens_BNT, lengths_BN = grouped(read.tokens_BT), grouped(read.prompt_lengths_B + responses.lengths_B)
    # By the lengths, too: where the pad is the end token, a response that was cut off looks like one that ended.
    same_BNN = jnp.all(tokens_BNT[:, :, None] == tokens_BNT[:, None], axis=-1)
    same_BNN &= (lengths_BN[:, :, None] == lengths_BN[:, None]) & usable_BN[:, None]
    again_BN = usable_BN & jnp.any(jnp.tril(same_BNN, -1), axis=-1)
    there_BN = usable_BN & ~again_BN
    good_BN = there_BN & grouped(responses.ended_B & scored.readable_B)
    weight_B = jnp.any(good_BN, axis=1).astype(jnp.float32)
    rows = {
        "tokens": tokens_BNT,
        "lengths": lengths_BN,
        "prompt_lengths": grouped(read.prompt_lengths_B),
        "scores": jnp.where(there_BN, scores_BN, 0.0),
        "candidates": there_BN,
        "weight": weight_B,
    }
    highest_B = jnp.max(jnp.where(there_BN, scores_BN, -jnp.inf), axis=1)
    lowest_B = jnp.min(jnp.where(there_BN, scores_BN, jnp.inf), axis=1)
    best_B = jnp.argmax(jnp.where(there_BN, scores_BN, -jnp.inf), axis=1)

    def sampled(x: Array) -> Array:
        return grouped(x)[:, :samples].reshape(-1, *x.shape[1:]) if x.ndim else x

    metrics = rollout_metrics(*jax.tree.map(sampled, (read, responses, scored)), settings)
    return rows, metrics | {
        "objective/rlhf_reward": metrics["objective/scores"] - kl_coef * metrics["objective/kl"],
        "candidates/best_scores": value(masked_mean(highest_B, weight_B)),
        "candidates/ranked": jnp.mean(weight_B * (lowest_B < highest_B)),
        "candidates/left_out": 1.0 - jnp.mean(weight_B),
        "candidates/repeated": value(masked_mean(again_BN, usable_BN)),
        "candidates/provided_best": value(masked_mean(best_B >= samples, weight_B)),
        "num_tokens": jnp.sum(read.prompt_lengths_B + responses.lengths_B).astype(jnp.float32),
    }
