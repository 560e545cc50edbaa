"""The tensors of a model folder, one at a time: safetensors, or torch's older pytorch_model.bin.

Nothing is kept: a file is open only while a tensor is read, so host memory holds that tensor and no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from rlhf_jax.errors import UserError

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
_FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")


class Tensors(NamedTuple):
    """What a folder holds.

    Attributes:
      shapes: of every tensor, by name.
      read: name -> array, in the dtype of the file.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def open_folder(folder: Path) -> Tensors:
    """The weights of a folder; UserError when there are none, or they cannot be read."""
    if (folder / SAFETENSORS).is_file() or (folder / f"{SAFETENSORS}.index.json").is_file():
        return open_safetensors(_files(folder, SAFETENSORS))
    if (folder / TORCH).is_file() or (folder / f"{TORCH}.index.json").is_file():
        return _open_torch(_files(folder, TORCH))
    raise UserError(
        f"{folder}: no weights; a model folder has {SAFETENSORS} (or {TORCH}), whole or in shards"
    )


def _files(folder: Path, name: str) -> list[Path]:
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return [folder / name]
    files = [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though {index.name} names it; copy the whole folder again")
    return files


def open_safetensors(files: list[Path]) -> Tensors:
    """The tensors of some files; UserError when one cannot be read."""
    shapes, where = {}, {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    header = file.get_slice(name)
                    _check_dtype(path, name, header.get_dtype())
                    shapes[name], where[name] = tuple(header.get_shape()), path
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error

    def read(name: str) -> np.ndarray:
        with safe_open(where[name], framework="numpy") as file:
            return file.get_tensor(name)

    return Tensors(shapes, read)


def _open_torch(files: list[Path]) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{files[0]}: only torch can read this file; pip install torch, "
            f"or take a copy of the model with {SAFETENSORS}"
        ) from error
    found = {}
    for path in files:  # mapped, not read
        found |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for name, tensor in found.items():
            _check_dtype(path, name, str(tensor.dtype).removeprefix("torch."))
    return Tensors(
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        lambda name: found[name].to(torch.float32).numpy(),
    )


def _check_dtype(path: Path, name: str, dtype: str) -> None:
    # Masks of old checkpoints are booleans or bytes; only what is read must be a float.
    if dtype in ("BOOL", "U8", "bool", "uint8") and name.endswith((".attn.bias", ".attention.bias")):
        return
    if dtype not in _FLOATS:
        raise UserError(
            f"{path}: tensor {name} is {dtype}; quantized weights cannot be trained, take the float version"
        )
