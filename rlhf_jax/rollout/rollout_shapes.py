"""The programs of a rollout, traced from shapes alone, so that memory can be checked before any weight is read.

The shapes carry the shardings that the arrays of the run will have, so a program that was compiled for the check is
found by the run in the compilation cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model
from rlhf_jax.models.placement import planned_copy, planned_params
from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.parallel.sampling_mesh import sampling_mesh
from rlhf_jax.rollout.rewards import token_program
from rlhf_jax.rollout.text_rewards import text_program
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation, generate


class RolloutShapes:
    """Shapes and programs of a rollout: B prompts of P columns, each with `samples` responses of up to R tokens.

    Attributes:
      sampling: the mesh that sampling runs on, see `sampling_mesh`.
    """

    def __init__(
        self,
        mesh: Mesh,
        B: int,
        P: int,
        R: int,
        temperature: float,
        pad_id: int,
        samples: int = 1,
        microbatches: int = 1,
        tensor: int = 0,
    ) -> None:
        self._mesh, self._sizes, self._pad_id, self._samples = mesh, (B, P, R), pad_id, samples
        self._microbatches = microbatches
        self._sampler = Sampling(temperature)
        self.sampling = sampling_mesh(mesh, tensor)

    def prompts(self, samples: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """tokens [B, P], lengths [B], rows [B]; each prompt `samples` times."""
        B, P, _ = self._sizes
        B *= samples
        shapes = {"tokens": (B, P), "lengths": (B,), "rows": (B,)}
        return {name: self._cut(jax.ShapeDtypeStruct(shape, jnp.int32)) for name, shape in shapes.items()}

    def trace_sampling(self, model: ModelConfig, dtype: str) -> jax.stages.Traced:
        """The decode program, traced for the policy's sampling copy."""
        section = "mesh" if self.sampling is self._mesh else "rollout"
        copy = planned_copy(model, self.sampling, dtype, section)
        # One end token, as most tokenizers have; with more the run compiles its own program of this size.
        everywhere = NamedSharding(self.sampling, PartitionSpec())
        ends = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=everywhere)
        _, _, R = self._sizes
        sizes = {"max_new_tokens": R, "samples": self._samples, "microbatches": self._microbatches}
        with jax.set_mesh(self.sampling):
            return generate.trace(model, copy, *self._given(self.sampling), self._sampler, ends, 0, **sizes)

    def sampled(self, model: ModelConfig) -> Generation:
        """The shapes of what sampling will return."""
        _, _, R = self._sizes
        params, sizes = planned_params(model, self._mesh), {"max_new_tokens": R, "samples": self._samples}
        found = jax.eval_shape(
            lambda *x: generate(model, *x, self._sampler, jnp.zeros(1, jnp.int32), 0, **sizes),
            params,
            *self._given(self._mesh),
        )
        # The number of decode steps is a scalar; everything else has one row per response.
        return jax.tree.map(lambda x: self._cut(x) if x.ndim else x, found)

    def trace_scoring(
        self, reward: Model, policy: ModelConfig, closing: tuple[int, ...], text_length: int
    ) -> jax.stages.Traced:
        """The scoring program, traced for sampled tokens, or for rows of text_length tokens where that is not 0."""
        B = self._sizes[0] * self._samples
        if text_length:
            tokens, lengths = (
                self._cut(jax.ShapeDtypeStruct(shape, jnp.int32)) for shape in ((B, text_length), (B,))
            )
            return text_program(self._microbatches).trace(reward, tokens, lengths, 0.0)
        prompts = self.prompts(self._samples)
        return token_program(closing, self._pad_id, self._microbatches).trace(
            reward, prompts["tokens"], prompts["lengths"], self.sampled(policy), 0.0
        )

    def _given(self, mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
        # The dtype of a typed key depends on the configured generator, so jax is asked for it.
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
        return (*(self._cut(x, mesh) for x in self.prompts().values()), key)

    def _cut(self, x: jax.ShapeDtypeStruct, mesh: Mesh | None = None) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh or self._mesh, PartitionSpec(BATCH_AXES))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
