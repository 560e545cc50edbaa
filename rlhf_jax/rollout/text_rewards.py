"""Scores by a reward model with another tokenizer or template than the policy's.

What was sampled is decoded, put into the reward model's template and encoded with its tokenizer, on the host. The
devices need not wait for it: they run the other networks meanwhile. Each process encodes its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rlhf_jax.data.tokenization import decode
from rlhf_jax.data.tokens.scored_text import encode_scored
from rlhf_jax.data.tokens.special_ids import without_end
from rlhf_jax.models.model import Model, RewardModel, check_embedded, longest_row, model_scores
from rlhf_jax.parallel.host_memory import called_alone
from rlhf_jax.parallel.mesh import gather, host_rows, to_global
from rlhf_jax.parallel.microbatches import in_parts
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation


@lru_cache
def text_program(microbatches: int = 1) -> Any:
    """Returns `model_scores` in so many parts as a compiled function, the same one for the memory plan and the run."""

    def scored(model: Model, *given: Any) -> Float[Array, " B"]:
        *rows, mean = given
        return in_parts(lambda rows: model_scores(model, *rows, mean), tuple(rows), microbatches)

    return jax.jit(scored)


class TextRewards:
    """Scores by a reward model that reads text.

    longest: the number of tokens of the longest row that is to be expected; arrays have this width for the whole run.
    Where a row is longer the width doubles, and scoring is compiled once more.
    """

    def __init__(
        self, reward: RewardModel, policy_tokenizer: Any, mesh: Mesh, longest: int, microbatches: int = 1
    ) -> None:
        self.reward, self._score_rows = reward, text_program(microbatches)
        self._decoder, self._mesh, self._longest = policy_tokenizer, mesh, longest

    def __call__(
        self,
        rows: list[dict],
        prompts_BP: Int[Array, "B P"],
        prompt_lengths_B: Int[Array, " B"],
        sampled: Generation,
    ) -> Callable[[], Scored]:
        # Fetched here and not in `_score`, which runs when the devices have other work queued.
        del prompts_BP, prompt_lengths_B
        return partial(self._score, rows, *gather((sampled.tokens_BR, sampled.lengths_B, sampled.ended_B)))

    def _score(
        self, rows: list[dict], tokens_BR: np.ndarray, lengths_B: np.ndarray, ended_B: np.ndarray
    ) -> Scored:
        # Decoding and encoding are slow, so each process does it for the rows of its own devices only.
        mine = np.arange(len(rows))[host_rows(len(rows), self._mesh)]
        said = [
            without_end(ids[:n], ended) for ids, n, ended in zip(tokens_BR, lengths_B, ended_B, strict=True)
        ]
        answered = [
            rows[b] | {"output": decode(self._decoder, said[b]), "ended": bool(ended_B[b])} for b in mine
        ]
        reward = self.reward
        found = encode_scored(
            answered, reward.tokenizer, reward.template, reward.score_at, reward.behind, reward.how
        )
        most = longest_row(reward.model.config)
        readable = np.array([not isinstance(x, str) and len(x) <= most for x in found])
        # A row that cannot be read still takes a place in the batch: one token, whose score counts nowhere.
        ids = [x if able else np.zeros(1, np.int32) for x, able in zip(found, readable, strict=True)]
        lengths = np.array([len(x) for x in ids], np.int32)
        tokens = np.zeros((len(ids), self._width(lengths)), np.int32)
        for row, x in zip(tokens, ids, strict=True):
            row[: len(x)] = x
        check_embedded(reward, int(tokens.max()))
        batch = to_global({"tokens": tokens, "lengths": lengths, "readable": readable}, self._mesh)
        given = (batch["tokens"], batch["lengths"])
        scores_B = called_alone(
            lambda model: self._score_rows(model, *given, reward.mean), reward.model, behind=given
        )
        return Scored(scores_B, batch["readable"])

    def _width(self, lengths: np.ndarray) -> int:
        """The width of the arrays, which has to be the same on every process."""
        # The longest row may lie on another process. Doubling keeps the number of compilations small.
        most, width = int(gather(to_global(lengths, self._mesh)).max()), self._longest
        while width < most:
            width *= 2
        return min(width, longest_row(self.reward.model.config))
