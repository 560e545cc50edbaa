"""Where scores come from: a reward model on the very tokens that were sampled, where it reads the same tokens.

One that has another tokenizer or template reads the text instead, see `text_rewards`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from rlhf_jax.data.handling import Handling
from rlhf_jax.data.scored_text import Closing
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.model import Model
from rlhf_jax.models.responses import join
from rlhf_jax.sampling.decode import Generation


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """All that a score depends on, as one thing.

    Attributes:
      folder: where it was read from.
      template: of the text that it reads; score_at: at which token of it (see `data.scored_text`).
      behind: what stands between a response and that token.
      how: how conversations are written.
      mean: the mean score of demonstrations. It is subtracted, so that a score of 0 means "as good as a
        demonstration" (rule M8).
    """

    model: Model
    tokenizer: Any
    folder: str
    template: str
    score_at: str
    behind: Closing
    how: Handling = dataclasses.field(default_factory=Handling)
    mean: float = 0.0


class Scored(NamedTuple):
    """scores_B: 0 where the reward model cannot be given the response, and `readable_B` is False."""

    scores_B: Float[Array, " B"]
    readable_B: Bool[Array, " B"]


class Rewards(Protocol):
    """Scores of sampled responses, in two parts: a call, and a call of what it returns.

    The first fetches what the host needs, so it comes before the devices are given other work, behind which a fetch
    from several processes would wait. The second comes after that, and works on the host meanwhile.
    """

    def __call__(
        self,
        rows: list[dict],
        prompts_BP: Int[Array, "B P"],
        prompt_lengths_B: Int[Array, " B"],
        sampled: Generation,
    ) -> Callable[[], Scored]:
        """rows: the records that the prompts were made of, for who reads text."""


def model_scores(
    model: Model, tokens_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"], mean: ScalarLike
) -> Float[Array, " B"]:
    """The reward of each right-padded row, read at its last real token, less the mean; float32."""
    hidden_BTD = decoder.hidden_states(model.config, model.params, tokens_BT)
    return decoder.last_token_scores(hidden_BTD, model.params, lengths_B) - mean


def check_embedded(reward: RewardModel, most: int) -> None:
    """UserError for an id that the model has no embedding of; a lookup would take another token's in silence."""
    if most >= reward.model.config.vocab_size:
        raise UserError(
            f"{reward.folder}: the template {reward.template} writes token {most}, but there are embeddings of "
            f"{reward.model.config.vocab_size}; use the tokenizer that the model was trained with"
        )


@lru_cache
def token_program(closing: tuple[int, ...], pad_id: int) -> Any:
    """`score_tokens`, compiled once for the plan and the run."""
    return jax.jit(partial(score_tokens, closing=closing, pad_id=pad_id))


def score_tokens(
    model: Model,
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    mean: ScalarLike,
    *,
    closing: tuple[int, ...],
    pad_id: int,
) -> Scored:
    """Scores of sampled tokens, none of which is decoded.

    A policy may have more embeddings than its tokenizer has tokens; a response that holds such an id, of which the
    reward model has no embedding, has no score.
    closing: what the reward model reads in place of the end token, at which of several the sampling may have stopped.
    """
    readable_B = jnp.all((sampled.tokens_BR < model.config.vocab_size) | ~sampled.mask_BR, axis=1)
    tokens_BT = join(prompts_BP, prompt_lengths_B, sampled.tokens_BR, sampled.lengths_B, pad_id)
    # The first of them stands where the end token does. No column more: learned positions are few.
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, max(0, len(closing) - 1))), constant_values=pad_id)
    ended_B = sampled.ended_B.astype(jnp.int32)
    lengths_B = prompt_lengths_B + sampled.lengths_B - ended_B
    if closing:
        behind_BT = jnp.arange(tokens_BT.shape[1]) - lengths_B[:, None]
        written_BT = jnp.array(closing)[jnp.clip(behind_BT, 0, len(closing) - 1)]
        here_BT = (behind_BT >= 0) & (behind_BT < len(closing)) & sampled.ended_B[:, None]
        tokens_BT = jnp.where(here_BT, written_BT, tokens_BT)
        lengths_B = lengths_B + ended_B * len(closing)
    return Scored(model_scores(model, tokens_BT, lengths_B, mean), readable_B)


class TokenRewards:
    """A reward model that reads the tokens of the policy."""

    def __init__(self, reward: RewardModel, pad_id: int) -> None:
        self.reward = reward
        self._score = token_program(reward.behind.read(reward.score_at), pad_id)

    def __call__(
        self,
        rows: list[dict],
        prompts_BP: Int[Array, "B P"],
        prompt_lengths_B: Int[Array, " B"],
        sampled: Generation,
    ) -> Callable[[], Scored]:
        del rows
        reward = self.reward
        return partial(self._score, reward.model, prompts_BP, prompt_lengths_B, sampled, reward.mean)
