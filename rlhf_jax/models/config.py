"""The shape of a decoder: every number that decides what its parameters are, and how it is computed.

The defaults are Llama's. Another family is the same layers with other values of these fields, never layers of its
own; `huggingface/families.py` has the table.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")  # of attention; `fused` chooses
REMAT_POLICIES = ("none", "dots", "full")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pre-training.

    Attributes:
      kind: "linear" (all frequencies divided by `factor`) or "llama3" (only the low ones, blended between).
      low, high: llama3: wavelengths above original/low are divided, those below original/high are kept.
      original: llama3: longest sequence of pre-training.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
      vocab_size: V, rows of the embedding table.
      width: D, residual width.
      layers: L.
      heads: H, query heads.
      kv_heads: G, key-value heads; must divide `heads`.
      head_dim: K, size of one head.
      ff: F, hidden width of the feed-forward.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of the norms.
      tie_embeddings: output head = transposed embedding table.
      max_positions: longest sequence the checkpoint was made for; with learned positions, the table's length.
      dtype: dtype of the matrix products ("float32", "bfloat16"); norms, softmax and losses are float32.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
      attention: what computes causal attention without a mask: "xla", "cudnn" (NVIDIA), "splash" (TPU), or "auto".
      family: the Hugging Face `model_type` whose names an export uses.
      norm: "rms" (scale), or "layer" (mean removed, scale and bias).
      norm_offset: norms multiply by 1 + scale (Gemma).
      post_norms: attention and feed-forward outputs are normed before they are added (Gemma 2 and 3).
      qk_norm: each head's query and key are RMS-normed before the rotary positions (Qwen 3, Gemma 3).
      residual: "serial"; "parallel" (attention and feed-forward read the same input, each with its norm:
        GPT-NeoX); "shared" (as parallel, with one norm for both: GPT-J).
      qkv_bias, out_bias, mlp_bias, head_bias: which products have a bias (mlp_bias: where it is not gated).
      gated: feed-forward is down(act(gate x) * up x), else down(act(up x)).
      activation: one of ACTIVATIONS.
      experts, experts_per_token: E feed-forwards of which each token takes the best few; 0 is one, always.
      positions: "rotary" or "learned".
      position_offset: rows of the learned table before position 0 (OPT: 2).
      rotary_dim: leading features of a head that are rotated; 0 is all.
      rotary_interleaved: features (2i, 2i+1) are a pair (GPT-J), else (i, i + rotary_dim/2).
      rope_scaling: stretched frequencies of the layers that see everything.
      rope_theta_local: base in the windowed layers, never stretched (Gemma 3); 0 is as elsewhere.
      window: tokens a windowed layer sees, itself included; 0 when no layer is windowed.
      local_layers: which layers are windowed, one flag per layer; empty when none is.
      query_scale: scores are q k * query_scale; 0 is 1/sqrt(K).
      attention_softcap, logit_softcap: x becomes cap * tanh(x / cap) (Gemma 2); 0 is off.
      embed_scale: factor on token embeddings (Gemma: sqrt(D)).
      adapter_scale: factor on what low-rank adapters add, where the parameters hold some (see `lora`).
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
    attention: str = "auto"
    family: str = "llama"
    norm: str = "rms"
    norm_offset: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    residual: str = "serial"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    gated: bool = True
    activation: str = "silu"
    experts: int = 0
    experts_per_token: int = 0
    positions: str = "rotary"
    position_offset: int = 0
    rotary_dim: int = 0
    rotary_interleaved: bool = False
    rope_scaling: RopeScaling | None = None
    rope_theta_local: float = 0.0
    window: int = 0
    local_layers: tuple[bool, ...] = ()
    query_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    adapter_scale: float = 0.0

    # Checked here and not where config.json is read: overrides such as model.dtype come later, by
    # `dataclasses.replace`, which runs this again.
    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(f"model.kv_heads: {self.kv_heads} does not divide model.heads={self.heads}")
        if self.positions == "rotary" and (self.head_dim % 2 or self.rotary_dim % 2):
            odd = "rotary_dim" if self.rotary_dim % 2 else "head_dim"
            raise UserError(
                f"model.{odd}: {getattr(self, odd)} is odd; rotary positions need an even head size"
            )
        if self.rotary_dim > self.head_dim:
            raise UserError(
                f"model.rotary_dim: {self.rotary_dim} is more than the head size {self.head_dim}; use at most that"
            )
        for field, known in (
            ("remat", REMAT_POLICIES),
            ("attention", IMPLEMENTATIONS),
            ("dtype", ("float32", "bfloat16")),
            ("activation", ACTIVATIONS),
            ("norm", ("rms", "layer")),
            ("residual", ("serial", "parallel", "shared")),
            ("positions", ("rotary", "learned")),
        ):
            if getattr(self, field) not in known:
                raise UserError(f"model.{field}: {getattr(self, field)!r}; use one of {', '.join(known)}")
        if self.local_layers and (len(self.local_layers) != self.layers or self.window < 1):
            raise UserError(
                f"model.local_layers: {len(self.local_layers)} flags and window={self.window}; "
                f"use one flag for each of the {self.layers} layers and a window of at least 1"
            )

    @property
    def mixed_layers(self) -> bool:
        """Whether only some layers are windowed, so that each step of the scan over layers must be told which it is."""
        return any(self.local_layers) and not all(self.local_layers)
