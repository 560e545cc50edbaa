"""A tiny model folder of every family, with weights drawn by NumPy from their names: no files, no torch."""

import json
import zlib

import jax
import numpy as np
from safetensors.numpy import save_file

from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.name_map import file_name, places

VOCAB = 48
PAD = 0  # never drawn as a token of a text
IDS = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,  # small: all frequencies turn within a short text
}
_GEMMA = _LLAMA | {"head_dim": 12, "num_hidden_layers": 4}
_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 20}
_NEOX = {k: v for k, v in _LLAMA.items() if k not in ("rope_theta", "rms_norm_eps", "num_key_value_heads")}

CONFIGS = {
    "llama": _LLAMA,
    "llama_tied": _LLAMA | {"tie_word_embeddings": True, "head_dim": 16},
    "llama3_rope": _LLAMA
    | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama_linear_rope": _LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": _LLAMA | {"sliding_window": 4},
    "mistral_no_window": _LLAMA | {"sliding_window": None, "head_dim": 16},
    "mixtral": _LLAMA | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2": _LLAMA | {"tie_word_embeddings": True},
    "qwen2_window": _LLAMA | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": _LLAMA | {"head_dim": 12},
    "gemma": _GEMMA | {"hidden_act": "gelu", "hidden_activation": None},
    "gemma2": _GEMMA | _CAPS | {"sliding_window": 4},
    "gemma3_text": _GEMMA
    | {
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 20.0,
        "query_pre_attn_scalar": 20,
    }
    | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "gpt_neox": _NEOX | {"rotary_pct": 0.25, "hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 0},
    "gpt_neox_serial": _NEOX | {"rotary_pct": 1.0, "use_parallel_residual": False},
    "gpt2": _GPT,
    "gptj": _GPT | {"rotary_dim": 4, "tie_word_embeddings": False},
    "opt": {k: v for k, v in _NEOX.items() if k != "intermediate_size"}
    | {"ffn_dim": 40, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
}


def family_of(name):
    """The model_type of a config of the table."""
    return max((family for family in FAMILIES if name.startswith(family)), key=len, default="llama")


def write_folder(folder, name, *, scalar=False):
    """A folder as transformers would write it, under the names of our table."""
    raw = {"model_type": family_of(name)} | IDS | CONFIGS[name]
    raw["architectures"] = [FAMILIES[raw["model_type"]].classes[scalar]]
    if scalar:
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_text("{}")
    config, _ = import_folder.read_config(folder)
    family = FAMILIES[config.family]
    tensors = {file_name(family, place.name): place.shape for place in places(config, scalar=scalar)}
    drawn = {name: draw(name, shape) for name, shape in tensors.items()}
    save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def draw(name, shape):
    """Weights that leave no part of a model without effect: norms away from 1, biases away from 0."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
    if len(shape) == 1:
        return np.float32(1 + 0.3 * noise) if name.endswith("weight") else np.float32(0.3 * noise)
    return np.float32(noise * (1.0 if "emb" in name or "wte" in name else 1.2 * shape[-1] ** -0.5))


def left_padded(lengths=(12, 9, 4, 1), seed=0):
    """(tokens [B, P], lengths [B]): prompts padded on the left."""
    rng = np.random.default_rng(seed)
    P = max(lengths)
    tokens = np.full((len(lengths), P), PAD, np.int32)
    for b, length in enumerate(lengths):
        tokens[b, P - length :] = rng.integers(3, VOCAB, length)
    return tokens, np.array(lengths, np.int32)


def right_padded(lengths=(13, 9, 1, 5, 12, 2, 7, 13), seed=1):
    """(tokens [B, T], lengths [B]): texts padded on the right."""
    tokens, lengths = left_padded(lengths, seed)
    rows = [np.roll(row, -(len(row) - length)) for row, length in zip(tokens, lengths, strict=True)]
    return np.stack(rows), lengths


def assert_same_tree(found, wanted, of=lambda x: x):
    """Bit-equal leaves at equal paths; `of` is applied to the wanted ones."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), of(np.asarray(b))), found, wanted)
