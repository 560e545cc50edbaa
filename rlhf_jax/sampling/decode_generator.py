"""The sampling engine of this package: `sampling.decode` on a copy of the policy that is cut for decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.placement import rollout_copier
from rlhf_jax.parallel.mesh import BATCH_AXES, replicate
from rlhf_jax.parallel.sampling_mesh import sampling_mesh
from rlhf_jax.sampling.beam_search import Beams, Found, beam_search
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation, generate


class DecodeGenerator:
    """The `rollout.generator.Generator` that samples with this package's own decode engine, on the mesh it is given.

    tensor: devices that share a copy of the policy, see `sampling_mesh`; prompts and responses lie on the given mesh.
    """

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
        microbatches: int = 1,
        tensor: int = 0,
    ) -> None:
        self._config, self._mesh = config, sampling_mesh(mesh, tensor)
        self._copy = rollout_copier(config, self._mesh, dtype, mesh)
        self._moves = self._mesh is not mesh
        self._max_new_tokens, self._microbatches = max_new_tokens, microbatches
        self._sampling, self._pad_id = sampling, pad_id
        self._end_ids_E = np.array(end_ids, np.int32)
        self._rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        self._params: Params | None = None

    def load(self, params: Params) -> None:
        """Copies a policy for decoding: cast, sharded over "tensor" only, an adapter merged."""
        # A copy and not a reference: the train step donates the buffers of its parameters.
        self._params = self._copy(params)

    def generate(
        self,
        tokens_BP: Int[Array, "B P"],
        lengths_B: Int[Array, " B"],
        rows_B: Int[Array, " B"],
        key: Key[Array, ""],
        samples: int = 1,
    ) -> Generation:
        """Samples responses of each left-padded prompt, next to each other, from the parameters loaded last."""
        if self._params is None:
            raise RuntimeError("generate() before load()")
        # What is sampled depends on the mesh by rounding alone; constraints within the program are of the current one.
        with jax.set_mesh(self._mesh):
            sampled = generate(
                self._config,
                self._params,
                *self._placed((tokens_BP, lengths_B, rows_B, key)),
                self._sampling,
                jnp.asarray(self._end_ids_E),
                self._pad_id,
                max_new_tokens=self._max_new_tokens,
                samples=samples,
                microbatches=self._microbatches,
            )
        # Left to itself XLA names the same places by other axes of the mesh, for which the programs that were compiled
        # before the run would be compiled again.
        return jax.tree.map(lambda x: jax.device_put(x, self._rows) if x.ndim else x, sampled)

    def search(
        self, tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"], how: Beams, *, returned: int
    ) -> Found:
        """The `returned` best responses that beam search finds for each left-padded prompt. Nothing is drawn."""
        if self._params is None:
            raise RuntimeError("search() before load()")
        with jax.set_mesh(self._mesh):
            found = beam_search(
                self._config,
                self._params,
                *self._placed((tokens_BP, lengths_B)),
                how,
                jnp.asarray(self._end_ids_E),
                self._pad_id,
                max_new_tokens=self._max_new_tokens,
            )
        return jax.tree.map(lambda x: jax.device_put(x[:, :returned], self._rows) if x.ndim else x, found)

    def _placed(self, given: tuple[Array, ...]) -> tuple[Array, ...]:
        """Rows, and a key, on the mesh that samples."""
        if not self._moves:
            return given
        rows = NamedSharding(self._mesh, PartitionSpec(BATCH_AXES))
        # The key of an evaluation is this process's own, as it is every other's.
        return tuple(jax.device_put(x, rows) if x.ndim else replicate(x, self._mesh) for x in given)

    def close(self) -> None:
        """Drops the copy, which frees its device memory."""
        self._params = None
