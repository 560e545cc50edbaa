"""Learning from preference feedback in JAX: SFT, reward models, PPO, DPO, LLM judges and automatic evaluation.

The door for notebooks and scripts, beside the commands of `rlhf_jax.main`:

    import rlhf_jax as rj
    run = rj.load_page("configs/dpo.py", workdir="runs/dpo", **{"data.train": rows}).train()
    run.metrics, run.sample(["Name three colours."]), run.export("model")
"""

import importlib
from collections.abc import Callable
from os import PathLike
from typing import Any

from rlhf_jax.errors import UserError

__all__ = ["UserError", "load_page", "open_run"]
__version__ = "0.1.0"


def load_page(spec: str, /, workdir: str | PathLike[str], **settings: Any) -> "Page":
    """A page of settings, checked like a command, to be run in this process.

    spec: configs/NAME.py or configs/NAME.py:VARIANT.
    workdir: the folder for all that the run writes; the same folder resumes it.
    settings: what a command says as --config.NAME=VALUE, by its dotted name, as in **{"data.train": rows}. Where a
        field names a file of records, rows may be given themselves, as a list of dicts; where it names several
        (NAME=FILE,...), a dict of them.

    Raises UserError, one line, for whatever the command would refuse.
    """
    # Imported by name and only now: the annotation layer imports this package where there is no jax.
    return importlib.import_module("rlhf_jax.notebook").Page.load(spec, workdir, settings)


def open_run(workdir: str | PathLike[str]) -> "Run":
    """What an earlier run left in its folder, be it started by a command or from Python."""
    return importlib.import_module("rlhf_jax.notebook").Run.open(workdir)


def offered(package: str, **modules: str) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a package (PEP 562) that imports each name from its module when it is asked for.

    Modules of a package import each other and those of other packages. A package that imported all of them at once
    would be imported by the others before it is complete. And a name that is not asked for costs nothing.
    """

    def take(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return take
