"""Writes tiny GGUF files the way llama.cpp's converter does, from a Hugging Face folder."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TRUNK = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(
    folder: Path,
    file: Path,
    *,
    pre: str,
    kind: Kind = Kind.F32,
    fields: dict | None = None,
    rope_freqs: np.ndarray | None = None,
    leave_out: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Writes `file` and returns its tensors by GGUF's names, as they were before they were quantised.

    fields: metadata that is added, changed, or (None) left out.
    leave_out: endings of names of tensors.
    """
    config = json.loads((folder / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    arch, fields = config["model_type"], dict(fields or {})
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture", arch))
    about = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": groups,
        f"{arch}.rope.freq_base": float(config["rope_theta"]),
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.attention.key_length": config["head_dim"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        **_tokenizer(folder),
    }
    for name, value in (about | fields).items():
        _add(writer, name, value)
    tensors = {}
    for name, w in load_file(folder / "model.safetensors").items():
        short = _short(name)
        if arch == "llama" and short.endswith(("attn_q.weight", "attn_k.weight")):
            w = permuted(w, heads if "attn_q" in short else groups)
        tensors[short] = np.ascontiguousarray(w, np.float32)
    for name, w in tensors.items():
        if name.endswith(leave_out) and leave_out:
            continue
        if kind == Kind.F32 or w.ndim == 1:
            writer.add_tensor(name, w)
        else:
            writer.add_tensor(name, gguf.quantize(w, kind), raw_dtype=kind)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `permute` of query and key."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _short(name: str) -> str:
    stem, ending = name.rsplit(".", 1)
    if stem in TRUNK:
        return f"{TRUNK[stem]}.{ending}"
    _, _, i, part = stem.split(".", 3)
    return f"blk.{i}.{NAMES[part]}.{ending}"


def _tokenizer(folder: Path) -> dict:
    raw = json.loads((folder / "tokenizer.json").read_text())
    special = {x["id"]: x["special"] for x in raw["added_tokens"]}
    vocab = dict(raw["model"]["vocab"]) | {x["content"]: x["id"] for x in raw["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    found = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            1 if i not in special else 3 if special[i] else 4 for i in range(len(tokens))
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in raw["model"]["merges"]],
        "tokenizer.chat_template": config["chat_template"],
    }
    for name, ours in {"bos": "bos", "eos": "eos", "padding": "pad"}.items():
        if config.get(f"{ours}_token"):
            found[f"tokenizer.ggml.{name}_token_id"] = vocab[config[f"{ours}_token"]]
    return found


def _add(writer: gguf.GGUFWriter, name: str, value: object) -> None:
    if value is None:
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(name, value)
