"""The tensors of a GGUF file under transformers' names and in their layout, dequantised one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models.gguf_config import ROPE_FREQS

if TYPE_CHECKING:
    from rlhf_jax.models.gguf_files import Contents

Shapes = dict[str, tuple[int, ...]]


def named(
    found: Contents, config: dict[str, Any], tell: Callable[[int, int], None]
) -> tuple[Shapes, Callable[[str], np.ndarray]]:
    """(shapes by transformers' name, name -> float32 array), as `tensor_shards.write` takes them.

    Raises UserError for a tensor that is missing, not known, of another shape, or quantised in a way that gguf
    cannot undo.
    """
    expected = _expected(config)
    there = {x.name: x for x in found.tensors if x.name != ROPE_FREQS}
    for name in there:
        if name not in expected:
            raise UserError(
                f"{found.path}: tensor {name} is not one of a {config['model_type']} model; "
                "take the model as a Hugging Face folder"
            )
    for name, (_, shape) in expected.items():
        if name not in there:
            raise UserError(f"{found.path}: tensor {name} is missing; download it again")
        given = tuple(int(n) for n in reversed(there[name].shape))
        if given != shape:
            raise UserError(f"{found.path}: tensor {name} is {given}, but its settings say {shape}")
        _check_type(found, there[name])
    sources = {theirs: name for name, (theirs, _) in expected.items()}
    total, done = sum(math.prod(shape) for _, shape in expected.values()), 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        source = sources[name]
        w = _dequantised(there[source]).reshape(expected[source][1])
        if config["model_type"] == "llama" and source.endswith((".attn_q.weight", ".attn_k.weight")):
            w = _halves(w, w.shape[0] // config["head_dim"])
        done += w.size
        tell(done, total)
        return w

    return dict(expected.values()), read


def _expected(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The file's name of each tensor -> (transformers' name, shape)."""
    D, V, F, K = (config[name] for name in ("hidden_size", "vocab_size", "intermediate_size", "head_dim"))
    Q, KV = config["num_attention_heads"] * K, config["num_key_value_heads"] * K
    layer = {
        "attn_norm.weight": ("input_layernorm.weight", (D,)),
        "attn_q.weight": ("self_attn.q_proj.weight", (Q, D)),
        "attn_k.weight": ("self_attn.k_proj.weight", (KV, D)),
        "attn_v.weight": ("self_attn.v_proj.weight", (KV, D)),
        "attn_output.weight": ("self_attn.o_proj.weight", (D, Q)),
        "ffn_norm.weight": ("post_attention_layernorm.weight", (D,)),
        "ffn_gate.weight": ("mlp.gate_proj.weight", (F, D)),
        "ffn_up.weight": ("mlp.up_proj.weight", (F, D)),
        "ffn_down.weight": ("mlp.down_proj.weight", (D, F)),
    }
    if config["model_type"] == "qwen2":
        layer |= {f"attn_{x}.bias": (f"self_attn.{x}_proj.bias", (Q if x == "q" else KV,)) for x in "qkv"}
    if config["model_type"] == "qwen3":
        layer |= {f"attn_{x}_norm.weight": (f"self_attn.{x}_norm.weight", (K,)) for x in "qk"}
    trunk = {
        "token_embd.weight": ("model.embed_tokens.weight", (V, D)),
        "output_norm.weight": ("model.norm.weight", (D,)),
    }
    if not config["tie_word_embeddings"]:
        trunk["output.weight"] = ("lm_head.weight", (V, D))
    for i in range(config["num_hidden_layers"]):
        trunk |= {
            f"blk.{i}.{ours}": (f"model.layers.{i}.{name}", shape) for ours, (name, shape) in layer.items()
        }
    return trunk


def _check_type(found: Contents, tensor: Any) -> None:
    """Tries one block, so that nothing is written of a file that cannot be read to its end."""
    try:
        _dequantised(tensor, rows=1)
    # What the package gguf raises for kinds that it does not know, by version.
    except (NotImplementedError, ValueError, KeyError) as error:
        raise UserError(
            f"{found.path}: tensor {tensor.name} is quantised as {tensor.tensor_type.name}, which the package "
            "gguf cannot undo; take the model in another quantisation (Q8_0, Q4_K_M ...)"
        ) from error


def _dequantised(tensor: Any, rows: int | None = None) -> np.ndarray:
    from gguf import dequantize

    if tensor.tensor_type.name.startswith("I") and tensor.tensor_type.name[1:].isdigit():
        raise ValueError(f"{tensor.tensor_type.name}: whole numbers are no weights")
    return dequantize(tensor.data[:rows], tensor.tensor_type).astype(np.float32, copy=False)


def _halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary pairs (0, 1), (2, 3) ... as llama.cpp orders them -> first halves, then second halves."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)
