"""The shape of a decoder: every number that decides what its parameters are, and how it is computed."""

from __future__ import annotations

import dataclasses

from rlhf_jax.errors import UserError

REMAT_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-shaped decoder: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

    Attributes:
      vocab_size: V, rows of the embedding table.
      width: D, residual width.
      layers: L.
      heads: H, query heads.
      kv_heads: G, key-value heads; must divide `heads`.
      head_dim: K, size of one head.
      ff: F, hidden width of the feed-forward.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of RMSNorm.
      tie_embeddings: output head = transposed embedding table.
      max_positions: longest sequence the checkpoint was made for; written to exports.
      dtype: dtype of the matrix products ("float32", "bfloat16"); norms, softmax and losses are float32.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    max_positions: int = 2048
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(f"model.kv_heads: {self.kv_heads} does not divide model.heads={self.heads}")
        if self.head_dim % 2:
            raise UserError(
                f"model.head_dim: {self.head_dim} is odd; rotary positions need an even head size"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"model.remat: {self.remat!r}; use one of {', '.join(REMAT_POLICIES)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.dtype: {self.dtype!r}; use float32 or bfloat16")
