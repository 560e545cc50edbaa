"""Reads models from Hugging Face folders, the one format in which they are passed between jobs.

A folder holds `config.json`, safetensors and the tokenizer files; `export_folder` writes one. Which families there
are, and under which names they keep their tensors, is the table in `families`. A reward or value model is a sequence
classifier of one label. Adapters have folders of their own, which `peft` reads.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models import lora, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.huggingface import name_map, tensor_files
from rlhf_jax.models.huggingface.config_json import ConfigFields
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.name_map import (
    Place,
    check_tensors,
    parameter_shapes,
    places,
    stored_names,
)
from rlhf_jax.models.huggingface.tensor_files import Tensors
from rlhf_jax.models.placement import param_shardings
from rlhf_jax.parallel import startup

_GENERATION = "generation_config.json"
ENSEMBLE = "ensemble.json"  # in a folder of reward models that are read as one


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a folder says about its model: the config, whether it has a score head, and a reward model's settings.

    reward_mean: the mean score of demonstrations, which readers subtract; None of a run's checkpoint.
    score_at: at which token a score is read (see `data.tokens.scored_text`); "" where the folder does not say.
    adapter: settings of the low-rank adapter that has been laid over it, if any.
    score_as, thresholds: what a reward model's score is (see `models.model.Reading`).
    """

    config: ModelConfig
    is_scalar: bool
    reward_mean: float | None
    adapter: lora.Lora | None = None
    score_at: str = ""
    score_as: str = "logit"
    thresholds: tuple[float, ...] = ()


def read_config(folder: str | Path) -> tuple[ModelConfig, dict]:
    """The model's shape and the raw `config.json`.

    Raises:
      UserError: no config.json, a family that is not in the table, or a setting that is not supported; by name.
    """
    path = Path(folder) / "config.json"
    check_no_adapter(folder)
    if not path.is_file():
        if (path.parent / ENSEMBLE).is_file():
            raise UserError(
                f"{folder}: an ensemble of reward models; give one of its members here, as {folder}/member_0"
            )
        if path.is_symlink():
            raise UserError(f"{path}: a link to nothing ({os.readlink(path)}); copy the file itself")
        raise UserError(
            f"{folder}: no config.json; a model folder is what a training job writes to its export/"
        )
    raw = read_object(path, "copy the config.json of the model again")
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        nested = "; of a model that also sees, take the text model alone" if "text_config" in raw else ""
        raise UserError(f"{path}: model_type is {kind!r}; use one of {', '.join(FAMILIES)}{nested}")
    # Pieces run in the row's order, because some read what earlier
    # ones have found (a head's size needs the width).
    fields, values = ConfigFields(path, raw), {"family": kind}
    for piece in FAMILIES[kind].pieces:
        values |= piece.read(fields, values)
    fields.finish(kind)
    return ModelConfig(**values), raw


def check_no_adapter(folder: str | Path, field: str = "model.adapter") -> None:
    """Raises UserError if a folder holds an adapter instead of a model; `field` is the setting that takes adapters."""
    there = Path(folder)
    if (there / peft.CONFIG).is_file() and not (there / "config.json").is_file():
        base = peft.peft_base(there)
        raise UserError(
            f"{folder}: no config.json; this is an adapter: name it as {field}, and its base as the model"
            f"{f' ({base})' if base else ''}"
        )


def describe_folder(folder: str | Path, **overrides: object) -> Checkpoint:
    """The `Checkpoint` that `load` would return, without reading the weights; raises the same errors."""
    return _open(Path(folder), overrides)[0]


def load(
    folder: str | Path,
    mesh: Mesh | None = None,
    *,
    base_dtype: str = "float32",
    tell: Callable[[int, int], None] = lambda done, total: None,
    **overrides: object,
) -> tuple[Checkpoint, Params]:
    """Reads a folder written by `export_folder` or by transformers, one tensor at a time.

    Args:
      mesh: parameters become arrays sharded over it, one after the other, so beside the devices' own memory
        there is one parameter (all layers, this process's part) and one tensor of the file. Without a mesh they
        stay in host memory.
      base_dtype: of parameters that will not be trained, see `lora.base_dtype`.
      tell: called after every tensor with (parameters read, of how many).
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
    stored, total, done = (
        stored_names(config, tensors.shapes),
        sum(map(math.prod, shapes.values())),
        0,
    )

    def read(place: Place) -> np.ndarray:
        nonlocal done
        found = tensors.read(stored[place.name])
        done += found.size // len(place.leaves)  # one that holds several parameters is read for each
        tell(done, total)
        return found

    # Parameter by parameter and not file by file: each is placed on its devices before the next is read.
    for path, shape in sorted(shapes.items(), key=lambda item: -math.prod(item[1])):
        holding = [place for place in expected if path in place.leaves]
        sharding = None if where is None else _at(where, path)
        group = params
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = _assemble(
            config,
            path,
            jax.ShapeDtypeStruct(shape, lora.base_dtype(path, base_dtype)),
            sharding,
            holding,
            read,
        )
    return checkpoint, params


def _open(folder: Path, overrides: dict[str, object]) -> tuple[Checkpoint, Tensors, list[Place]]:
    """Opens a folder and checks its parts against each other: (checkpoint, tensors, the places where they go)."""
    config, raw = read_config(folder)
    if (folder / _GENERATION).is_file():
        # Read to see that it is valid JSON: it is copied into every export, where an error would come too late.
        read_object(folder / _GENERATION)
    if (folder / peft.CONFIG).is_file():
        fix = f"set model.adapter={folder} to lay it over the model"
        startup.notice_once(f"{folder}: an adapter lies beside the model and is not read; {fix}")
    config = dataclasses.replace(config, **overrides)
    tensors = tensor_files.open_folder(folder)
    # The tensors decide: `architectures` is only a name, and often that of the model it was made from.
    is_scalar = "score.weight" in tensors.shapes
    name_map.check_heads(folder / "config.json", raw, tensors.shapes, FAMILIES[config.family])
    if config.tie_embeddings and not is_scalar and name_map.has_own(config, tensors):
        startup.notice_once(
            f"{folder / 'config.json'}: tie_word_embeddings is true, but the file holds another head than the "
            "embedding table; both are read, as transformers 5 does"
        )
        config = dataclasses.replace(config, tie_embeddings=False)
    expected = places(config, scalar=is_scalar)
    check_tensors(folder, config, expected, tensors.shapes)
    mean, score_at = name_map.reading(folder / "config.json", raw) if is_scalar else (0.0, "")
    about = name_map.reward_of(folder / "config.json", raw) if is_scalar else ("logit", ())
    return Checkpoint(config, is_scalar, mean, None, score_at, *about), tensors, expected


def _assemble(
    config: ModelConfig,
    path: tuple[str, ...],
    like: jax.ShapeDtypeStruct,
    sharding: NamedSharding | None,
    holding: list[Place],
    read: Callable[[Place], np.ndarray],
) -> jax.Array | np.ndarray:
    """One parameter from its tensors. Each tensor is read once and cut to the parts of this process's devices."""
    shape = like.shape
    everything = (slice(None),) * len(shape)
    indices = [everything]
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(shape).values()
    parts = {}
    # Devices that hold the same part (copies over the data axis) share one array.
    for index in indices:
        index = tuple(slice(*cut.indices(size)) for cut, size in zip(index, shape, strict=True))
        sizes = tuple(cut.stop - cut.start for cut in index)
        parts[_bounds(index, shape)] = (index, _room(sizes, like.dtype))
    for place in holding:
        whole = place.layout.split(read(place), config.head_dim)[place.leaves.index(path)]
        # A place fills a layer, and perhaps an expert, of the stacked
        # parameter; the rest of the index cuts its inside.
        n = len(place.index)
        for index, part in parts.values():
            if all(cut.start <= i < cut.stop for i, cut in zip(place.index, index[:n], strict=True)):
                inside = tuple(i - cut.start for i, cut in zip(place.index, index[:n], strict=True))
                part[inside] = whole[index[n:]]
    if sharding is None:
        return parts[_bounds(everything, shape)][1]
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_bounds(index, shape)][1])


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes: CPU devices take such memory as it is, uncopied."""
    size = dtype.itemsize * math.prod(shape)
    # NumPy promises 16 bytes only, and an array that is not aligned would be copied: twice the memory.
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))


def _at(tree: dict, path: tuple[str, ...]) -> NamedSharding:
    for name in path:
        tree = tree[name]
    return tree


def is_gguf(file: Path) -> bool:
    """Whether a path is a GGUF file: by its ending, or by its first bytes."""
    if file.is_dir():
        return False
    if file.suffix.lower() == ".gguf":
        return True
    # Ollama keeps its models under the hash of their content, without an ending.
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    # There is no such file: the error comes from whoever wanted a folder.
    except OSError:
        return False


def check_gguf_package(path: str | Path) -> None:
    """Raises UserError where a GGUF file is named and the package that reads it is not installed."""
    if is_gguf(Path(path)) and importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"{path}: reading it needs the package gguf; pip install gguf, or give a Hugging Face folder"
        )


def gguf_importer() -> ModuleType:
    """The module `gguf_files`, imported only when a GGUF file is given, because few runs start from one."""
    return importlib.import_module("rlhf_jax.models.gguf.gguf_files")
