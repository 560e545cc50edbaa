"""A GGUF file in, as llama.cpp and its relatives keep models: turned once into a Hugging Face folder.

The folder lies in the user's cache under the file's content, so every job that names the file goes on with the same
folder and the ordinary loader. Weights are dequantised to float32. What the file says and this importer does not
know is refused by name, because it might change what the model computes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.models import gguf_config, gguf_tensors, gguf_tokenizer, tensor_shards
from rlhf_jax.parallel import startup

_FORM = 2  # Of what is written: another number makes new folders.


class Contents(NamedTuple):
    """What a file holds: its metadata as plain values, and its tensors as gguf's reader gives them."""

    path: Path
    fields: dict[str, Any]
    tensors: tuple[Any, ...]


def as_folder(path: str, tell: Callable[[int, int], None] = lambda done, total: None) -> str:
    """A GGUF file -> the Hugging Face folder that is made of it; any other path as it is.

    Processes of one machine, or with one cache, convert it once: the others wait for the first.

    Args:
      tell: called after every tensor with (parameters written, of how many).

    Raises:
      UserError: no such file, not a whole GGUF file, the package gguf is missing, or a model, tokenizer, setting
        or tensor in it that is not supported; by name.
    """
    file = Path(path)
    if not is_gguf(file):
        return path
    _check_package(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the path of a GGUF file or of a Hugging Face folder")
    folder = _cache() / f"{file.stem}-{_digest(file)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
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
    """Writes `folder`, whole or not at all: config.json, safetensors in float32, tokenizer and generation settings."""
    found = _read(file)
    config = gguf_config.config_json(found)
    tokenizer = gguf_tokenizer.files(found)
    shapes, read = gguf_tensors.named(found, config, tell)
    with tensor_shards.replacing(folder) as partial:
        for name, content in (("config.json", config), *tokenizer.items()):
            text = json.dumps(content, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False)
            (partial / name).write_text(text + "\n", encoding="utf-8")
        tensor_shards.write(partial, shapes, read)


def is_gguf(file: Path) -> bool:
    """By its name, or, as other programs' stores have names without an ending, by how it begins."""
    if file.is_dir():
        return False
    if file.suffix.lower() == ".gguf":
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:  # There is no such file; who wanted a folder says so.
        return False


def check_package(path: str) -> None:
    """Raises UserError where a GGUF file is named and the package that reads it is not installed."""
    if is_gguf(Path(path)):
        _check_package(Path(path))


def _check_package(file: Path) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{file}: reading it needs the package gguf; pip install gguf, or give a Hugging Face folder"
        ) from error


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
    """Of the file's content and of the form in which it is written."""
    try:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    return hashlib.sha256(f"{_FORM} {content}".encode()).hexdigest()[:12]
