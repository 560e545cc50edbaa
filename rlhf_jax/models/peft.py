"""Adapters in and out in PEFT's format: a folder of adapter_config.json and adapter_model.safetensors.

A linear layer's adapter is `MODULE.lora_A.weight` [r, in] and `MODULE.lora_B.weight` [out, r] there, whichever way
the layer keeps its own weight. The score head of a reward model is trained whole and stands beside them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models import layouts, lora, peft_settings
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.families import FAMILIES
from rlhf_jax.models.lora import Lora, Site
from rlhf_jax.models.name_map import file_name
from rlhf_jax.models.peft_settings import CONFIG, Settings, merge_advice
from rlhf_jax.models.tensor_files import Tensors, open_safetensors, open_torch
from rlhf_jax.parallel import notices

WEIGHTS, TORCH = "adapter_model.safetensors", "adapter_model.bin"
_SCORE = "base_model.model.score.weight"


class Loaded(NamedTuple):
    """An adapter folder: its settings, its tree, and the score head [D] that it brings, if any."""

    lora: Lora
    adapter: Params
    score: np.ndarray | None


def describe(folder: str | Path, config: ModelConfig, base: str) -> tuple[Lora, bool]:
    """(settings, whether it brings a score head) of what `load` would read; raises the same errors.

    base: the folder of the model that it is laid over. A notice says when the adapter names another one.
    """
    found, _, tensors = _open(Path(folder), config)
    recorded = peft_settings.read(Path(folder)).base
    if peft_settings.other_base(recorded, base):
        notices.once(
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
        adapter = lora.place(config, found, adapter, mesh)
    score = tensors.read(_SCORE)[0].astype(np.float32) if _SCORE in tensors.shapes else None
    return Loaded(found, adapter, score)


def _open(folder: Path, config: ModelConfig) -> tuple[Lora, list[Site], Tensors]:
    files = [folder / name for name in (WEIGHTS, TORCH) if (folder / name).is_file()]
    for name, found in ((CONFIG, (folder / CONFIG).is_file()), (WEIGHTS, files)):
        if not found:
            raise UserError(f"{folder}: no {name}; an adapter folder is what PEFT's save_pretrained writes")
    settings = peft_settings.read(folder)
    tensors = open_safetensors(files[:1]) if files[0].name == WEIGHTS else open_torch(files[:1])
    rank, there = settings.rank, []
    expected = {_SCORE: (1, config.width)} if _SCORE in tensors.shapes else {}
    for site in lora.sites(config):
        modules = [_module(config, site, i) for i in range(config.layers)]
        found = [i for i, module in enumerate(modules) if f"{module}.lora_A.weight" in tensors.shapes]
        _check_layers(folder, modules, found, settings)
        if found:
            there.append(site)
            for module in modules:
                expected[f"{module}.lora_A.weight"] = (rank, math.prod(site.inputs))
                expected[f"{module}.lora_B.weight"] = (sum(map(math.prod, site.outputs)), rank)
    _check(folder, config, expected, tensors, settings)
    targets = tuple(kernel for site in there for kernel in site.kernels)
    return Lora(rank, settings.scale * rank, targets), there, tensors


def _check_layers(folder: Path, modules: list[str], found: list[int], settings: Settings) -> None:
    """UserError where some layers have an adapter and others have none."""
    lacking = [module for i, module in enumerate(modules) if i not in found]
    if found and lacking:
        raise UserError(
            f"{folder}: {len(found)} of {len(modules)} layers have an adapter, and {lacking[0]} has none; only "
            f"adapters on all layers are supported; {merge_advice(folder, settings.base)}"
        )


def save(folder: str | Path, config: ModelConfig, params: Params, *, base: str) -> None:
    """Writes the adapter of an adapted model of host arrays, in float32.

    base: the folder or hub name of the model that it was trained on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _, adapter = lora.split(params)
    settings = lora.settings_of(config, adapter)
    tensors = {}
    there = lora.chosen(config, settings.targets)
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
        "task_type": "SEQ_CLS" if "score" in params else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": _modules(config, there),
        "modules_to_save": ["score"] if "score" in params else None,
        "fan_in_fan_out": all(site.tensor.layout in layouts.IN_FIRST for site in there),
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
    """The layers' names as PEFT matches them: the last part, or more of it where others end in it too."""
    names = [tensor.name.removesuffix(".weight") for tensor in FAMILIES[config.family].layer]
    wanted = [site.tensor.name.removesuffix(".weight") for site in there]
    short = {name: name.rsplit(".", 1)[-1] for name in wanted}
    return sorted(
        x if sum(other.endswith(f".{x}") for other in names) == 1 else name for name, x in short.items()
    )


def _factors(config: ModelConfig, site: Site, layer: int, tensors: Tensors) -> dict[str, np.ndarray]:
    """a and the b of every kernel of one layer."""
    module = _module(config, site, layer)
    A, B = (tensors.read(f"{module}.lora_{x}.weight").astype(np.float32) for x in "AB")
    found = {site.a: A.T.reshape(*site.inputs, -1)}
    bs = (B.T,)
    if len(site.kernels) > 1:
        layout = site.tensor.layout
        bs = layout.split(B.T if layout in layouts.IN_FIRST else B, config.head_dim)
    for kernel, b, outputs in zip(site.kernels, bs, site.outputs, strict=True):
        found[lora.b_of(kernel)] = b.reshape(-1, *outputs)
    return found


def _join_b(config: ModelConfig, site: Site, bs: tuple[np.ndarray, ...]) -> np.ndarray:
    """lora_B of a layer, [out, r]."""
    if len(bs) == 1:
        return bs[0].reshape(len(bs[0]), -1).T
    layout = site.tensor.layout
    joined = layout.join(bs, config.head_dim)
    return joined.T if layout in layouts.IN_FIRST else joined


def _check(
    folder: Path,
    config: ModelConfig,
    expected: dict[str, tuple[int, ...]],
    tensors: Tensors,
    settings: Settings,
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
