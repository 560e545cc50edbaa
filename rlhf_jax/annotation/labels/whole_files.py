"""Atomic writes: files that appear complete or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it is renamed to `path` at the end, or removed after an error.

    Errors: UserError when the place cannot be written.
    """
    path = Path(path)
    # In the same folder: os.replace is atomic within a file system only. The process id keeps writers apart.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); give a writable path"
        ) from None
