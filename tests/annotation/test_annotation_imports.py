"""The annotation layer stands alone: no jax, no heavy import until something is asked."""

import subprocess
import sys

from annotation_helpers import ENVIRONMENT

JAX = ["jax", "flax", "optax", "orbax", "transformers", "datasets"]
HEAVY = [*JAX, "torch", "openai", "anthropic", "pyarrow", "pandas", "numpy"]
PROGRAM = """
import sys, importlib, pkgutil
class NoJax:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "flax", "optax", "orbax", "transformers", "datasets"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, NoJax())
import rlhf_jax.annotation as annotation
for module in pkgutil.iter_modules(annotation.__path__):
    importlib.import_module(f"rlhf_jax.annotation.{module.name}")
print([name for name in sys.argv[1:] if name in sys.modules])
"""


def test_importing_every_module_needs_no_jax_and_nothing_heavy() -> None:
    command = [sys.executable, "-c", PROGRAM, *HEAVY]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
