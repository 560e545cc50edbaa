"""Adapters in and out in PEFT's format: a folder of adapter_config.json and adapter_model.safetensors.

In PEFT's files a linear layer's adapter is `MODULE.lora_A.weight` [r, in] and `MODULE.lora_B.weight` [out, r], whether
the layer's own weight is [out, in] or, as in GPT-2, [in, out]. The score head of a reward model is trained in full and
stored beside them. What an adapter computes is in `lora`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models import lora
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.huggingface import family_tensors
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.name_map import file_name
from rlhf_jax.models.huggingface.tensor_files import Tensors, open_safetensors, open_torch
from rlhf_jax.models.lora import Lora, Site
from rlhf_jax.parallel import startup

WEIGHTS, TORCH = "adapter_model.safetensors", "adapter_model.bin"
_SCORE = "base_model.model.score.weight"


class Loaded(NamedTuple):
    """A loaded adapter: settings, tree, and the score head [D] that was trained with it, if any."""

    lora: Lora
    adapter: Params
    score: np.ndarray | None


def describe_adapter(folder: str | Path, config: ModelConfig, base: str) -> tuple[Lora, bool]:
    """Reads an adapter's settings without its weights: (settings, whether it has a score head). Errors as `load`.

    base: the folder of the model that it is laid over. A notice says when the adapter names another one.
    """
    found, _, tensors = _open(Path(folder), config)
    recorded = read_peft_settings(Path(folder)).base
    # Names prove nothing (a folder may have been moved), so this is a notice and no error.
    if other_base(recorded, base):
        startup.notice_once(
            f"{folder}: trained over {recorded}, and now laid over {base}: right only for the same weights"
        )
    return found, _SCORE in tensors.shapes


def load(folder: str | Path, config: ModelConfig, mesh: Mesh | None = None) -> Loaded:
    """Reads an adapter for a model of this config, float32; onto the mesh if one is given.

    Raises:
      UserError: no such folder, an adapter of another kind, or tensors that are missing, unknown or of another
        shape; by name.
    """
    found, there, tensors = _open(Path(folder), config)
    adapter: Params = {"layers": {}}
    for site in there:
        layers = [_factors(config, site, i, tensors) for i in range(config.layers)]
        group = adapter["layers"].setdefault(site.group, {})
        group |= {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
    if mesh is not None:
        adapter = lora.place_adapter(config, found, adapter, mesh)
    score = tensors.read(_SCORE)[0].astype(np.float32) if _SCORE in tensors.shapes else None
    return Loaded(found, adapter, score)


def _open(folder: Path, config: ModelConfig) -> tuple[Lora, list[Site], Tensors]:
    files = [folder / name for name in (WEIGHTS, TORCH) if (folder / name).is_file()]
    for name, found in ((CONFIG, (folder / CONFIG).is_file()), (WEIGHTS, files)):
        if not found:
            raise UserError(f"{folder}: no {name}; an adapter folder is what PEFT's save_pretrained writes")
    settings = read_peft_settings(folder)
    tensors = open_safetensors(files[:1]) if files[0].name == WEIGHTS else open_torch(files[:1])
    rank, there = settings.rank, []
    # What should be in the file follows from which lora_A tensors are: target_modules may be a regular
    # expression, and the tensors themselves say where an adapter is. A list of names is read besides.
    headed = settings.headed or _SCORE in tensors.shapes
    expected = {_SCORE: (1, config.width)} if headed else {}
    for site in lora.sites(config):
        modules = [_module(config, site, i) for i in range(config.layers)]
        found = [i for i, module in enumerate(modules) if f"{module}.lora_A.weight" in tensors.shapes]
        _check_layers(folder, modules, found, settings)
        if found or _ends_in(modules[0], settings.targets):
            there.append(site)
            for module in modules:
                expected[f"{module}.lora_A.weight"] = (rank, math.prod(site.inputs))
                expected[f"{module}.lora_B.weight"] = (sum(map(math.prod, site.outputs)), rank)
    _check(folder, config, expected, tensors, settings)
    # alpha is derived from the scale, which with use_rslora is alpha / sqrt(r): ours divides by r always.
    targets = tuple(kernel for site in there for kernel in site.kernels)
    return Lora(rank, settings.scale * rank, targets), there, tensors


def _ends_in(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of those named, as PEFT matches names: whole, or as the last parts."""
    return any(f".{module}".endswith(f".{name}") for name in names)


def _check_layers(folder: Path, modules: list[str], found: list[int], settings: PeftSettings) -> None:
    """Raises UserError if some layers have an adapter and others have none."""
    lacking = [module for i, module in enumerate(modules) if i not in found]
    if found and lacking:
        raise UserError(
            f"{folder}: {len(found)} of {len(modules)} layers have an adapter, and {lacking[0]} has none; only "
            f"adapters on all layers are supported; {merge_advice(folder, settings.base)}"
        )


def save_adapter(folder: str | Path, config: ModelConfig, params: Params, *, base: str) -> None:
    """Writes the adapter of an adapted model of host arrays, in float32.

    base: the folder or hub name of the model that it was trained on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _, adapter = lora.split_adapter(params)
    settings = lora.settings_of(config, adapter)
    tensors = {}
    there = lora.chosen_sites(config, settings.targets)
    for site in there:
        leaves = adapter["layers"][site.group]
        for i in range(config.layers):
            a = np.asarray(leaves[site.a])[i].reshape(-1, settings.rank)
            bs = tuple(np.asarray(leaves[lora.b_of(kernel)])[i] for kernel in site.kernels)
            module = _module(config, site, i)
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(_join_b(config, site, bs))
    if "score" in params:
        tensors[_SCORE] = np.asarray(params["score"])[None]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    raw = {
        "peft_type": "LORA",
        # The task chooses PEFT's wrapper of the model; the one for classifiers loads the score head too.
        "task_type": "SEQ_CLS" if "score" in params else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        # A whole number where it is one: PEFT declares lora_alpha an int, and people compare these files.
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": _modules(config, there),
        "modules_to_save": ["score"] if "score" in params else None,
        "fan_in_fan_out": all(site.tensor.layout in family_tensors.IN_FIRST for site in there),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def _module(config: ModelConfig, site: Site, layer: int) -> str:
    family = FAMILIES[config.family]
    name = file_name(family, f"{family.blocks}.{layer}.{site.tensor.name}")
    return f"base_model.model.{name.removesuffix('.weight')}"


def _modules(config: ModelConfig, there: list[Site]) -> list[str]:
    """target_modules: the last part of each name (PEFT matches endings), or all of it where others end in it too."""
    names = [tensor.name.removesuffix(".weight") for tensor in FAMILIES[config.family].layer]
    wanted = [site.tensor.name.removesuffix(".weight") for site in there]
    short = {name: name.rsplit(".", 1)[-1] for name in wanted}
    return sorted(
        x if sum(other.endswith(f".{x}") for other in names) == 1 else name for name, x in short.items()
    )


def _factors(config: ModelConfig, site: Site, layer: int, tensors: Tensors) -> dict[str, np.ndarray]:
    """One layer's factors as our leaves: a, and b for each kernel of the site."""
    module = _module(config, site, layer)
    A, B = (tensors.read(f"{module}.lora_{x}.weight").astype(np.float32) for x in "AB")
    found = {site.a: A.T.reshape(*site.inputs, -1)}
    bs = (B.T,)
    if len(site.kernels) > 1:
        layout = site.tensor.layout
        # A fused B is split as the fused weight is, with r in the place of the
        # inputs; layouts of [in, out] want it transposed.
        bs = layout.split(B.T if layout in family_tensors.IN_FIRST else B, config.head_dim)
    for kernel, b, outputs in zip(site.kernels, bs, site.outputs, strict=True):
        found[lora.b_of(kernel)] = b.reshape(-1, *outputs)
    return found


def _join_b(config: ModelConfig, site: Site, bs: tuple[np.ndarray, ...]) -> np.ndarray:
    """lora_B of a layer, [out, r]."""
    if len(bs) == 1:
        return bs[0].reshape(len(bs[0]), -1).T
    layout = site.tensor.layout
    joined = layout.join(bs, config.head_dim)
    return joined.T if layout in family_tensors.IN_FIRST else joined


def _check(
    folder: Path,
    config: ModelConfig,
    expected: dict[str, tuple[int, ...]],
    tensors: Tensors,
    settings: PeftSettings,
) -> None:
    problems = [
        ("missing tensors", sorted(set(expected) - set(tensors.shapes))),
        ("unknown tensors", sorted(set(tensors.shapes) - set(expected))),
        (
            "other shapes",
            [
                f"{name} is {list(tensors.shapes[name])} and should be {list(shape)}"
                for name, shape in sorted(expected.items())
                if tensors.shapes.get(name, shape) != shape
            ],
        ),
    ]
    said = [
        f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        for what, names in problems
        if names
    ]
    if not expected:
        said.append("no tensors of an adapter")
    if said:
        base = f", trained over {settings.base}," if settings.base else ""
        raise UserError(
            f"{folder}: the adapter{base} does not fit this {config.family} model; {'; '.join(said)}; give the "
            f"model it was trained on, or {merge_advice(folder, settings.base)}"
        )


# adapter_config.json: which of PEFT's settings are read, which do not affect the numbers, and which are refused.
#
# PEFT itself is not needed to read its files, so its fields stand here; a test holds this table against the installed
# PEFT's own class. A field that is in neither group is one of a newer PEFT: refused by name when it is switched on.

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


class PeftSettings(NamedTuple):
    """Settings of adapter_config.json.

    Attributes:
      rank, scale: r, and the factor on what the adapter adds.
      base: the model that it was trained on, "" where the file does not say.
      targets: names of modules that have an adapter, where the file lists them.
      headed: whether a score head was trained with it.
    """

    rank: int
    scale: float
    base: str
    targets: tuple[str, ...] = ()
    headed: bool = False


def read_peft_settings(folder: Path) -> PeftSettings:
    """The settings of an adapter folder.

    Raises:
      UserError: the file cannot be read, or a setting changes the numbers in a way that is not supported; by name.
    """
    path = folder / CONFIG
    raw = read_object(path, "save the adapter again with PEFT's save_pretrained")
    for name, plain in PLAIN.items():
        if (found := raw.get(name, plain[0])) not in plain:
            raise _refuse(folder, name, found, f"only {plain[0]!r} is supported")
    # A newer PEFT writes its new fields into every file, switched off: those say nothing.
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
    stabilised = raw.get("use_rslora")
    if not isinstance(stabilised, bool | None):
        raise UserError(f"{path}: use_rslora is {stabilised!r}; true or false is needed")
    # Rank-stabilised LoRA (Kalajdzievski 2023) divides alpha by the root of the rank.
    root = math.sqrt(rank) if stabilised else rank
    base = str(raw.get("base_model_name_or_path") or "")
    return PeftSettings(int(rank), alpha / root, base, _listed(raw), bool(whole))


def _listed(raw: dict[str, Any]) -> tuple[str, ...]:
    """The names in target_modules; none where it is a regular expression, or others are taken out again."""
    targets = raw.get("target_modules")
    listed = isinstance(targets, list) and not raw.get("exclude_modules")
    return tuple(name for name in targets if isinstance(name, str)) if listed else ()


def peft_base(folder: Path) -> str:
    """The model that an adapter says it was trained on; "" where it does not."""
    raw = read_object(folder / CONFIG, "save the adapter again with PEFT's save_pretrained")
    return str(raw.get("base_model_name_or_path") or "")


def merge_advice(folder: Path, base: str = "") -> str:
    """The advice of all errors about adapters that are not supported: merge it with PEFT, and start from the result."""
    return (
        f"merge it with PEFT into the model it was trained on{f' ({base})' if base else ''}: PeftModel"
        f".from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained(...), and start from that folder"
    )


def other_base(recorded: str, folder: str) -> bool:
    """Whether an adapter says that it was trained over another model than the one in `folder`, judged by names."""
    if not recorded or Path(recorded).resolve() == Path(folder).resolve():
        return False
    # A cache of the hub calls the folder of org/name "models--org--name/snapshots/HASH".
    return Path(recorded).name.lower() not in str(folder).lower().replace("--", "/").split("/")


def _check_beginning(folder: Path, found: Any) -> None:
    # PEFT compares the names in any case: "Gaussian" is "gaussian".
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
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= sys.float_info.max:
        raise UserError(f"{path}: {name} is {found!r}; a positive number is needed")
    return float(found)
