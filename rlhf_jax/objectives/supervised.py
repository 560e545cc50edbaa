"""Supervised fine-tuning: the negative log-likelihood of trained tokens."""

from jaxtyping import Array, Bool, Float

from rlhf_jax.objectives.reduce import Mean, masked_mean


def sft_loss(
    logprobs_BT: Float[Array, "B T"], entropy_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> dict[str, Mean]:
    """Negative log-likelihood per trained token (nats); every token of the global batch weighs the same.

    `entropy` is the mean entropy of the model's distributions at the same positions.
    """
    return {"loss": masked_mean(-logprobs_BT, mask_BT), "entropy": masked_mean(entropy_BT, mask_BT)}
