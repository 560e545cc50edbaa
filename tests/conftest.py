"""Run-time checks for the whole suite: shapes and types of public functions, no silent rank promotion."""

import os
import tempfile

# Compiled programs are shared by all tests and the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "rlhf_jax_test_compiled"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

CHECKED = ("objectives", "models", "sampling", "rollout", "training", "parallel", "data")
_hook = install_import_hook([f"rlhf_jax.{room}" for room in CHECKED], "beartype.beartype")
_hook.__enter__()
