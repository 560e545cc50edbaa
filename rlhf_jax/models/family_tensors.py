"""Where the tensors of a checkpoint go in our parameters, for the layers of each family (layouts of `layouts`)."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_jax.models import layouts
from rlhf_jax.models.layouts import Layout

Path = tuple[str, ...]


class Tensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
      name: below the family's prefix, and below the layer's where it is a layer's; {e} is the expert.
      leaves: the parameters it holds.
      layout: how.
    """

    name: str
    leaves: tuple[Path, ...]
    layout: Layout


def tensor_of(name: str, leaf: str, layout: Layout = layouts.SAME) -> Tensor:
    """A tensor that holds one parameter; "a.b" is the path ("a", "b")."""
    return Tensor(name, (tuple(leaf.split(".")),), layout)


def _qkv(name: str, layout: Layout, ending: str = "") -> Tensor:
    """A tensor that holds query, key and value."""
    return Tensor(name, tuple(("attention", part + ending) for part in "qkv"), layout)


def norm_of(name: str, leaf: str) -> tuple[Tensor, Tensor]:
    return tensor_of(f"{name}.weight", f"{leaf}.scale"), tensor_of(f"{name}.bias", f"{leaf}.bias")


def _projections(attention: str, out: str) -> tuple[Tensor, ...]:
    """Separate tensors for query, key, value and output."""
    found = []
    for part in "qkv":
        found.append(tensor_of(f"{attention}.{part}_proj.weight", f"attention.{part}", layouts.INTO_HEADS))
        found.append(tensor_of(f"{attention}.{part}_proj.bias", f"attention.{part}_bias"))
    found.append(tensor_of(f"{attention}.{out}.weight", "attention.o", layouts.OUT_OF_HEADS))
    found.append(tensor_of(f"{attention}.{out}.bias", "attention.o_bias"))
    return tuple(found)


def _plain_mlp(up: str, down: str, layout: Layout = layouts.MATRIX) -> tuple[Tensor, ...]:
    return (
        tensor_of(f"{up}.weight", "mlp.up", layout),
        tensor_of(f"{up}.bias", "mlp.up_bias"),
        tensor_of(f"{down}.weight", "mlp.down", layout),
        tensor_of(f"{down}.bias", "mlp.down_bias"),
    )


LLAMA_TRUNK = (tensor_of("embed_tokens.weight", "embed"), *norm_of("norm", "norm"))
_LLAMA_ATTENTION = (
    *norm_of("input_layernorm", "attention_norm"),
    *_projections("self_attn", "o_proj"),
    tensor_of("self_attn.q_norm.weight", "attention.q_norm.scale"),
    tensor_of("self_attn.k_norm.weight", "attention.k_norm.scale"),
)
_LLAMA_MLP = tuple(
    tensor_of(f"mlp.{part}_proj.weight", f"mlp.{part}", layouts.MATRIX) for part in ("gate", "up", "down")
)
LLAMA_LAYER = (*_LLAMA_ATTENTION, *norm_of("post_attention_layernorm", "mlp_norm"), *_LLAMA_MLP)
GEMMA_LAYER = (
    *_LLAMA_ATTENTION,
    *norm_of("post_attention_layernorm", "attention_post_norm"),
    *norm_of("pre_feedforward_layernorm", "mlp_norm"),
    *norm_of("post_feedforward_layernorm", "mlp_post_norm"),
    *_LLAMA_MLP,
)
MIXTRAL_LAYER = (
    *_LLAMA_ATTENTION,
    *norm_of("post_attention_layernorm", "mlp_norm"),
    tensor_of("block_sparse_moe.gate.weight", "mlp.router", layouts.MATRIX),
    tensor_of("block_sparse_moe.experts.{e}.w1.weight", "mlp.gate", layouts.MATRIX),
    tensor_of("block_sparse_moe.experts.{e}.w3.weight", "mlp.up", layouts.MATRIX),
    tensor_of("block_sparse_moe.experts.{e}.w2.weight", "mlp.down", layouts.MATRIX),
)
GPT2_LAYER = (
    *norm_of("ln_1", "attention_norm"),
    _qkv("attn.c_attn.weight", layouts.CONV_QKV),
    _qkv("attn.c_attn.bias", layouts.CONV_QKV_BIAS, "_bias"),
    tensor_of("attn.c_proj.weight", "attention.o", layouts.CONV_OUT_OF_HEADS),
    tensor_of("attn.c_proj.bias", "attention.o_bias"),
    *norm_of("ln_2", "mlp_norm"),
    *_plain_mlp("mlp.c_fc", "mlp.c_proj", layouts.SAME),
)
GPTJ_LAYER = (
    *norm_of("ln_1", "attention_norm"),
    *_projections("attn", "out_proj"),
    *_plain_mlp("mlp.fc_in", "mlp.fc_out"),
)
NEOX_LAYER = (
    *norm_of("input_layernorm", "attention_norm"),
    _qkv("attention.query_key_value.weight", layouts.BY_HEAD_QKV),
    _qkv("attention.query_key_value.bias", layouts.BY_HEAD_QKV_BIAS, "_bias"),
    tensor_of("attention.dense.weight", "attention.o", layouts.OUT_OF_HEADS),
    tensor_of("attention.dense.bias", "attention.o_bias"),
    *norm_of("post_attention_layernorm", "mlp_norm"),
    *_plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)
OPT_LAYER = (
    *norm_of("self_attn_layer_norm", "attention_norm"),
    *_projections("self_attn", "out_proj"),
    *norm_of("final_layer_norm", "mlp_norm"),
    *_plain_mlp("fc1", "fc2"),
)
