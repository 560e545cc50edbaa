"""Supervised fine-tuning: which positions are trained, and their negative log-likelihood."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.objectives.reduce import Mean, masked_mean


def target_mask(
    lengths_B: Int[Array, " B"], prompt_lengths_B: Int[Array, " B"], T: int
) -> Bool[Array, "B T"]:
    """True at position t iff its target, `tokens[t + 1]`, is a response token to train on.

    Rows are right-padded: a prompt of `prompt_length` tokens, then the response up to `length`, EOS included.
    So True is `prompt_length <= t + 1 < length`: the last prompt token predicts the first response token, the
    last response token predicts nothing. Lengths decide, never token ids, because a pad may equal EOS.
    """
    target_T = jnp.arange(1, T + 1)[None, :]
    return (prompt_lengths_B[:, None] <= target_T) & (target_T < lengths_B[:, None])


def sft_loss(
    logprobs_BT: Float[Array, "B T"], entropy_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> dict[str, Mean]:
    """Negative log-likelihood per trained token (nats); every token of the global batch weighs the same.

    `entropy` is the mean entropy of the model's distributions at the same positions.
    """
    return {"loss": masked_mean(-logprobs_BT, mask_BT), "entropy": masked_mean(entropy_BT, mask_BT)}
