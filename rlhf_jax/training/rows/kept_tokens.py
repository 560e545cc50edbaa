"""Keeps the token rows of large files on disk, for the next start of a run and for other runs on the same rows.

A file of rows is named by a hash of all that decides them: the contents of the sources, the settings of the page's
`data`, the seed, the tokenizer and its chat template, the functions that read and encode, the code of this package and
the versions of the packages that make tokens. It is written beside and renamed when it is whole, ends with a checksum,
and its arrays are mapped into memory, so that a row is read from disk when a batch asks for it.

What is said of the rows (how many were left out, and why) is kept with them and said again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Pairs, Prompts, Sequences
from rlhf_jax.data.candidate_arrays import Candidates
from rlhf_jax.data.files.splits import local_path
from rlhf_jax.data.tokens.tokenizer_files import heads
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.workdir import digest
from rlhf_jax.training.run import encoded_rows
from rlhf_jax.training.run.encoded_rows import Split
from rlhf_jax.training.run.session import code_version

# As data.token_cache: nothing is kept.
NONE = "none"
# Of the sources together. Smaller ones are encoded in about a second, and a file for each would only be litter.
SMALLEST = 1 << 20
# Files that nobody has read for so long are removed when another one is written.
_UNUSED_S = 60 * 86400
# What of a page's `data` decides no token.
_BESIDE = ("train", "eval", "packing", "share_prompts", "token_cache")
_MAKERS = ("tokenizers", "transformers", "jinja2", "pyarrow", "datasets")
# The first and the last bytes of a file, the number being that of this layout.
_BEGINS, _ENDS = b"rlhf_jax tokens 1\n", b"rows end here\n"
_ALIGNED = 64
_TYPES = {kind.__name__: kind for kind in (Prompts, Sequences, Pairs, Candidates)}


def rows_from_disk(
    make: Callable[[], Split],
    data: ConfigDict,
    tokenizers: Sequence[Any],
    seed: int,
    how: Sequence[Callable],
) -> Split:
    """Returns the rows that `make` returns, from disk where they are there; else makes and keeps them.

    how: the functions that `make` calls. Processes of one machine, and runs, that want the same rows at the same time
    wait for the first of them. A folder that cannot be written is a notice and no error.
    """
    began, about = time.monotonic(), _about(data, tokenizers, seed, how)
    if about is None:
        return make()
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(data.token_cache or _default_folder()) / f"{name}.tokens"
    if (found := _read(path, about)) is not None:
        return _said(found, path, began)
    with _alone(path):
        # Another may have made them while this one waited.
        if (found := _read(path, about)) is not None:
            return _said(found, path, began)
        before = len(encoded_rows.said)
        split = make()
        # A source that has changed meanwhile: nobody knows which of the two these rows are of.
        if _about(data, tokenizers, seed, how) == about:
            _write(path, about, split, encoded_rows.said[before:])
    return split


encoded_rows.keepers.append(rows_from_disk)


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "tokens"


# What decides the rows.


def _about(
    data: ConfigDict, tokenizers: Sequence[Any], seed: int, how: Sequence[Callable]
) -> dict[str, Any] | None:
    """All that decides the rows, as JSON has it; None where they are too few to keep, or something has no name."""
    # Some methods take several files in one field.
    sources = {name: [x.strip() for x in data[name].split(",")] for name in ("train", "eval") if data[name]}
    paths = [local_path(source) for of_field in sources.values() for source in of_field]
    named = [_named(function) for function in how]
    # The rows of a dataset of the hub are known when they have been fetched, and `datasets` keeps them itself.
    if data.token_cache == NONE or None in named or not all(path.exists() for path in paths):
        return None
    if sum(_size(path) for path in paths) < SMALLEST or not all(x.is_fast for x in tokenizers):
        return None
    return {
        "sources": sources,
        "contents": [digest(path) for path in paths],
        "settings": {x: y for x, y in json.loads(data.to_json_best_effort()).items() if x not in _BESIDE},
        "seed": seed,
        "tokenizers": [_tokenizer_digest(x) for x in tokenizers],
        "how": named,
        "code": code_version(),
        "packages": [sys.version, *(f"{name} {version(name)}" for name in _MAKERS)],
    }


def _size(path: Path) -> int:
    files = (path,) if path.is_file() else (x for x in path.rglob("*") if x.is_file())
    return sum(file.stat().st_size for file in files)


def _named(function: Any) -> Any:
    """A name for a function with the values that are bound to it; None where one of them cannot be written down."""
    if isinstance(function, partial):
        bound = [*function.args, *function.keywords.values()]
        found = [_named(x) if callable(x) else _value(x) for x in (function.func, *bound)]
        return None if None in found else [*found, *function.keywords]
    # What a function has closed over is part of what it does, and has no name here; a decorator is part of the code.
    function = inspect.unwrap(function)
    if inspect.isfunction(function) and not function.__closure__:
        return f"{function.__module__}.{function.__qualname__}"
    return None


def _value(x: Any) -> str | None:
    return repr(x) if x is None or isinstance(x, str | bool | int | float) else None


def _tokenizer_digest(tokenizer: Any) -> str:
    # Sets the Rust tokenizer back, whose text holds how it was called last.
    tokenizer("x", add_special_tokens=False, padding=False, truncation=False)
    about = (
        type(tokenizer).__qualname__,
        tokenizer.chat_template,
        sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        heads(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


# One writer at a time.


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """A context that one process at a time is in, for one file of rows; it is left when the process ends, too."""
    lock = path.with_suffix(".lock")
    with contextlib.ExitStack() as stack:
        # Where a file system has no locks, or nothing can be written, each makes the rows for itself.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that makes the rows of {path}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            stack.callback(lock.unlink, missing_ok=True)
        yield


# The file: a first line, arrays and records, a JSON text that says where each lies, its size, a last line.


class Records(Sequence[dict]):
    """Records in a mapped file, read when they are asked for."""

    def __init__(self, lines: np.ndarray, offsets: np.ndarray) -> None:
        self._lines, self._offsets = lines, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        start, stop = self._offsets[range(len(self))[i]], self._offsets[range(len(self))[i] + 1]
        return json.loads(self._lines[start:stop].tobytes())


def _write(path: Path, about: Mapping[str, Any], split: Split, said: list[str]) -> None:
    """Writes a file of rows; not one with records that JSON cannot give back as they are."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        _remove_old(path)
        try:
            with part.open("wb") as file:
                if not _write_rows(file, about, split, said):
                    return
                file.flush()
                # Without it a machine that crashes can leave the new name with an empty file behind it.
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        print(f"notice: data.token_cache: {path.parent} cannot be written ({e.strerror or e})", flush=True)
        return
    if startup.is_main():
        print(
            f"tokens of {_count(split):,} rows: kept in {path}, {path.stat().st_size / 2**20:.0f} MiB",
            flush=True,
        )


def _write_rows(file: BinaryIO, about: Mapping[str, Any], split: Split, said: list[str]) -> bool:
    written = _Written(file)
    written.add(_BEGINS)
    places: dict[str, Any] = {}
    for name in ("train", "eval"):
        places[name] = _put(getattr(split, name), written)
    for name in ("eval_rows", "train_rows"):
        records = getattr(split, name)
        if not all(_is_json(record) for record in records):
            return False
        start, offsets = written.at, [0]
        for record in records:
            written.add(json.dumps(record).encode())
            offsets.append(written.at - start)
        places[name] = [start, _put(np.array(offsets, np.int64), written)]
    head = json.dumps({"about": about, "said": said, "rows": places, "sum": written.sum, "bytes": written.at})
    written.add(head.encode())
    file.write(len(head.encode()).to_bytes(8, "little") + _ENDS)
    return True


class _Written:
    """A file that is written from front to end: how far, and the checksum of all that."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.at, self.sum = file, 0, 0

    def add(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.sum = zlib.crc32(data, self.sum)
        self.at += len(data)


def _put(value: Any, file: _Written) -> Any:
    """Writes the arrays of rows, and returns where each lies: [kind, fields], [dtype, shape, place], or None."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        file.add(bytes(-file.at % _ALIGNED))
        place = file.at
        file.add(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return [value.dtype.str, list(value.shape), place]
    names = [x.name for x in fields(value)] if is_dataclass(value) else value._fields
    return [type(value).__name__, {name: _put(getattr(value, name), file) for name in names}]


def _got(place: Any, mapped: np.ndarray) -> Any:
    if place is None:
        return None
    if isinstance(place[1], dict):
        return _TYPES[place[0]](**{name: _got(x, mapped) for name, x in place[1].items()})
    dtype, shape, start = np.dtype(place[0]), place[1], place[2]
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return mapped[start : start + size].view(dtype).reshape(shape)


def _read(path: Path, about: Mapping[str, Any]) -> tuple[Split, list[str]] | None:
    """Reads kept rows: (rows, what was said of them). None for a file that is not there, not whole, or of others."""
    try:
        with path.open("rb") as file:
            head = _head(file)
        if head is None or head["about"] != about:
            return None
        # Only what is asked for becomes part of the process's memory. A plain array, as each slice of a memmap
        # is an object that takes longer to make than most rows take to copy.
        mapped = np.asarray(np.memmap(path, np.uint8, "r"))
        rows = head["rows"]
        train, held = (_got(rows[name], mapped) for name in ("train", "eval"))
        records = [
            Records(mapped[start:], _got(x, mapped)) for start, x in (rows["eval_rows"], rows["train_rows"])
        ]
        # The time of the last use, for `_remove_old`.
        with contextlib.suppress(OSError):
            os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return Split(train, held, list(records[0]), records[1] if len(records[1]) else ()), head["said"]


def _head(file: BinaryIO) -> dict[str, Any] | None:
    """The JSON text at a file's end; None where the file is not whole."""
    size = file.seek(0, os.SEEK_END)
    end = 8 + len(_ENDS)
    file.seek(max(size - end, 0))
    tail = file.read()
    length = int.from_bytes(tail[:8], "little")
    if tail[8:] != _ENDS or length > size - end:
        return None
    file.seek(size - end - length)
    head = json.loads(file.read(length))
    file.seek(0)
    total, left = 0, head["bytes"]
    while left and (piece := file.read(min(left, 1 << 20))):
        total, left = zlib.crc32(piece, total), left - len(piece)
    return head if not left and total == head["sum"] else None


def _is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it is. By exact types: a number of NumPy's would come back as another."""
    kind = type(value)
    if kind is dict:
        return all(type(name) is str and _is_json(x) for name, x in value.items())
    if kind is list:
        return all(map(_is_json, value))
    return value is None or kind in (str, bool, int, float)


def _said(found: tuple[Split, list[str]], path: Path, began: float) -> Split:
    split, lines = found
    encoded_rows.said += lines
    if startup.is_main():
        print(*lines, sep="\n", flush=True)
        seconds = time.monotonic() - began
        print(f"tokens of {_count(split):,} rows: read from {path}, {seconds:.1f} s", flush=True)
    return split


def _count(split: Split) -> int:
    return len(split.train) + len(split.eval)


def _remove_old(path: Path) -> None:
    """Removes files of rows that nobody reads any more, and what a killed process has left of this one."""
    now = time.time()
    parts: Iterable[Path] = path.parent.glob(f".{path.name}.*.part")
    for file in (*parts, *path.parent.glob("*.tokens")):
        # This process alone writes this one now, unless it is on another machine; so what is old has been left.
        longest = 3600 if file.suffix == ".part" else _UNUSED_S
        with contextlib.suppress(OSError):
            if now - file.stat().st_mtime > longest:
                file.unlink()
