"""Restarts the process with a malloc that suits XLA on CPU, and pauses Python's own collector.

A training step on CPU maps and drops a gigabyte of temporaries, and in pages of 4 KiB the kernel spends a tenth of the
step on page faults. Huge pages make these fewer; a heap that never gives memory back makes each happen once. Arrays
of 32 MiB and more are mapped by themselves: in a heap they leave holes that no other fits into, and training a model
of 135M took 10.8 GiB instead of 5.5. glibc takes its settings only when a process starts.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import sys
from collections.abc import Iterator

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
# One heap for all threads, which is grown by 64 MiB and never trimmed. The threshold is glibc's own upper bound of it.
_ONE_HEAP = "arena_max=1", f"mmap_threshold={1 << 25}", f"trim_threshold={1 << 34}", f"top_pad={1 << 26}"
# On a machine with more cores than this threads would wait for each other's turn at the one heap.
_FEW_CORES = 8


def tunables(cores: int) -> str:
    """glibc's settings for a machine of so many cores, as GLIBC_TUNABLES has them."""
    heap = _ONE_HEAP if cores <= _FEW_CORES else ()
    return ":".join((_HUGE_PAGES, *(f"glibc.malloc.{x}" for x in heap)))


def restart_with_own_malloc(module: str) -> None:
    """Starts this process again (same pid, same arguments) with the settings for malloc.

    Does nothing where it would not help: another C library, or GLIBC_TUNABLES already set, as it is after the
    restart. Call before jax is imported.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    environment = {**os.environ, "GLIBC_TUNABLES": tunables(os.cpu_count() or 1)}
    # exec replaces the process at once, and what is still in Python's buffer would be lost.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """A context in which Python looks for no cycles: among millions of records, which have none, that takes seconds."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
