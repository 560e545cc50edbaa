"""Errors that a user can mend, told in one line: a wrong setting or file, or something that the machine refused."""

import errno
import json
import os
import re
from os import PathLike
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can mend: a missing file, a field of the wrong kind, a batch the mesh cannot divide.

    The message is one line that names the field or file, the value found, and what would work. `main`
    prints it as `error: ...` and exits with status 2, without a traceback.
    """


class StoppedError(KeyboardInterrupt):
    """Ctrl-C in a job that keeps what it has done so far; the message says what and where.

    A KeyboardInterrupt, so that nothing which handles failures takes it for one.
    """


# What a machine cannot do, told in one line: a full disk, a file that may not be read, a limit that was met.

# With these numbers an error is the machine's also where no file is named.
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
# How libraries that do not raise OSError write such a number: TensorStore, Rust's, Arrow's.
_NUMBER = re.compile(r"os_error_code='(\d+)'|\bos error (\d+)\b|\[?[Ee]rrno (\d+)\b")
_ADVICE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "end other programs, or raise the system's limit on open files",
}


def problem_of_machine(error: BaseException) -> str | None:
    """Describes an error of a file, a disk or a limit in one line, with the way out; None for any other error.

    An error of a library counts where it, or the one that it is raised from, carries the system's number.
    """
    number = _number_of(error)
    if number is None:
        # Libraries wrap the system's error in their own, sometimes more than once.
        return None if error.__cause__ is None else problem_of_machine(error.__cause__)
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    where = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes | os.PathLike) else ""
    advice = f"; {_ADVICE[number]}, then give the same command again" if number in _ADVICE else ""
    return f"{where}{os.strerror(number)}{advice}"


def _number_of(error: BaseException) -> int | None:
    """Finds the system's error number in an error that is about a file or a disk; None in any other."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.filename is not None or error.errno in _OF_A_DISK else None
    # SQLite's error carries no number of the system's.
    if "disk is full" in str(error):
        return errno.ENOSPC
    found = _NUMBER.search(str(error))
    number = int(next(filter(None, found.groups()))) if found else None
    return number if number in _OF_A_DISK | {errno.EACCES, errno.EPERM} else None


# Reading JSON files that others wrote: what cannot be read is one line that names the file and the problem.

_POINTER = b"version https://git-lfs"  # what git leaves in place of a large file


def read_object(path: str | PathLike, fix: str = "copy the file again") -> dict[str, Any]:
    """Reads the object that a JSON file holds, with or without a byte-order mark.

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
        found = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=object_of)
    except (ValueError, RecursionError) as error:  # of the text, or of its encoding
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as JSON ({reason}); {fix}") from error
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(found), "a plain value")
        raise UserError(f"{path}: holds {kind} and should hold an object {{...}}; {fix}")
    return found


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object, and refuses a key that comes twice with two values, one of which json would drop."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            # Compared as texts, because NaN is not equal to itself.
            if repr(found[key]) != repr(value):
                raise ValueError(f"the key {key!r} twice in one object, with two values")
    return found


def pointer_problem(start: bytes) -> str:
    """Says what is wrong with a file that begins like this, if it is git's placeholder of a large file; else ""."""
    if not start.startswith(_POINTER):
        return ""
    return "is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
