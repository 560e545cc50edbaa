"""Weights in and out as a Hugging Face folder: the one form in which models travel between jobs.

A folder holds `config.json`, safetensors and the tokenizer files. Which families there are, and under which names
they keep their tensors, is the table in `families`. A reward or value model is a sequence classifier of one label.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.errors import UserError
from rlhf_jax.models import tensor_files, tensor_shards
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.config_json import Fields
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.families import FAMILIES
from rlhf_jax.models.name_map import Place, check, file_name, parameter_shapes, places, stored_names
from rlhf_jax.models.placement import param_shardings
from rlhf_jax.models.tensor_files import Tensors

_TOKENIZER_FILES = ("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "spiece.model")
_GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a folder says of its model: the shape, whether it has a score head, and what a reward model adds."""

    config: ModelConfig
    is_scalar: bool
    reward_mean: float


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
    folder = Path(folder)
    config, raw = read_config(folder)
    config = dataclasses.replace(config, **overrides)
    tensors = tensor_files.open_folder(folder)
    is_scalar = "score.weight" in tensors.shapes
    expected = places(config, scalar=is_scalar)
    check(folder, config, expected, tensors.shapes)
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
    return Checkpoint(config, is_scalar, float(raw.get("reward_mean", 0.0))), params


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
) -> None:
    """Writes a folder that `load` and `transformers` read, replacing an older one whole.

    Args:
      params: host (numpy) or device arrays of one process.
      token_ids: `pad_token_id`, `bos_token_id`, `eos_token_id` for config.json.
      tokenizer_from: folder whose tokenizer files and generation_config.json are copied unchanged.
      reward_mean: for reward models, the mean score of demonstrations; readers subtract it (rule M8).
      dtype: of the tensors: "float32", or "bfloat16" or "float16", which round.
      shard_bytes: weights are cut into files of at most this size, as far as tensors allow.
    """
    family = FAMILIES[config.family]
    named = {file_name(family, place.name): place for place in places(config, scalar="score" in params)}
    with tensor_shards.replacing(Path(folder)) as new:
        _copy_tokenizer(Path(tokenizer_from), new)
        if not (new / _GENERATION).is_file():
            _write_json(
                new / _GENERATION, {name: token for name, token in token_ids.items() if token is not None}
            )
        shapes = {name: place.shape for name, place in named.items()}
        tensor_shards.write(
            new,
            shapes,
            lambda name: _joined(config, params, named[name]),
            dtype=dtype,
            shard_bytes=shard_bytes,
        )
        _write_json(new / "config.json", _raw_config(config, params, token_ids, reward_mean, dtype))


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
        parts[_bounds(index, shape)] = (index, np.empty(sizes, np.float32))
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


def _joined(config: ModelConfig, params: Params, place: Place) -> np.ndarray:
    parts = tuple(np.asarray(_at(params, leaf)[place.index]) for leaf in place.leaves)
    return place.layout.join(parts, config.head_dim)


def _raw_config(
    config: ModelConfig, params: Params, token_ids: dict, reward_mean: float | None, dtype: str
) -> dict:
    family = FAMILIES[config.family]
    raw = {"model_type": config.family, "architectures": [family.classes["score" in params]], "dtype": dtype}
    for piece in family.pieces:
        raw |= piece.write(config)
    raw |= token_ids
    if "score" in params:
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        raw["reward_mean"] = 0.0 if reward_mean is None else reward_mean
    return raw


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
