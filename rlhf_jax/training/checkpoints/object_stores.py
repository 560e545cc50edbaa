"""Workdirs on a file system or in an object store (gs://, s3://): the few operations that differ.

An object is written whole or not at all, cannot be appended to, and needs no folder. Orbax and TensorStore write
checkpoints there by themselves; the small files go through etils.epath, which needs gcsfs or s3fs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePath
from typing import Any

from rlhf_jax.errors import UserError

# Bytes copied at a time. shutil's own pieces are small, and weights are gigabytes.
_PIECE = 16 << 20
# The stores that are known, and the package that reaches each.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str | PurePath) -> bool:
    """Whether a path is a URL; UserError for one whose store is not known."""
    scheme, found, _ = str(path).partition("://")
    if found and scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"{path}: {scheme}:// is not known; use a folder, or one of {known}")
    return bool(found)


def at(path: str | PurePath) -> Any:
    """Returns a path or URL as an object with the methods of pathlib.Path."""
    if not is_remote(path):
        return Path(path)
    # Imported here: jobs without jax do without it.
    from etils import epath

    return epath.Path(path)


def workdir_name(path: str | PurePath) -> str:
    """The absolute name of a workdir, the same in whichever folder a process was started."""
    return str(path).rstrip("/") if is_remote(path) else os.path.abspath(path)


def check_reachable(path: str | PurePath) -> None:
    """Raises UserError, with the package to install, when this machine cannot speak to the store."""
    if not is_remote(path):
        return
    try:
        # etils imports the store's package at the first operation and not when the path is made.
        at(path).exists()
    except ImportError as e:
        package = SCHEMES[str(path).partition("://")[0]]
        raise UserError(f"workdir: {path} cannot be reached ({e}); pip install {package}") from e


def write_text(path: str | PurePath, text: str) -> None:
    """Writes a file that is either the old or the new one, whole, whenever the process is killed."""
    path = at(path)
    if is_remote(path):
        path.write_text(text)
        return
    # Renaming is atomic only within one file system, so the temporary file lies in the same folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        # Without it a machine that crashes can leave the new name with an empty file behind it.
        os.fsync(f.fileno())
    temporary.replace(path)


def publish(folder: Path, target: str | PurePath) -> None:
    """Copies a local folder's files to a remote folder, replacing what is there."""
    target = at(target)
    if target.exists():
        target.rmtree()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            there = target / file.relative_to(folder).as_posix()
            there.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, there.open("wb") as copy:
                shutil.copyfileobj(source, copy, _PIECE)
