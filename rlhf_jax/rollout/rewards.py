"""Scores of sampled responses by a reward model that shares the policy's tokenizer: it reads the very tokens.

A reward model with another tokenizer or template is given the text instead, see `text_rewards`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from rlhf_jax.models.model import Model, RewardModel, model_scores
from rlhf_jax.models.responses import join
from rlhf_jax.parallel.host_memory import called_alone
from rlhf_jax.parallel.microbatches import in_parts
from rlhf_jax.sampling.decode import Generation


class Scored(NamedTuple):
    """Scores, and which of them count.

    Attributes:
      scores_B: one for each response.
      readable_B: False where the source cannot read a response; its score then counts nowhere.
      components: of a source that is made of others, their scores by name, and further numbers that are logged.
    """

    scores_B: Float[Array, " B"]
    readable_B: Bool[Array, " B"]
    components: dict[str, Float[Array, " B"]] = {}  # noqa: RUF012 (a pytree, which nothing changes in place)


@runtime_checkable
class Rewards(Protocol):
    """A source of scores. It is called in two parts: once with the responses, and later what that returned.

    The first call fetches what the host needs. It comes before the devices are given other work, behind which a fetch
    from several processes would have to wait. The second call comes after that, so that the host prepares text while
    the devices run the other networks.
    """

    def __call__(
        self,
        rows: list[dict],
        prompts_BP: Int[Array, "B P"],
        prompt_lengths_B: Int[Array, " B"],
        sampled: Generation,
    ) -> Callable[[], Scored]:
        """rows: the records that the prompts were made of, for a reward model that reads text."""


@lru_cache
def token_program(closing: tuple[int, ...], pad_id: int, microbatches: int = 1) -> Any:
    """Returns `score_tokens` in so many parts as a compiled function, the same one for the memory plan and the run."""

    def scored(model: Model, *given: Any) -> Scored:
        *rows, mean = given
        score = partial(score_tokens, closing=closing, pad_id=pad_id)
        return in_parts(lambda rows: score(model, *rows, mean), tuple(rows), microbatches)

    return jax.jit(scored)


def score_tokens(
    model: Model,
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    mean: ScalarLike | Float[Array, " M"],
    *,
    closing: tuple[int, ...],
    pad_id: int,
) -> Scored:
    """Scores sampled tokens as they are, without decoding any.

    A policy may have more embeddings than its tokenizer has tokens; a response that holds such an id, of which the
    reward model has no embedding, has no score.
    mean: what is subtracted, of an ensemble from each member.
    closing: what the reward model reads in place of the end token, at which of several the sampling may have stopped.
    """
    # Ids behind the end are pads, and nobody looks at what they are.
    readable_B = jnp.all((sampled.tokens_BR < model.config.vocab_size) | ~sampled.mask_BR, axis=1)
    tokens_BT = join(prompts_BP, prompt_lengths_B, sampled.tokens_BR, sampled.lengths_B, pad_id)
    # The first closing token takes the end token's place, so one column fewer is added than there are tokens;
    # models with learned positions have none to spare.
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, max(0, len(closing) - 1))), constant_values=pad_id)
    ended_B = sampled.ended_B.astype(jnp.int32)
    lengths_B = prompt_lengths_B + sampled.lengths_B - ended_B
    # Only a response that ended is closed. One that was cut off is scored as it stands; the missing-EOS rule
    # replaces that score anyway.
    if closing:
        behind_BT = jnp.arange(tokens_BT.shape[1]) - lengths_B[:, None]
        written_BT = jnp.array(closing)[jnp.clip(behind_BT, 0, len(closing) - 1)]
        here_BT = (behind_BT >= 0) & (behind_BT < len(closing)) & sampled.ended_B[:, None]
        tokens_BT = jnp.where(here_BT, written_BT, tokens_BT)
        lengths_B = lengths_B + ended_B * len(closing)
    return Scored(model_scores(model, tokens_BT, lengths_B, mean), readable_B)


class TokenRewards:
    """A reward model that reads the tokens of the policy."""

    def __init__(self, reward: RewardModel, pad_id: int, microbatches: int = 1) -> None:
        self.reward = reward
        self._score = token_program(reward.behind.read(reward.score_at), pad_id, microbatches)

    def __call__(
        self,
        rows: list[dict],
        prompts_BP: Int[Array, "B P"],
        prompt_lengths_B: Int[Array, " B"],
        sampled: Generation,
    ) -> Callable[[], Scored]:
        del rows
        given = (prompts_BP, prompt_lengths_B, sampled, self.reward.mean)
        return partial(
            called_alone, lambda model: self._score(model, *given), self.reward.model, behind=sampled
        )
