"""A model as one value: its parameters and the settings (ModelConfig) that they were made for.

Functions that compute with a model take both together. So a reward model of another size, rope base or epsilon
than the policy's is never run with the policy's settings.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params

LOGIT, SIGMOID = SCORE_AS = ("logit", "sigmoid")
MEAN, MINIMUM, MEAN_MINUS_VARIANCE = COMBINE = ("mean", "min", "mean_minus_variance")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a reward is, beyond the number that the score head gives.

    Attributes:
      score_as: "logit" for that number, "sigmoid" for the place on the scale of ratings that it stands for, in [0, 1].
      thresholds: of a model of ordinal ratings, how many there are; 0 of any other.
      members: models of an ensemble, whose parameters are stacked [members, ...]; 0 of a single model.
      combine, combine_coef: how an ensemble's scores become one.
    """

    score_as: str = LOGIT
    thresholds: int = 0
    members: int = 0
    combine: str = MEAN
    combine_coef: float = 0.0


@partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("config", "reading"))
@dataclasses.dataclass(frozen=True)
class Model:
    """A model's settings and parameters, as one argument of compiled functions.

    For jax it is a pytree: the parameters are its leaves, and the config is static, so that a function compiles
    once for each config.

    params: arrays, or shapes with shardings before any weight is read.
    reading: of a reward model, what its reward is.
    """

    config: ModelConfig
    params: Params
    reading: Reading = Reading()


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model with everything else that its scores depend on.

    Attributes:
      folder: where it was read from.
      template: of the text that it reads; score_at: at which token of it (see `data.tokens.scored_text`).
      behind: what stands between a response and that token, a `Closing`.
      how: how conversations are written, a `Handling`.
      mean: the mean score of demonstrations. It is subtracted, so that a score of 0 means "as good as a
        demonstration" (Huang et al. 2024). Of an ensemble an array [members], each member having its own.
    """

    model: Model
    # The tokenizer, `behind` and `how` are Any, because models may not import rlhf_jax.data.
    tokenizer: Any
    folder: str
    template: str
    score_at: str
    behind: Any
    how: Any = None
    mean: Any = 0.0


def model_scores(
    model: Model,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    mean: ScalarLike | Float[Array, " M"],
) -> Float[Array, " B"]:
    """The reward of each right-padded row, read at its last real token, less the mean; float32.

    Of an ensemble the scores of all members, each less its own mean, are combined as its reading says.
    """
    if not model.reading.members:
        return _scores(model, model.params, tokens_BT, lengths_B, mean)
    return combined(member_scores(model, tokens_BT, lengths_B, mean), model.reading)


def member_scores(
    model: Model,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    mean: ScalarLike | Float[Array, " M"],
) -> Float[Array, "M B"]:
    """The scores of an ensemble's members, each less its mean. mean: [members], or one number for all."""
    mean_M = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), (model.reading.members,))
    return jax.vmap(lambda params, mean: _scores(model, params, tokens_BT, lengths_B, mean))(
        model.params, mean_M
    )


def combined(scores_MB: Float[Array, "M B"], reading: Reading) -> Float[Array, " B"]:
    """One score of several: their mean, the lowest of them, or the mean less `combine_coef` times their variance.

    The last two are cautious where members disagree, as they do on responses that are unlike what they were trained on
    (Coste et al. 2024, whose worst-case and uncertainty-weighted optimisation these are). The variance is over members,
    divided by their number.
    """
    if reading.combine == MINIMUM:
        return scores_MB.min(0)
    mean_B = scores_MB.mean(0)
    if reading.combine == MEAN_MINUS_VARIANCE:
        return mean_B - reading.combine_coef * scores_MB.var(0)
    return mean_B


def first_member(params: Params) -> Params:
    """The parameters of an ensemble's first model; those of a single model as they are."""
    return jax.tree.map(lambda x: x[0], params) if params["score"].ndim > 1 else params


def _scores(model: Model, params: Params, tokens_BT: Array, lengths_B: Array, mean: ScalarLike) -> Array:
    hidden_BTD = decoder.hidden_states(model.config, params, tokens_BT)
    return as_read(decoder.last_token_scores(hidden_BTD, params, lengths_B), params, model.reading) - mean


def as_read(score_B: Float[Array, " B"], params: Params, reading: Reading) -> Float[Array, " B"]:
    """What the head's numbers stand for, by the model's reading."""
    if reading.score_as == LOGIT:
        return score_B
    if "thresholds" not in params:
        return jax.nn.sigmoid(score_B)
    # The mean of P(level > k) over k is the expected place on the scale.
    return jax.nn.sigmoid(score_B[:, None] - params["thresholds"]).mean(1)


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
