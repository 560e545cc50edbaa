"""The prompts of a run as batches by their numbers, each process's part of them on its own devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.batches import Prompts, pad_prompts
from rlhf_jax.parallel.mesh import host_rows, to_global


class PromptRows(NamedTuple):
    """Prompts to sample from, by number.

    Attributes:
      prompts: as token ids.
      records: as they were in the file, for a reward model that reads text.
      P: columns of a batch of them, the same for training and evaluation.
      pad_id: what fills a row on its left.
      beside: (numbers of a batch's prompts, this process's part of them) -> further arrays of the batch.
    """

    prompts: Prompts
    records: tuple[dict, ...]
    P: int
    pad_id: int
    beside: Callable[[np.ndarray, slice | np.ndarray], dict[str, np.ndarray]] = lambda index_B, rows: {}

    def batch(self, index_B: np.ndarray, mesh: Mesh) -> dict[str, jax.Array]:
        """tokens [B, P], lengths [B] and rows [B], the number of each row in the batch; and what stands beside them."""
        # Sampling folds its key with this number, so a row's noise is the same on any device.
        mine = host_rows(len(index_B), mesh)
        arrays = pad_prompts(self.prompts, index_B, self.P, self.pad_id, rows=mine)
        arrays |= {"rows": np.arange(len(index_B), dtype=np.int32)[mine]} | self.beside(index_B, mine)
        return to_global(arrays, mesh)
