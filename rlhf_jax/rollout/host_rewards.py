"""Scores of sampled responses by something that reads text on the host: a Python function or a judge.

Responses are decoded and scored on process 0 alone, and the others are told: a judge is paid once, and a function that
is not quite deterministic still gives every process the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from rlhf_jax.data.tokenization import decode
from rlhf_jax.data.tokens.special_ids import without_end
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import gather, host_rows, to_global
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation


class Verdicts(NamedTuple):
    """What the host says of B responses.

    Attributes:
      scores: one for each; what stands where a response could not be scored counts nowhere.
      readable: whether it could.
      parts: further numbers of each response that are logged beside its score, by name.
    """

    scores: Sequence[float]
    readable: Sequence[bool]
    parts: Mapping[str, Sequence[float]] = MappingProxyType({})


# (records of the prompts, responses) -> what the host says of them.
Judgment = Callable[[list[dict], list[str]], Verdicts]


class HostRewards:
    """A source of scores that is asked on process 0. name: what it is called in messages."""

    def __init__(self, name: str, judgment: Judgment, policy_tokenizer: Any, mesh: Mesh) -> None:
        self._name, self._judgment, self._decoder, self._mesh = name, judgment, policy_tokenizer, mesh

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
        found: Any = None
        if startup.is_main():
            # Where no token is there is no response, and nobody is asked, or paid, for one.
            there = np.flatnonzero(lengths_B)
            said = [without_end(tokens_BR[b, : lengths_B[b]], ended_B[b]) for b in there]
            texts = [decode(self._decoder, ids) for ids in said]
            scores, readable, parts = self._judgment([rows[b] for b in there], texts)

            def spread(values: Sequence) -> list[float]:
                every = np.zeros(len(rows))
                every[there] = values
                return every.tolist()

            # JSON writes a float's shortest exact form, so every process has the same bits.
            found = [
                spread(scores),
                spread(readable),
                {name: spread(values) for name, values in parts.items()},
            ]
        # A judge may be slow, and the others have nothing else to do.
        scores, readable, parts = startup.from_main(
            f"scores of {self._name}", found, timeout_s=startup.SLOW_S
        )
        mine = host_rows(len(rows), self._mesh)
        readable_B = np.array(readable, bool)
        arrays = {name: np.array(values, np.float32)[mine] for name, values in parts.items()}
        scores_B = np.where(readable_B, np.array(scores, np.float32), np.float32(0))[mine]
        batch = to_global({"scores": scores_B, "readable": readable_B[mine], "parts": arrays}, self._mesh)
        return Scored(batch["scores"], batch["readable"], batch["parts"])
