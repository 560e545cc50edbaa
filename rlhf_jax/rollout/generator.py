"""Who turns prompts into responses. Online methods and the generate job know only the protocol.

Another engine (a server, another library) can stand in by offering the same three calls.
"""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.placement import rollout_copier
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation, generate


class Generator(Protocol):
    """Responses from the parameters that were loaded last."""

    def load(self, params: Params) -> None:
        """Takes a copy of a policy to sample from."""

    def generate(
        self,
        tokens_BP: Int[Array, "B P"],
        lengths_B: Int[Array, " B"],
        rows_B: Int[Array, " B"],
        key: Key[Array, ""],
    ) -> Generation:
        """Samples one response per left-padded prompt."""

    def close(self) -> None:
        """Frees the copy."""


def check_finite(logprobs_BR: np.ndarray, model: str) -> None:
    """UserError where a sampled token has no log-probability: then the logits it was drawn from were no numbers."""
    wrong_B = ~np.isfinite(logprobs_BR).all(axis=1)
    if wrong_B.any():
        raise UserError(
            f"{model}: its logits are not finite in {wrong_B.sum()} of {len(wrong_B)} responses, so its samples mean "
            "nothing; its weights are too large for the dtype, or its training has diverged: use "
            "model.dtype=float32 or an earlier checkpoint"
        )


class DecodeGenerator:
    """The engine of this package: `sampling.decode` on a copy of the policy cut for decoding."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: tuple[int, ...],
        pad_id: int,
        dtype: str = "float32",
    ) -> None:
        self._config = config
        self._copy = rollout_copier(config, mesh, dtype)
        self._max_new_tokens = max_new_tokens
        self._sampling, self._pad_id = sampling, pad_id
        self._end_ids_E = np.array(end_ids, np.int32)
        self._params: Params | None = None

    def load(self, params: Params) -> None:
        self._params = self._copy(params)

    def generate(
        self,
        tokens_BP: Int[Array, "B P"],
        lengths_B: Int[Array, " B"],
        rows_B: Int[Array, " B"],
        key: Key[Array, ""],
    ) -> Generation:
        if self._params is None:
            raise RuntimeError("generate() before load()")
        return generate(
            self._config,
            self._params,
            tokens_BP,
            lengths_B,
            rows_B,
            key,
            self._sampling,
            jnp.asarray(self._end_ids_E),
            self._pad_id,
            max_new_tokens=self._max_new_tokens,
        )

    def close(self) -> None:
        self._params = None
