"""What a page asks for and is not there is said before anything is read, tokenised or compiled."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.data.tables import is_hub_name
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints
from rlhf_jax.models import gguf_files
from rlhf_jax.training.storage import check_reachable, is_remote

# Of each job: the fields that name what it reads, and the command that makes it. "" is no file.
READS = {
    "sft": {
        "data.train": hints.FARM,
        "data.eval": hints.FARM,
        "model.init": hints.SFT,
        "model.tokenizer": hints.FARM,
        "model.adapter": hints.SFT,
    },
    "reward_model": {
        "data.train": hints.LABELS,
        "data.eval": hints.LABELS,
        "model.init": hints.SFT,
        "model.adapter": hints.SFT,
        "center_on": hints.FARM,
    },
    "dpo": {
        "data.train": hints.LABELS,
        "data.eval": hints.LABELS,
        "model.init": hints.SFT,
        "model.adapter": hints.SFT,
    },
    "ppo": {
        "data.train": hints.FARM,
        "data.eval": hints.FARM,
        "model.policy": hints.SFT,
        "model.reward": hints.REWARD_MODEL,
        "model.reward_adapter": hints.REWARD_MODEL,
        "model.adapter": hints.SFT,
    },
    "generate": {"data.prompts": hints.FARM, "model.path": hints.SFT, "model.adapter": hints.SFT},
    "score": {
        "data.responses": hints.PAIRS,
        "model.path": hints.REWARD_MODEL,
        "model.adapter": hints.REWARD_MODEL,
    },
}
# Fields that another one makes idle.
_UNREAD_WITH = {"model.tokenizer": "model.init"}
_PACKAGES = {"tensorboard": ("tensorboardX", ""), "wandb_project": ("wandb", ", then wandb login")}


def check(config: ConfigDict, workdir: str) -> None:
    """Raises UserError that names the field, what it asks for, and how to get it."""
    page = config.to_dict()
    check_reachable(workdir)
    check_packages(page, workdir)
    for field in READS.get(page["job"], {}):
        gguf_files.check_package(_at(page, field))
    for field, made_by in READS.get(page["job"], {}).items():
        path, instead = _at(page, field), _UNREAD_WITH.get(field)
        if path and not (instead and _at(page, instead)) and not _is_there(field, path):
            what = "file" if field.startswith("data.") or field == "center_on" else "folder"
            raise UserError(f"{field}: {path}: no such {what}; make it with: {made_by}")


def check_packages(page: dict[str, Any], workdir: str, prefix: str = "") -> None:
    """Raises UserError for a field that asks for a package that is not there. prefix: of a stage of the farm."""
    for field, (package, then) in _PACKAGES.items():
        if not page.get(field):
            continue
        if is_remote(workdir):
            raise UserError(f"{prefix}{field}: it cannot write to {workdir}; use a --workdir on a disk")
        if find_spec(package) is None:
            raise UserError(f"{prefix}{field}: {package} is not installed; run pip install {package}{then}")


def _is_there(field: str, path: str) -> bool:
    if Path(path).exists():
        return True
    from_hub = field.startswith("data.") or field in ("center_on", "model.tokenizer")
    return from_hub and is_hub_name(path)


def _at(page: dict[str, Any], field: str) -> Any:
    for part in field.split("."):
        page = page.get(part, "") if isinstance(page, dict) else ""
    return page
