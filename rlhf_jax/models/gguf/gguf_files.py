"""Converts a GGUF file, the format of llama.cpp and related programs, into a Hugging Face folder.

The folder lies in the user's cache under a hash of the file's content, so every job that names the file uses the same
folder and the ordinary loader. Weights are dequantised to float32. A setting that this importer does not know is an
error that names it, because it might change what the model computes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models.gguf import gguf_config, gguf_tokenizer
from rlhf_jax.models.gguf.gguf_config import ROPE_FREQS
from rlhf_jax.models.huggingface import tensor_files
from rlhf_jax.models.huggingface.import_folder import check_gguf_package, is_gguf
from rlhf_jax.parallel import startup

# Version of what is written. Raise it when that changes: the hash has it too, so old folders are not used again.
_FORM = 2


class Contents(NamedTuple):
    """What a file holds: its metadata as plain values, and its tensors as gguf's reader gives them."""

    path: Path
    fields: dict[str, Any]
    tensors: tuple[Any, ...]


def as_folder(path: str, tell: Callable[[int, int], None] = lambda done, total: None) -> str:
    """Converts a GGUF file to a Hugging Face folder and returns its path; any other path is returned as it is.

    Processes that share a cache convert a file once: the others wait for the first.

    Args:
      tell: called after every tensor with (parameters written, of how many).

    Raises:
      UserError: no such file, not a whole GGUF file, the package gguf is missing, or a model, tokenizer, setting
        or tensor in it that is not supported; by name.
    """
    file = Path(path)
    if not is_gguf(file):
        return path
    check_gguf_package(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the path of a GGUF file or of a Hugging Face folder")
    folder = _cache() / f"{file.stem}-{_digest(file)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Jobs that start together (a policy and its reference) would write the same folder. The lock is
        # beside it and stays: removing it could split those who wait.
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Asked again by those who waited: by now it may be there. It appears only when it is complete.
            if not folder.is_dir():
                convert(file, folder, tell)
                if startup.is_main():
                    print(f"{file}: written as a Hugging Face folder to {folder}", flush=True)
    except OSError as error:
        raise UserError(
            f"{file}: its Hugging Face folder cannot be written to {folder} ({error.strerror or error}); "
            "set XDG_CACHE_HOME to a folder with room for 4 bytes a parameter"
        ) from error
    return str(folder)


def convert(file: Path, folder: Path, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Writes the Hugging Face folder, completely or not at all: config.json, float32 safetensors, tokenizer files."""
    found = _read(file)
    # All that can be refused is computed before the first byte is written.
    config = gguf_config.config_json(found)
    tokenizer = gguf_tokenizer.files(found)
    shapes, read = tensor_names(found, config, tell)
    with tensor_files.replacing(folder) as partial:
        for name, content in (("config.json", config), *tokenizer.items()):
            text = json.dumps(content, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False)
            (partial / name).write_text(text + "\n", encoding="utf-8")
        tensor_files.write_shards(partial, shapes, read)


def _read(file: Path) -> Contents:
    from gguf import GGUFEndian, GGUFReader

    try:
        reader = GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # gguf raises many kinds: whatever NumPy says of bytes that are not there
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: not a whole GGUF file ({reason}); download it again") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise UserError(f"{file}: a GGUF file for big-endian machines; take the little-endian one")
    if fields.get("split.count", 1) > 1:
        raise UserError(
            f"{file}: one of {fields['split.count']} parts of a model; join them with "
            "llama-gguf-split --merge and give the whole file"
        )
    return Contents(file, fields, tuple(reader.tensors))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "gguf"


def _digest(file: Path) -> str:
    """A hash of the file's content and of the version of what is written."""
    try:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    return hashlib.sha256(f"{_FORM} {content}".encode()).hexdigest()[:12]


# The tensors of a GGUF file under transformers' names and in their layout, dequantised one at a time.

Shapes = dict[str, tuple[int, ...]]


def tensor_names(
    found: Contents, config: dict[str, Any], tell: Callable[[int, int], None]
) -> tuple[Shapes, Callable[[str], np.ndarray]]:
    """(shapes by transformers' name, name -> float32 array), as `tensor_files.write_shards` takes them.

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
        # ggml lists the fastest axis first.
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
        # llama.cpp's converter reorders the rows of query and key for
        # llama only; Qwen's are as transformers has them.
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
    """Dequantises one row as a trial, so that a type that gguf cannot undo is found before anything is written."""
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

    # I8 to I64 are integers; the digits tell them from quantised kinds such as IQ2_XS.
    if tensor.tensor_type.name.startswith("I") and tensor.tensor_type.name[1:].isdigit():
        raise ValueError(f"{tensor.tensor_type.name}: whole numbers are no weights")
    return dequantize(tensor.data[:rows], tensor.tensor_type).astype(np.float32, copy=False)


def _halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of rows, rotary pairs side by side: the first of each pair, then the second of each."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)
