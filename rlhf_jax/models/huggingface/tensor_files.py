"""The tensors of a model folder, one at a time: safetensors, or torch's older pytorch_model.bin.

The files that are read are those that transformers would read; other weights in the folder are named in a notice.
A file is open only while a tensor is read, so host memory holds that tensor and no more. The second half writes
folders and shards.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.errors import UserError, pointer_problem, read_object
from rlhf_jax.parallel import startup

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
_FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
_NAMED = 3  # files named in a notice
_CHUNK = 1 << 18  # numbers looked at together: they stay in the processor's cache
# The exponent of infinity and of every NaN.
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


class Tensors(NamedTuple):
    """The tensors of a folder, which are read one by one.

    Attributes:
      shapes: of every tensor, by name.
      read: name -> array, in the dtype of the file; UserError where it holds NaN or an infinity.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def open_folder(folder: Path) -> Tensors:
    """The weights of a folder; UserError when there are none, or they cannot be read."""
    # The order of transformers: safetensors before torch's file, and a whole file before an index.
    for name, open_files in ((SAFETENSORS, open_safetensors), (TORCH, open_torch)):
        files = _files(folder, name)
        if files:
            _name_others(folder, files)
            return open_files(files)
    ggufs = sorted(x for x in folder.glob("*.gguf"))
    if ggufs:
        raise UserError(f"{folder}: no weights but a GGUF file; give the file itself: {ggufs[0]}")
    links = [folder / name for name in (SAFETENSORS, TORCH) if (folder / name).is_symlink()]
    if links:
        raise UserError(f"{links[0]}: a link to nothing ({os.readlink(links[0])}); copy the file itself")
    shards = sorted(x.name for x in (*folder.glob("*.safetensors"), *folder.glob("*.bin")))
    beside = f"{shards[0]} is there, but no {SAFETENSORS}.index.json that names it; " if shards else ""
    raise UserError(
        f"{folder}: no weights; {beside}a model folder has {SAFETENSORS} (or {TORCH}), whole or in shards with an index"
    )


def _files(folder: Path, name: str) -> list[Path]:
    """The whole file, or else the shards that its index names."""
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return [folder / name]
    if not index.is_file():
        return []
    fix = "copy the whole folder again"
    weight_map = read_object(index, fix).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not _all_texts(weight_map.values()):
        raise UserError(f"{index}: weight_map should say in which file every tensor is; {fix}")
    files = [folder / file for file in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though {index.name} names it; {fix}")
    return files


def _all_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _name_others(folder: Path, files: list[Path]) -> None:
    """Prints a notice that names the weights in the folder that are not read."""
    found = sorted(
        x for pattern in ("*.safetensors", f"{TORCH.split('.')[0]}*.bin") for x in folder.glob(pattern)
    )
    others = [path.name for path in found if path not in files]
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        read = files[0].name if len(files) == 1 else f"the {len(files)} files of the index"
        startup.notice_once(f"{folder}: read from {read}; not read: {', '.join(others[:_NAMED])}{more}")


def open_safetensors(files: list[Path]) -> Tensors:
    """The tensors of some files; UserError when one cannot be read."""
    shapes, where = {}, {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    header = file.get_slice(name)
                    _check_dtype(path, name, header.get_dtype())
                    # Equal copies in two shards are harmless; different ones mean files of two models.
                    if name in where and not _same(file.get_tensor(name), _tensor_in(where[name], name)):
                        raise _twice(name, where[name], path)
                    shapes[name], where[name] = tuple(header.get_shape()), path
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, "safetensors", error) from error

    # Every tensor is checked as it is read: one NaN would otherwise show up only as a loss of NaN.
    return Tensors(shapes, lambda name: finite(where[name], name, _tensor_in(where[name], name)))


def open_torch(files: list[Path]) -> Tensors:
    """The tensors of torch's files, read as float32; UserError when one cannot be read."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{files[0]}: only torch can read this file; pip install torch, "
            f"or take a copy of the model with {SAFETENSORS}"
        ) from error
    found, where = {}, {}
    for path in files:
        try:
            # Files of before torch 1.6 are no archives and must be read whole.
            mapped = zipfile.is_zipfile(path)
            # weights_only keeps pickle from running code; mapped tensors are read when they are used.
            part = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        except Exception as error:  # torch and pickle raise many kinds
            raise _unreadable(path, "torch", error) from error
        if not isinstance(part, dict) or not all(torch.is_tensor(tensor) for tensor in part.values()):
            raise UserError(f"{path}: not a file of named tensors; save the model with save_pretrained")
        for name, tensor in part.items():
            _check_dtype(path, name, str(tensor.dtype).removeprefix("torch."))
            if name in found and not torch.equal(tensor, found[name]):
                raise _twice(name, where[name], path)
            found[name], where[name] = tensor, path
    return Tensors(
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        lambda name: finite(where[name], name, found[name].to(torch.float32).numpy()),
    )


def finite(path: Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns the tensor if all its numbers are finite; raises UserError otherwise.

    Looks at the bits: NumPy's isfinite is several times slower for 16-bit floats.
    """
    # Masks of old checkpoints are booleans or bytes.
    if tensor.dtype.name not in _EXPONENTS:
        return tensor
    numbers = tensor.reshape(-1)
    # A float is NaN or infinite if and only if all bits of its exponent are set.
    bits = numbers.view(f"u{tensor.itemsize}")
    exponent = bits.dtype.type(_EXPONENTS[tensor.dtype.name])
    for start in range(0, len(bits), _CHUNK):
        wrong = (bits[start : start + _CHUNK] & exponent) == exponent
        if wrong.any():
            value = float(numbers[start + int(wrong.argmax())])
            raise UserError(
                f"{path}: tensor {name} holds {value}, so whatever the model computes would be no number; "
                "its training has diverged or the file is damaged: take an earlier checkpoint or copy it again"
            )
    return tensor


def _tensor_in(path: Path, name: str) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _twice(name: str, first: Path, second: Path) -> UserError:
    return UserError(
        f"{second}: tensor {name} is also in {first.name}, with other numbers; copy the files of one model"
    )


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    with path.open("rb") as file:
        start = file.read(64)
    problem = pointer_problem(start)
    if problem:
        return UserError(f"{path}: {problem}")
    if "Weights only load failed" in str(error):
        fix = "save the model with save_pretrained as safetensors"
        return UserError(
            f"{path}: holds more than tensors, and reading that could run a stranger's code; {fix}"
        )
    reason = "the file is empty" if not start else " ".join(str(error).split())[:200]
    return UserError(f"{path}: not a readable {kind} file ({reason}); copy it again")


def _check_dtype(path: Path, name: str, dtype: str) -> None:
    # Masks of old checkpoints are booleans or bytes; only what is read must be a float.
    if dtype in ("BOOL", "U8", "bool", "uint8") and name.endswith((".attn.bias", ".attention.bias")):
        return
    if dtype not in _FLOATS:
        raise UserError(
            f"{path}: tensor {name} is {dtype}; quantized weights cannot be trained, take the float version"
        )


# Writing: a model folder that appears complete or not at all, and its tensors, one shard in memory at a time.

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Context manager: gives a new folder to write to, which replaces `folder` unless the block raises an error."""
    # Beside the folder, since a rename is one step only within a file system.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # An error in the caller's block leaves here, so the old folder stays.
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write_shards(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes every tensor of `shapes`, in that order, rounded to `dtype`; one index file where there are several.

    read: name -> tensor; called once for each, in order.
    """
    size = np.dtype(DTYPES[dtype]).itemsize
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        nbytes = size * math.prod(shape)
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    files = [SAFETENSORS]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: np.ascontiguousarray(read(name).astype(DTYPES[dtype], copy=False)) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors  # before the next file's are read
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(size * math.prod(shape) for shape in shapes.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
