"""Restarts the process with huge memory pages, which spares training on CPU most of its page faults.

A training step on CPU maps and drops a gigabyte of temporaries, and in pages of 4 KiB the kernel spends a tenth of the
step on page faults. glibc takes the setting only when a process starts.
"""

from __future__ import annotations

import os
import platform
import sys

_SETTING = "glibc.malloc.hugetlb=1"


def restart_with_huge_pages(module: str) -> None:
    """Starts this process again (same pid, same arguments) with transparent huge pages for malloc.

    Does nothing where it would not help: another C library, or GLIBC_TUNABLES already set, as it is after the
    restart. Call before jax is imported.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    environment = {**os.environ, "GLIBC_TUNABLES": _SETTING}
    # exec replaces the process at once, and what is still in Python's buffer would be lost.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)
