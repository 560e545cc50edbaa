"""The protocol of a sampling engine, which turns prompts into responses: load, generate, close.

Online methods and the generate job know only these three calls, so another engine (a server, another library) can
take the place of `sampling.decode_generator`.
"""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Array, Int, Key

from rlhf_jax.models.decoder import Params
from rlhf_jax.sampling.decode import Generation


class Generator(Protocol):
    """Samples responses from the parameters that were loaded last."""

    def load(self, params: Params) -> None:
        """Takes a copy of a policy to sample from."""

    def generate(
        self,
        tokens_BP: Int[Array, "B P"],
        lengths_B: Int[Array, " B"],
        rows_B: Int[Array, " B"],
        key: Key[Array, ""],
        samples: int = 1,
    ) -> Generation:
        """Samples `samples` responses of each left-padded prompt: [B * samples, R], those of one next to each other."""

    def close(self) -> None:
        """Frees the copy."""
