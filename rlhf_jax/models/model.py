"""A model as one value: its parameters and the settings (ModelConfig) that they were made for.

Functions that compute with a model take both together. So a reward model of another size, rope base or epsilon
than the policy's is never run with the policy's settings.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Int, ScalarLike

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params


@partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("config",))
@dataclasses.dataclass(frozen=True)
class Model:
    """A model's settings and parameters, as one argument of compiled functions.

    For jax it is a pytree: the parameters are its leaves, and the config is static, so that a function compiles
    once for each config.

    params: arrays, or shapes with shardings before any weight is read.
    """

    config: ModelConfig
    params: Params


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model with everything else that its scores depend on.

    Attributes:
      folder: where it was read from.
      template: of the text that it reads; score_at: at which token of it (see `data.tokens.scored_text`).
      behind: what stands between a response and that token, a `Closing`.
      how: how conversations are written, a `Handling`.
      mean: the mean score of demonstrations. It is subtracted, so that a score of 0 means "as good as a
        demonstration" (Huang et al. 2024).
    """

    model: Model
    # The tokenizer, `behind` and `how` are Any, because models may not import rlhf_jax.data.
    tokenizer: Any
    folder: str
    template: str
    score_at: str
    behind: Any
    how: Any = None
    mean: float = 0.0


def model_scores(
    model: Model, tokens_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"], mean: ScalarLike
) -> Float[Array, " B"]:
    """The reward of each right-padded row, read at its last real token, less the mean; float32."""
    hidden_BTD = decoder.hidden_states(model.config, model.params, tokens_BT)
    return decoder.last_token_scores(hidden_BTD, model.params, lengths_B) - mean


def check_embedded(reward: RewardModel, most: int) -> None:
    """Raises UserError for a token id without an embedding; the lookup would silently take another token's."""
    if most >= reward.model.config.vocab_size:
        raise UserError(
            f"{reward.folder}: the template {reward.template} writes token {most}, but there are embeddings of "
            f"{reward.model.config.vocab_size}; use the tokenizer that the model was trained with"
        )


def longest_row(config: ModelConfig) -> int:
    """The longest row, in tokens, that a model can read; only learned positions set a limit."""
    # Rotary positions are computed and not looked up: no row is too long for them.
    return config.max_positions if config.positions == "learned" else 2**31 - 1
