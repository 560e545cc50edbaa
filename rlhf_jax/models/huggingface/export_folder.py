"""Writes models as Hugging Face folders, which `huggingface.load` and `transformers` read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rlhf_jax.models import lora
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.huggingface import tensor_files
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.name_map import Place, file_name, places
from rlhf_jax.models.huggingface.tensor_files import DTYPES

_TOKENIZER_FILES = ("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "spiece.model")
_GENERATION = "generation_config.json"


def save_folder(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    token_ids: dict[str, int | None],
    tokenizer_from: str | Path,
    reward_mean: float | None = None,
    score_at: str = "eos",
    reward: Mapping[str, Any] = MappingProxyType({}),
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    write: bool = True,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a folder that `huggingface.load` and `transformers` read, replacing an older one whole.

    Weights are fetched tensor by tensor, wherever they lie, and written file by file: the host holds one file's
    tensors at a time. Where arrays are spread over processes all of them call this, and one writes.

    Args:
      params: numpy arrays, or arrays on any mesh. An adapter is merged.
      token_ids: `pad_token_id`, `bos_token_id`, `eos_token_id` for config.json.
      tokenizer_from: folder whose tokenizer files and generation_config.json are copied unchanged.
      reward_mean: for reward models, the mean score of demonstrations, which readers subtract from every score.
      score_at: for reward models, at which token they are read (see `data.tokens.scored_text`).
      reward: for reward models of ratings, `score_as` and `thresholds` for config.json.
      dtype: of the tensors: "float32", or "bfloat16" or "float16", which round.
      shard_bytes: weights are cut into files of at most this size, as far as tensors allow.
      write: whether this process writes; one that does not only hands over its part of the arrays.
      tell: called after every tensor with (parameters fetched, of how many).
    """
    family, scalar = FAMILIES[config.family], "score" in params
    named = {file_name(family, place.name): place for place in places(config, scalar=scalar)}
    total, done = sum(math.prod(place.shape) for place in named.values()), 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        found = _joined(config, params, named[name], dtype)
        done += found.size
        tell(done, total)
        return found

    if not write:
        # In the writer's order: fetching from a mesh is a collective of all processes.
        for name in named:
            read(name)
        return
    with tensor_files.replacing(Path(folder)) as new:
        shape = {"scalar": scalar, "token_ids": token_ids, "tokenizer_from": tokenizer_from}
        save_shape(
            new, config, **shape, reward_mean=reward_mean, score_at=score_at, reward=reward, dtype=dtype
        )
        shapes = {name: place.shape for name, place in named.items()}
        tensor_files.write_shards(new, shapes, read, dtype=dtype, shard_bytes=shard_bytes)


def save_shape(
    folder: str | Path,
    config: ModelConfig,
    *,
    scalar: bool,
    token_ids: dict[str, int | None],
    tokenizer_from: str | Path,
    reward_mean: float | None = None,
    score_at: str = "eos",
    reward: Mapping[str, Any] = MappingProxyType({}),
    dtype: str = "float32",
) -> None:
    """Writes everything that `save_folder` writes except the weights: config, tokenizer and generation settings."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _copy_tokenizer(Path(tokenizer_from), folder)
    # transformers samples by this file, so a model whose source has none gets one with its token ids.
    if not (folder / _GENERATION).is_file():
        _write_json(
            folder / _GENERATION, {name: token for name, token in token_ids.items() if token is not None}
        )
    raw = _raw_config(config, scalar, token_ids, dtype)
    if scalar:
        # What transformers does not know of a reward model of ours: what readers subtract, and where they read.
        raw |= {"reward_mean": 0.0 if reward_mean is None else reward_mean, "score_at": score_at, **reward}
    _write_json(folder / "config.json", raw)


def _copy_tokenizer(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and ("token" in file.name or file.name in (*_TOKENIZER_FILES, _GENERATION)):
            shutil.copyfile(file, target / file.name)
        elif file.is_dir() and file.name == "additional_chat_templates":
            shutil.copytree(file, target / file.name)


def _joined(config: ModelConfig, params: Params, place: Place, dtype: str) -> np.ndarray:
    """One of the checkpoint's tensors, made of the parameters that it holds."""
    parts = tuple(_merged(config, params, leaf, place.index, dtype) for leaf in place.leaves)
    return place.layout.join(parts, config.head_dim)


def _merged(
    config: ModelConfig, params: Params, path: tuple[str, ...], index: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Part of a parameter on the host, with what an adapter adds to it, in float32."""
    beside = lora.factors(params, path)
    if beside is None:
        return _fetched(_at(params, path), index, dtype)
    # Added in float32 and rounded once: the adapter's part may be below a bfloat16 step of the kernel.
    kernel, a, b = (_fetched(x, index, "float32") for x in (_at(params, path), *beside))
    added = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1) * np.float32(config.adapter_scale)
    return (kernel + added.reshape(kernel.shape)).astype(DTYPES[dtype])


def _at(tree: dict, path: tuple[str, ...]) -> jax.Array | np.ndarray:
    for name in path:
        tree = tree[name]
    return tree


def _fetched(x: jax.Array | np.ndarray, index: tuple[int, ...], dtype: str) -> np.ndarray:
    """Fetches part of a parameter to the host. On a mesh only that part is gathered, to every device."""
    if not isinstance(x, jax.Array):
        return np.asarray(x[index]).astype(DTYPES[dtype])
    sharding = x.sharding
    # Replicated, so that this process finds the whole part on a device of its own.
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    # The index is an argument and not part of the program: one program serves all layers.
    part = _part(x, tuple(map(np.int32, index)), dtype, sharding)
    return np.asarray(part.addressable_data(0))


@partial(jax.jit, static_argnums=(2, 3))
def _part(x: jax.Array, index: tuple[jax.Array, ...], dtype: str, sharding: Sharding) -> jax.Array:
    for i in index:
        x = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    return jax.lax.with_sharding_constraint(x.astype(dtype), sharding)


def _raw_config(config: ModelConfig, scalar: bool, token_ids: dict, dtype: str) -> dict:
    family = FAMILIES[config.family]
    raw = {"model_type": config.family, "architectures": [family.classes[scalar]], "dtype": dtype}
    for piece in family.pieces:
        raw |= piece.write(config)
    raw |= token_ids
    if scalar:
        # transformers makes as many rows of a score head as there are labels, two where nothing is said.
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return raw


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
