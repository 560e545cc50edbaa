"""For each family: which of our parameters every tensor of a layer holds, and how it is laid out.

torch linears are [out, in] and heads are folded into one axis; ours are [in, out] with heads apart:
[D, H, K] into heads, [H, K, D] out of them. Some families keep query, key and value in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Parts = tuple[np.ndarray, ...]


class Layout(NamedTuple):
    """A bijection between one tensor of a checkpoint and one or more of our arrays (of one layer).

    Attributes:
      split: (tensor, K) -> our arrays. Views where possible.
      join: (our arrays, K) -> the tensor.
    """

    split: Callable[[np.ndarray, int], Parts]
    join: Callable[[Parts, int], np.ndarray]


def one(split: Callable[[np.ndarray, int], np.ndarray], join: Callable[[np.ndarray], np.ndarray]) -> Layout:
    """A layout of a tensor that holds one of our arrays."""
    return Layout(lambda x, K: (split(x, K),), lambda parts, K: join(parts[0]))


# Layouts of tensors with one parameter. SAME: vectors, embeddings and GPT-2's matrices; ROW: a score head of
# one row; MATRIX: a torch linear [out, in]. Heads of size K are one axis there and two here.
SAME = one(lambda x, K: x, lambda x: x)
ROW = one(lambda x, K: x[0], lambda x: x[None])
MATRIX = one(lambda x, K: x.T, lambda x: x.T)
INTO_HEADS = one(lambda x, K: x.T.reshape(x.shape[1], -1, K), lambda x: x.reshape(len(x), -1).T)
OUT_OF_HEADS = one(lambda x, K: x.T.reshape(-1, K, len(x)), lambda x: x.reshape(-1, x.shape[-1]).T)

# GPT-2 keeps its matrices as [in, out], and [D, 3 H K]: all queries, all keys, all values.
CONV_OUT_OF_HEADS = one(lambda x, K: x.reshape(-1, K, x.shape[1]), lambda x: x.reshape(-1, x.shape[-1]))
CONV_QKV = Layout(
    lambda x, K: tuple(x.reshape(len(x), 3, -1, K).swapaxes(0, 1)),
    lambda parts, K: np.stack(parts, 1).reshape(len(parts[0]), -1),
)
CONV_QKV_BIAS = Layout(lambda x, K: tuple(x.reshape(3, -1)), lambda parts, K: np.concatenate(parts))

# Layouts whose tensor is [in, out], as ours are; `peft` must know, since its files keep A and B as [out, in].
IN_FIRST = (SAME, CONV_OUT_OF_HEADS, CONV_QKV)

# GPT-NeoX keeps [H 3 K, D]: each head's query, key and value.
BY_HEAD_QKV = Layout(
    lambda x, K: tuple(x.reshape(-1, 3, K, x.shape[1]).transpose(1, 3, 0, 2)),
    lambda parts, K: np.stack(parts).transpose(2, 0, 3, 1).reshape(-1, len(parts[0])),
)
BY_HEAD_QKV_BIAS = Layout(
    lambda x, K: tuple(x.reshape(-1, 3, K).swapaxes(0, 1).reshape(3, -1)),
    lambda parts, K: np.stack([x.reshape(-1, K) for x in parts], 1).reshape(-1),
)


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


def tensor_of(name: str, leaf: str, layout: Layout = SAME) -> Tensor:
    """A tensor that holds one parameter; "a.b" is the path ("a", "b")."""
    return Tensor(name, (tuple(leaf.split(".")),), layout)


def _qkv(name: str, layout: Layout, ending: str = "") -> Tensor:
    """A tensor that holds query, key and value."""
    return Tensor(name, tuple(("attention", part + ending) for part in "qkv"), layout)


def norm_of(name: str, leaf: str) -> tuple[Tensor, Tensor]:
    """Scale and bias of a norm."""
    return tensor_of(f"{name}.weight", f"{leaf}.scale"), tensor_of(f"{name}.bias", f"{leaf}.bias")


def _projections(attention: str, out: str) -> tuple[Tensor, ...]:
    """Separate tensors for query, key, value and output."""
    found = []
    for part in "qkv":
        found.append(tensor_of(f"{attention}.{part}_proj.weight", f"attention.{part}", INTO_HEADS))
        found.append(tensor_of(f"{attention}.{part}_proj.bias", f"attention.{part}_bias"))
    found.append(tensor_of(f"{attention}.{out}.weight", "attention.o", OUT_OF_HEADS))
    found.append(tensor_of(f"{attention}.{out}.bias", "attention.o_bias"))
    return tuple(found)


def _plain_mlp(up: str, down: str, layout: Layout = MATRIX) -> tuple[Tensor, ...]:
    return (
        tensor_of(f"{up}.weight", "mlp.up", layout),
        tensor_of(f"{up}.bias", "mlp.up_bias"),
        tensor_of(f"{down}.weight", "mlp.down", layout),
        tensor_of(f"{down}.bias", "mlp.down_bias"),
    )


# The families' tables, each in the order of its layer's computation; RMS
# norms have no bias, which then is not expected.
LLAMA_TRUNK = (tensor_of("embed_tokens.weight", "embed"), *norm_of("norm", "norm"))
_LLAMA_ATTENTION = (
    *norm_of("input_layernorm", "attention_norm"),
    *_projections("self_attn", "o_proj"),
    tensor_of("self_attn.q_norm.weight", "attention.q_norm.scale"),
    tensor_of("self_attn.k_norm.weight", "attention.k_norm.scale"),
)
_LLAMA_MLP = tuple(
    tensor_of(f"mlp.{part}_proj.weight", f"mlp.{part}", MATRIX) for part in ("gate", "up", "down")
)
LLAMA_LAYER = (*_LLAMA_ATTENTION, *norm_of("post_attention_layernorm", "mlp_norm"), *_LLAMA_MLP)
# post_attention_layernorm is the norm before the feed-forward in
# Llama, and the norm of attention's output here.
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
    tensor_of("block_sparse_moe.gate.weight", "mlp.router", MATRIX),
    # w1 is the gate, w2 the way down and w3 the way up, in Mistral's numbering.
    tensor_of("block_sparse_moe.experts.{e}.w1.weight", "mlp.gate", MATRIX),
    tensor_of("block_sparse_moe.experts.{e}.w3.weight", "mlp.up", MATRIX),
    tensor_of("block_sparse_moe.experts.{e}.w2.weight", "mlp.down", MATRIX),
)
GPT2_LAYER = (
    *norm_of("ln_1", "attention_norm"),
    _qkv("attn.c_attn.weight", CONV_QKV),
    _qkv("attn.c_attn.bias", CONV_QKV_BIAS, "_bias"),
    tensor_of("attn.c_proj.weight", "attention.o", CONV_OUT_OF_HEADS),
    tensor_of("attn.c_proj.bias", "attention.o_bias"),
    *norm_of("ln_2", "mlp_norm"),
    *_plain_mlp("mlp.c_fc", "mlp.c_proj", SAME),
)
# One norm for both attention and feed-forward.
GPTJ_LAYER = (
    *norm_of("ln_1", "attention_norm"),
    *_projections("attn", "out_proj"),
    *_plain_mlp("mlp.fc_in", "mlp.fc_out"),
)
NEOX_LAYER = (
    *norm_of("input_layernorm", "attention_norm"),
    _qkv("attention.query_key_value.weight", BY_HEAD_QKV),
    _qkv("attention.query_key_value.bias", BY_HEAD_QKV_BIAS, "_bias"),
    tensor_of("attention.dense.weight", "attention.o", OUT_OF_HEADS),
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
