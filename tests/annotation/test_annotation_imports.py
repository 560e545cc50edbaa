"""The annotation layer stands alone: no jax, no heavy import until something is asked."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from annotation_fake_server import FakeServer
from annotation_helpers import ENVIRONMENT, make_rows

JAX = ["jax", "flax", "optax", "orbax", "transformers", "datasets"]
HEAVY = [*JAX, "torch", "openai", "anthropic", "pyarrow", "pandas", "numpy", "scipy", "sklearn"]
PROGRAM = """
import sys, importlib, pkgutil
class NoJax:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "flax", "optax", "orbax", "transformers", "datasets"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, NoJax())
import rlhf_jax.annotation as annotation
for module in pkgutil.walk_packages(annotation.__path__, "rlhf_jax.annotation."):
    importlib.import_module(module.name)
print([name for name in sys.argv[1:] if name in sys.modules])
"""


def test_importing_every_module_needs_no_jax_and_nothing_heavy() -> None:
    command = [sys.executable, "-c", PROGRAM, *HEAVY]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


ROOT = Path(__file__).parents[2]
# Nothing can be imported but Python's own modules, ours, and what the requirements bring with them.
ALONE = """
import sys
allowed = set(sys.argv.pop(1).split(",")) | set(sys.stdlib_module_names) | {"rlhf_jax", "rlhf_jax_config_annotate"}
class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in allowed and not top.startswith(("_", "rlhf_jax")):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, OnlyThese())
from absl import app
from rlhf_jax import main
sys.argv[0] = "main"
app.run(main.main, flags_parser=main.parse_flags)
"""


def required(file: str) -> set[str]:
    lines = (ROOT / file).read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def modules_of(requirements: set[str]) -> set[str]:
    """The top-level modules of the requirements and of all they need."""
    todo, known = [re.split(r"[\s<>=~!;\[]", line)[0] for line in requirements], set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in known:
            continue
        known.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # Only for another platform or Python.
            continue
        todo += [re.split(r"[\s<>=~!;\[(]", need)[0] for need in needs if "extra ==" not in need]
    by_module = metadata.packages_distributions().items()
    return {
        module for module, names in by_module if known & {re.sub(r"[-_.]+", "-", n).lower() for n in names}
    }


def test_the_requirements_of_the_layer_are_some_of_all() -> None:
    assert required("requirements-annotation.txt") < required("requirements.txt")
    modules = modules_of(required("requirements-annotation.txt"))
    assert {"openai", "anthropic", "pyarrow", "httpx2"} <= modules and not {
        "jax",
        "datasets",
        "torch",
    } & modules


def test_the_annotate_job_runs_on_its_own_requirements(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(make_rows(8)))
    with FakeServer() as server:
        judge = {"name": "j", "provider": "openai", "base_url": f"{server.url}/v1", "model": "m"}
        judge |= {"template": "pairwise_choice", "parser": "choice", "max_tokens": 5}
        (tmp_path / "judge.yaml").write_text(json.dumps(judge))
        arguments = ["--config=configs/annotate.py", f"--workdir={tmp_path}/work", "--config.samples="]
        arguments += [f"--config.pairs={tmp_path}/pairs.json", f"--config.judges={tmp_path}/judge.yaml"]
        allowed = ",".join(modules_of(required("requirements-annotation.txt")))
        command = [sys.executable, "-c", ALONE, allowed, *arguments, "--config.p_label_flip=0"]
        done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "8 rows; 8 asked" in done.stdout and (tmp_path / "work/labels.parquet").exists()
