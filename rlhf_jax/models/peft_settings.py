"""adapter_config.json: which of PEFT's settings are honoured, which say nothing about numbers, which are refused.

PEFT itself is not needed to read its files, so its fields stand here; a test holds this table against the installed
PEFT's own class. A field that is in neither group is one of a newer PEFT: refused by name when it is switched on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.json_files import read_object

CONFIG = "adapter_config.json"

# Fields that leave the numbers of a trained adapter as they are: names, how it was trained or started, and
# which layers have one, which the tensors say themselves.
_INERT = """
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout
    fan_in_fan_out target_modules exclude_modules layers_pattern megatron_core qalora_group_size runtime_config
    loftq_config eva_config corda_config lora_ga_config ensure_weight_tying
"""
INERT = frozenset(_INERT.split())
# Fields under which an adapter is scale * (x A) B only at certain values: those, the default first.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None, {}),
    "velora_config": (None, {}),
    "monteclora_config": (None, {}),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
}
# Fields that are read.
READ = frozenset(("r", "lora_alpha", "use_rslora", "init_lora_weights", "modules_to_save"))

# Beginnings that leave the model below as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change it.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_HEADS = {"score", "classifier"}  # what PEFT trains whole in a classifier; it names both, whichever there is
_TASKS = (None, "CAUSAL_LM", "SEQ_CLS")


class Settings(NamedTuple):
    """What an adapter folder says: rank, factor on what it adds, and the model that it was trained on."""

    rank: int
    scale: float
    base: str


def read(folder: Path) -> Settings:
    """The settings of an adapter folder.

    Raises:
      UserError: the file cannot be read, or a setting changes the numbers in a way that is not supported; by name.
    """
    path = folder / CONFIG
    raw = read_object(path, "save the adapter again with PEFT's save_pretrained")
    for name, plain in PLAIN.items():
        if (found := raw.get(name, plain[0])) not in plain:
            raise _refuse(folder, name, found, f"only {plain[0]!r} is supported")
    for name, found in raw.items():
        if name not in INERT | READ | set(PLAIN) and found not in (None, False, "", [], {}):
            raise _refuse(folder, name, found, "this setting is not known and might change what is computed")
    _check_beginning(folder, raw.get("init_lora_weights", True))
    if raw.get("task_type") not in _TASKS:
        raise _refuse(folder, "task_type", raw["task_type"], "only CAUSAL_LM and SEQ_CLS are supported")
    whole = raw.get("modules_to_save") or []
    if not isinstance(whole, list) or set(map(str, whole)) - _HEADS:
        raise _refuse(
            folder, "modules_to_save", whole, "modules trained whole are not part of a low-rank adapter"
        )
    rank, alpha = _number(path, raw, "r"), _number(path, raw, "lora_alpha")
    if rank != int(rank):
        raise UserError(f"{path}: r is {raw['r']!r}; a whole number is needed")
    root = math.sqrt(rank) if raw.get("use_rslora") else rank
    return Settings(int(rank), alpha / root, str(raw.get("base_model_name_or_path") or ""))


def base_of(folder: Path) -> str:
    """The model that an adapter says it was trained on; "" where it does not."""
    raw = read_object(folder / CONFIG, "save the adapter again with PEFT's save_pretrained")
    return str(raw.get("base_model_name_or_path") or "")


def merge_advice(folder: Path, base: str = "") -> str:
    """What helps where an adapter cannot be laid over a model: PEFT can."""
    return (
        f"merge it with PEFT into the model it was trained on{f' ({base})' if base else ''}: PeftModel"
        f".from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained(...), and start from that folder"
    )


def other_base(recorded: str, folder: str) -> bool:
    """Whether an adapter names another model as its base than the folder it is laid over, as far as names tell."""
    if not recorded or Path(recorded).resolve() == Path(folder).resolve():
        return False
    # A cache of the hub calls the folder of org/name "models--org--name/snapshots/HASH".
    return Path(recorded).name.lower() not in str(folder).lower().replace("--", "/").split("/")


def _check_beginning(folder: Path, found: Any) -> None:
    if found in _INITS or (isinstance(found, str) and found.lower() in _INITS):
        return
    raise UserError(
        f"{folder / CONFIG}: init_lora_weights is {found!r}, which changes the weights of the model below the "
        "adapter, so laid over the unchanged model it is wrong; save it as a plain one with PEFT's save_pretrained("
        "..., path_initial_model_for_weight_conversion=THE_ADAPTER_BEFORE_TRAINING), or "
        + merge_advice(folder)
    )


def _refuse(folder: Path, name: str, found: Any, why: str) -> UserError:
    return UserError(f"{folder / CONFIG}: {name} is {found!r}; {why}; {merge_advice(folder)}")


def _number(path: Path, raw: dict[str, Any], name: str) -> float:
    """A positive number."""
    if name not in raw:
        raise UserError(f"{path}: {name} is missing; save the adapter again with PEFT's save_pretrained")
    found = raw[name]
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise UserError(f"{path}: {name} is {found!r}; a positive number is needed")
    return float(found)
