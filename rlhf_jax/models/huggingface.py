"""Weights in and out as a Hugging Face folder: the one form in which models travel between jobs.

A folder holds `config.json`, safetensors and the tokenizer files. Which families there are, and under which names
they keep their tensors, is the table in `families`. A reward or value model is a sequence classifier of one label.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from safetensors.numpy import save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora, tensor_files
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.config_json import Fields
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.families import FAMILIES
from rlhf_jax.models.name_map import Place, check, file_name, parameter_shapes, places, stored_names
from rlhf_jax.models.placement import param_shardings
from rlhf_jax.models.tensor_files import SAFETENSORS, Tensors

_TOKENIZER_FILES = ("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "spiece.model")
_GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a folder says of its model: the shape, whether it has a score head, and what a reward model adds.

    adapter: settings of the low-rank adapter that has been laid over it, if any.
    """

    config: ModelConfig
    is_scalar: bool
    reward_mean: float
    adapter: lora.Lora | None = None


def read_config(folder: str | Path) -> tuple[ModelConfig, dict]:
    """The model's shape and the raw `config.json`.

    Raises:
      UserError: no config.json, a family that is not in the table, or a setting that is not supported; by name.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no config.json; a model folder is what a training job writes to its export/"
        )
    raw = json.loads(path.read_text())
    family = FAMILIES.get(raw.get("model_type"))
    if family is None:
        raise UserError(f"{path}: model_type is {raw.get('model_type')!r}; use one of {', '.join(FAMILIES)}")
    fields, values = Fields(path, raw), {"family": raw["model_type"]}
    for piece in family.pieces:
        values |= piece.read(fields, values)
    fields.finish()
    return ModelConfig(**values), raw


def describe(folder: str | Path, **overrides: object) -> Checkpoint:
    """What `load` will say of a folder, without reading its weights; raises the same errors."""
    return _open(Path(folder), overrides)[0]


def load(folder: str | Path, mesh: Mesh | None = None, **overrides: object) -> tuple[Checkpoint, Params]:
    """Reads a folder written by `save` or by transformers, one tensor at a time.

    Args:
      mesh: parameters become float32 arrays sharded over it, one after the other, so beside the devices' own
        memory there is one parameter (all layers, this process's part) and one tensor of the file. Without a
        mesh they stay in host memory.
      overrides: ModelConfig fields that do not change parameters (dtype, remat).

    Raises:
      UserError: no such model, or tensors that are missing, unknown or of another shape, by name.
    """
    checkpoint, tensors, expected = _open(Path(folder), overrides)
    config, is_scalar = checkpoint.config, checkpoint.is_scalar
    where = param_shardings(config, mesh, scalar=is_scalar) if mesh is not None else None
    params: Params = {}
    # The largest first: what is held twice for a moment then always fits where smaller ones are still to come.
    shapes = parameter_shapes(config, scalar=is_scalar)
    for path, shape in sorted(shapes.items(), key=lambda item: -math.prod(item[1])):
        holding = [place for place in expected if path in place.leaves]
        sharding = None if where is None else _at(where, path)
        group = params
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = _assemble(config, path, shape, sharding, holding, tensors)
    return checkpoint, params


def save(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    token_ids: dict[str, int | None],
    tokenizer_from: str | Path,
    reward_mean: float | None = None,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    write: bool = True,
) -> None:
    """Writes a folder that `load` and `transformers` read, replacing an older one whole.

    Weights are fetched tensor by tensor, wherever they lie, and written file by file: the host holds one file's
    tensors at a time. Where arrays are spread over processes all of them call this, and one writes.

    Args:
      params: numpy arrays, or arrays on any mesh. An adapter is merged.
      token_ids: `pad_token_id`, `bos_token_id`, `eos_token_id` for config.json.
      tokenizer_from: folder whose tokenizer files and generation_config.json are copied unchanged.
      reward_mean: for reward models, the mean score of demonstrations; readers subtract it (rule M8).
      dtype: of the tensors: "float32", or "bfloat16" or "float16", which round.
      shard_bytes: weights are cut into files of at most this size, as far as tensors allow.
      write: whether this process writes; one that does not only hands over its part of the arrays.
    """
    folder = Path(folder)
    weights = _shards(config, params, dtype, shard_bytes)
    if not write:
        for shard in weights.values():
            for place in shard:
                _joined(config, params, place, dtype)
        return
    unfinished = folder.with_name(folder.name + ".partial")
    save_shape(
        unfinished,
        config,
        scalar="score" in params,
        token_ids=token_ids,
        tokenizer_from=tokenizer_from,
        reward_mean=reward_mean,
        dtype=dtype,
    )
    _write_weights(unfinished, config, params, dtype, weights)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)


def save_shape(
    folder: str | Path,
    config: ModelConfig,
    *,
    scalar: bool,
    token_ids: dict[str, int | None],
    tokenizer_from: str | Path,
    reward_mean: float | None = None,
    dtype: str = "float32",
) -> None:
    """Writes all that `save` writes but the weights: config, tokenizer and generation settings."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _copy_tokenizer(Path(tokenizer_from), folder)
    if not (folder / _GENERATION).is_file():
        _write_json(
            folder / _GENERATION, {name: token for name, token in token_ids.items() if token is not None}
        )
    _write_json(folder / "config.json", _raw_config(config, scalar, token_ids, reward_mean, dtype))


def _open(folder: Path, overrides: dict[str, object]) -> tuple[Checkpoint, Tensors, list[Place]]:
    """(what the folder says of its model; its tensors; where they go), checked against each other."""
    config, raw = read_config(folder)
    config = dataclasses.replace(config, **overrides)
    tensors = tensor_files.open_folder(folder)
    is_scalar = "score.weight" in tensors.shapes
    expected = places(config, scalar=is_scalar)
    check(folder, config, expected, tensors.shapes)
    return Checkpoint(config, is_scalar, float(raw.get("reward_mean", 0.0))), tensors, expected


def _assemble(
    config: ModelConfig,
    path: tuple[str, ...],
    shape: tuple[int, ...],
    sharding: NamedSharding | None,
    holding: list[Place],
    tensors: Tensors,
) -> jax.Array | np.ndarray:
    """One parameter from its tensors. Each tensor is read once and cut to the parts of this process's devices."""
    everything = (slice(None),) * len(shape)
    indices = [everything]
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(shape).values()
    parts = {}
    for index in indices:
        index = tuple(slice(*cut.indices(size)) for cut, size in zip(index, shape, strict=True))
        sizes = tuple(cut.stop - cut.start for cut in index)
        parts[_bounds(index, shape)] = (index, _room(sizes))
    stored = stored_names(FAMILIES[config.family], tensors.shapes)
    for place in holding:
        whole = place.layout.split(tensors.read(stored[place.name]), config.head_dim)[
            place.leaves.index(path)
        ]
        n = len(place.index)
        for index, part in parts.values():
            if all(cut.start <= i < cut.stop for i, cut in zip(place.index, index[:n], strict=True)):
                inside = tuple(i - cut.start for i, cut in zip(place.index, index[:n], strict=True))
                part[inside] = whole[index[n:]]
    if sharding is None:
        return parts[_bounds(everything, shape)][1]
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_bounds(index, shape)][1])


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """An array of float32 that begins at a multiple of 64 bytes: CPU devices take such memory as it is, uncopied."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))


def _at(tree: dict, path: tuple[str, ...]) -> object:
    for name in path:
        tree = tree[name]
    return tree


def _copy_tokenizer(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and ("token" in file.name or file.name in (*_TOKENIZER_FILES, _GENERATION)):
            shutil.copyfile(file, target / file.name)
        elif file.is_dir() and file.name == "additional_chat_templates":
            shutil.copytree(file, target / file.name)


def _shards(config: ModelConfig, params: Params, dtype: str, shard_bytes: int) -> dict[str, list[Place]]:
    """The tensors of each file, by its name."""
    size = jnp.dtype(dtype).itemsize
    shards, filled = [[]], 0
    for place in places(config, scalar="score" in params):
        nbytes = size * math.prod(place.shape)
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(place)
        filled += nbytes
    if len(shards) == 1:
        return {SAFETENSORS: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write_weights(
    folder: Path, config: ModelConfig, params: Params, dtype: str, shards: dict[str, list[Place]]
) -> None:
    family = FAMILIES[config.family]
    for name, shard in shards.items():
        tensors = {file_name(family, place.name): _joined(config, params, place, dtype) for place in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        del tensors  # before the next file's are fetched
    if len(shards) > 1:
        weight_map = {
            file_name(family, place.name): name for name, shard in shards.items() for place in shard
        }
        size = jnp.dtype(dtype).itemsize
        total = sum(size * math.prod(place.shape) for shard in shards.values() for place in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{SAFETENSORS}.index.json", index)


def _joined(config: ModelConfig, params: Params, place: Place, dtype: str) -> np.ndarray:
    parts = tuple(_plain(config, params, leaf, place.index, dtype) for leaf in place.leaves)
    return np.ascontiguousarray(place.layout.join(parts, config.head_dim))


def _plain(
    config: ModelConfig, params: Params, path: tuple[str, ...], index: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Part of a parameter on the host, with what an adapter adds to it, in float32."""
    beside = lora.factors(params, path)
    if beside is None:
        return _fetched(_at(params, path), index, dtype)
    kernel, a, b = (_fetched(x, index, "float32") for x in (_at(params, path), *beside))
    added = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1) * np.float32(config.adapter_scale)
    return (kernel + added.reshape(kernel.shape)).astype(jnp.dtype(dtype))


def _fetched(x: jax.Array | np.ndarray, index: tuple[int, ...], dtype: str) -> np.ndarray:
    """Part of a parameter on the host. On a mesh only that part is made whole, on every device."""
    if not isinstance(x, jax.Array):
        return np.asarray(x[index]).astype(jnp.dtype(dtype))
    sharding = x.sharding
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


def _raw_config(
    config: ModelConfig, scalar: bool, token_ids: dict, reward_mean: float | None, dtype: str
) -> dict:
    family = FAMILIES[config.family]
    raw = {"model_type": config.family, "architectures": [family.classes[scalar]], "dtype": dtype}
    for piece in family.pieces:
        raw |= piece.write(config)
    raw |= token_ids
    if scalar:
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        raw["reward_mean"] = 0.0 if reward_mean is None else reward_mean
    return raw


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
