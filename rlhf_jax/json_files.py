"""Reading JSON files that others wrote: what cannot be read is one line that names the file and the problem."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError

_POINTER = b"version https://git-lfs"  # what git leaves in place of a large file


def read_object(path: str | PathLike, fix: str = "copy the file again") -> dict[str, Any]:
    """The object that a JSON file holds, with or without a byte-order mark.

    Raises:
      UserError: the file cannot be read, is empty or cut, is not UTF-8, or holds something else than an object.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
    pointer = pointer_problem(raw)
    if pointer:
        raise UserError(f"{path}: {pointer}")
    if not raw.strip():
        raise UserError(f"{path}: the file is empty; {fix}")
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of the text, or of its encoding
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as JSON ({reason}); {fix}") from error
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(found), "a plain value")
        raise UserError(f"{path}: holds {kind} and should hold an object {{...}}; {fix}")
    return found


def pointer_problem(start: bytes) -> str:
    """What to say of a file that begins like this where it is git's placeholder of a large file; "" of any other."""
    if not start.startswith(_POINTER):
        return ""
    return "is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
