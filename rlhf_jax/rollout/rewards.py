"""Where scores come from: a reward model on the very tokens that were sampled."""

from __future__ import annotations

from jaxtyping import Array, Float, Int, ScalarLike

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig


def model_scores(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    reward_mean: ScalarLike,
) -> Float[Array, " B"]:
    """The reward of each right-padded `prompt + response` row, read at its last real token, float32.

    Args:
      reward_mean: the mean score of demonstrations, stored with the reward model; it is subtracted, so a
        score of 0 means "as good as a demonstration" (rule M8).
    """
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT)
    return decoder.last_token_scores(hidden_BTD, params, lengths_B) - reward_mean
