"""What glibc is asked for: every setting under a name that it knows, or it would be passed over in silence."""

import gc
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.allocator import collector_paused, tunables

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


@pytest.mark.parametrize(("cores", "count"), [(2, 5), (8, 5), (9, 1)])
def test_glibc_takes_every_setting(cores, count):
    wanted = dict(item.split("=") for item in tunables(cores).split(":"))
    assert len(wanted) == count
    if platform.libc_ver()[0] != "glibc" or not LOADER.exists():
        pytest.skip("the loader that lists its settings is glibc's for x86-64")
    env = {**os.environ, "GLIBC_TUNABLES": tunables(cores)}
    listed = subprocess.run([LOADER, "--list-tunables"], env=env, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("before version 2.33 glibc does not list its settings")
    found = dict(re.findall(r"^([\w.]+): (\S+)", listed.stdout, re.MULTILINE))
    assert {name: int(found[name], 0) for name in wanted} == {k: int(v) for k, v in wanted.items()}


# Which of two arrays, of 16 and of 64 MiB, come from the heap.
PLACES = """
import numpy as np
arrays = [np.ones(mebibytes << 17) for mebibytes in (16, 64)]
# Huge pages may cut the heap into several mappings.
heap = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
print([any(int(low, 16) <= array.ctypes.data < int(high, 16) for low, high in heap) for array in arrays])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
def test_small_arrays_come_from_the_heap_and_large_ones_leave_no_holes_in_it():
    env = {**os.environ, "GLIBC_TUNABLES": tunables(2)}
    ran = subprocess.run([sys.executable, "-c", PLACES], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[True, False]"


def test_the_collector_is_paused_and_back_whatever_happens():
    with pytest.raises(ValueError, match="x"), collector_paused():
        assert not gc.isenabled()
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()
    gc.enable()
