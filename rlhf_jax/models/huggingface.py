"""Weights in and out as a Hugging Face folder: the one form in which models travel between jobs.

A folder holds `config.json` (a LlamaConfig), `model.safetensors` and the tokenizer files. A language model is
written as LlamaForCausalLM, a reward or value model as LlamaForSequenceClassification with one label.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# (our path below "layers", Hugging Face name below "model.layers.N", how the [out, in] matrix is folded)
_LAYER_TENSORS = (
    (("attention_norm", "scale"), "input_layernorm.weight", "vector"),
    (("attention", "q"), "self_attn.q_proj.weight", "heads_out"),
    (("attention", "k"), "self_attn.k_proj.weight", "heads_out"),
    (("attention", "v"), "self_attn.v_proj.weight", "heads_out"),
    (("attention", "o"), "self_attn.o_proj.weight", "heads_in"),
    (("mlp_norm", "scale"), "post_attention_layernorm.weight", "vector"),
    (("mlp", "gate"), "mlp.gate_proj.weight", "matrix"),
    (("mlp", "up"), "mlp.up_proj.weight", "matrix"),
    (("mlp", "down"), "mlp.down_proj.weight", "matrix"),
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model read from a folder: its shape, its parameters in host memory, and what a reward model adds."""

    config: ModelConfig
    params: Params
    is_scalar: bool
    reward_mean: float


def read_config(folder: str | Path) -> tuple[ModelConfig, dict]:
    """The model's shape and the raw `config.json`; UserError when the folder holds no Llama-shaped model."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no config.json; a model folder is what a training job writes to its export/"
        )
    raw = json.loads(path.read_text())
    if raw.get("model_type") != "llama":
        raise UserError(
            f"{path}: model_type {raw.get('model_type')!r}; only Llama-shaped decoders can be loaded"
        )
    rope = raw.get("rope_parameters") or {}
    config = ModelConfig(
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        ff=raw["intermediate_size"],
        rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta", 10_000.0)),
        norm_eps=raw["rms_norm_eps"],
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_positions=raw.get("max_position_embeddings", 2048),
    )
    return config, raw


def load(folder: str | Path, **overrides: object) -> Checkpoint:
    """Reads a folder written by `save` or by transformers.

    Args:
      overrides: ModelConfig fields that do not change parameters (dtype, remat).

    Raises:
      UserError: no such model, or a tensor that is missing or of another shape, by name.
    """
    config, raw = read_config(folder)
    config = dataclasses.replace(config, **overrides)
    tensors = _read_tensors(Path(folder))
    is_scalar = "score.weight" in tensors
    layers: dict = {}
    for (group, leaf), name, fold in _LAYER_TENSORS:
        stack = [_take(tensors, f"model.layers.{i}.{name}", folder) for i in range(config.layers)]
        layers.setdefault(group, {})[leaf] = np.stack([_unfold(x, fold, config) for x in stack])
    params = {
        "embed": _take(tensors, "model.embed_tokens.weight", folder),
        "layers": layers,
        "norm": {"scale": _take(tensors, "model.norm.weight", folder)},
    }
    if is_scalar:
        params["score"] = _take(tensors, "score.weight", folder)[0]
    elif not config.tie_embeddings:
        params["head"] = np.ascontiguousarray(_take(tensors, "lm_head.weight", folder).T)
    return Checkpoint(config, params, is_scalar, float(raw.get("reward_mean", 0.0)))


def save(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    token_ids: dict[str, int],
    tokenizer_from: str | Path,
    reward_mean: float | None = None,
) -> None:
    """Writes a folder that `load` and `transformers` read, replacing an older one whole.

    Args:
      params: host (numpy) or device arrays of one process.
      token_ids: `pad_token_id`, `bos_token_id`, `eos_token_id` for config.json.
      tokenizer_from: folder whose tokenizer files are copied unchanged.
      reward_mean: for reward models, the mean score of demonstrations; readers subtract it (rule M8).
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in sorted(Path(tokenizer_from).iterdir()):
        if file.is_file() and (
            "token" in file.name or file.name in ("vocab.json", "merges.txt", "chat_template.jinja")
        ):
            shutil.copyfile(file, partial / file.name)
    save_file(_to_huggingface(config, params), partial / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_llama_config(config, params, token_ids, reward_mean), indent=2, sort_keys=True)
    (partial / "config.json").write_text(text + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _llama_config(config: ModelConfig, params: Params, token_ids: dict, reward_mean: float | None) -> dict:
    raw = {
        "model_type": "llama",
        "architectures": ["LlamaForSequenceClassification" if "score" in params else "LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        **token_ids,
    }
    if "score" in params:
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        raw["reward_mean"] = 0.0 if reward_mean is None else reward_mean
    return raw


def _to_huggingface(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    tensors = {
        "model.embed_tokens.weight": np.asarray(params["embed"]),
        "model.norm.weight": np.asarray(params["norm"]["scale"]),
    }
    for (group, leaf), name, fold in _LAYER_TENSORS:
        stacked = np.asarray(params["layers"][group][leaf])
        for i in range(config.layers):
            tensors[f"model.layers.{i}.{name}"] = _fold(stacked[i], fold)
    if "score" in params:
        tensors["score.weight"] = np.asarray(params["score"])[None]
    elif not config.tie_embeddings:
        tensors["lm_head.weight"] = np.ascontiguousarray(np.asarray(params["head"]).T)
    return tensors


def _fold(x: np.ndarray, fold: str) -> np.ndarray:
    """Our [in, heads, size] / [heads, size, out] / [in, out] layout to torch's [out, in]."""
    if fold == "heads_out":
        x = x.reshape(x.shape[0], -1)
    elif fold == "heads_in":
        x = x.reshape(-1, x.shape[-1])
    return x if fold == "vector" else np.ascontiguousarray(x.T)


def _unfold(x: np.ndarray, fold: str, config: ModelConfig) -> np.ndarray:
    if fold == "vector":
        return x
    x = np.ascontiguousarray(x.T)
    if fold == "heads_out":
        return x.reshape(x.shape[0], -1, config.head_dim)
    return x.reshape(-1, config.head_dim, x.shape[-1]) if fold == "heads_in" else x


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    index = folder / INDEX
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [WEIGHTS]
    )
    tensors = {}
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; only safetensors weights can be read")
        try:
            with safe_open(
                folder / name, framework="flax"
            ) as file:  # bfloat16 and float16 survive this reader
                tensors |= {key: np.asarray(file.get_tensor(key), dtype=np.float32) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{folder / name}: not a readable safetensors file ({error})") from error
    return tensors


def _take(tensors: dict[str, np.ndarray], name: str, folder: str | Path) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{folder}: tensor {name} is missing from the weights")
    return tensors[name]
