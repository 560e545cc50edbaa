"""A model folder that appears whole, and named tensors into its safetensors, one shard in memory at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rlhf_jax.models.tensor_files import SAFETENSORS

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `folder` at the end; after an error it does not."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write(
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
