"""What a machine cannot do, told in one line: a full disk, a file that may not be read, a limit that was met."""

import errno
import os
import re

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
    """One line for an error that a file, a disk or a limit is the reason of, with the way out; None for any other.

    An error of a library counts where it, or the one that it is raised from, carries the system's number.
    """
    number = _number_of(error)
    if number is None:
        return None if error.__cause__ is None else problem_of_machine(error.__cause__)
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    where = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes | os.PathLike) else ""
    advice = f"; {_ADVICE[number]}, then give the same command again" if number in _ADVICE else ""
    return f"{where}{os.strerror(number)}{advice}"


def _number_of(error: BaseException) -> int | None:
    """The system's number in an error that is about a file or a disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.filename is not None or error.errno in _OF_A_DISK else None
    if "disk is full" in str(error):  # SQLite's.
        return errno.ENOSPC
    found = _NUMBER.search(str(error))
    number = int(next(filter(None, found.groups()))) if found else None
    return number if number in _OF_A_DISK | {errno.EACCES, errno.EPERM} else None
