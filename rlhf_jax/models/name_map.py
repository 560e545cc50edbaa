"""Which tensor of a checkpoint holds which parameter, and whether a folder's tensors are those it should have."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder, layouts
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families import FAMILIES, Family
from rlhf_jax.models.family_tensors import Tensor
from rlhf_jax.models.layouts import Layout
from rlhf_jax.parallel import notices

Shapes = dict[str, tuple[int, ...]]
_SCALES = ("scale", "scale_inv", "scales", "qweight", "qzeros", "g_idx", "absmax", "quant_map", "zero_point")
_NAMED = 4  # tensors named in an error, of each kind


class Place(NamedTuple):
    """One tensor of a checkpoint and where it goes.

    Attributes:
      name: in the file, without the family's prefix where it has one.
      leaves: paths of the parameters it holds.
      index: which part of them: (layer,), (layer, expert), or () for all.
      layout: how.
      shape: of the tensor.
    """

    name: str
    leaves: tuple[tuple[str, ...], ...]
    index: tuple[int, ...]
    layout: Layout
    shape: tuple[int, ...]


def parameter_shapes(config: ModelConfig, *, scalar: bool) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of every parameter by its path."""
    tree = nn.unbox(decoder.shapes(config, scalar=scalar))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def places(config: ModelConfig, *, scalar: bool) -> list[Place]:
    """Every tensor of a checkpoint of this config, layer by layer."""
    family = FAMILIES[config.family]
    shapes = parameter_shapes(config, scalar=scalar)
    found = []
    for tensor in family.trunk:
        found += _places(tensor, (), (), shapes, config)
    layers = [_places(tensor, ("layers",), (config.layers,), shapes, config) for tensor in family.layer]
    for i in range(config.layers):
        found += [place for tensor in layers for place in tensor if place.index[0] == i]
    for name, leaf, layout in (
        (family.head, "head", layouts.MATRIX),
        ("lm_head.bias", "head_bias", layouts.SAME),
        ("score.weight", "score", layouts.ROW),
    ):
        found += _places(Tensor(name, ((leaf,),), layout), (), (), shapes, config)
    missed = set(shapes) - {leaf for place in found for leaf in place.leaves}
    assert not missed, f"no tensor of {config.family} holds {missed}"
    return found


def file_name(family: Family, name: str) -> str:
    """A tensor's name as it is written: heads stand beside the trunk, all else below its prefix."""
    return name if name in (family.head, "lm_head.bias", "score.weight") else family.prefix + name


def stored_names(config: ModelConfig, names: Shapes) -> dict[str, str]:
    """Name in the map -> name in the file.

    Base models are saved without the prefix, some heads under two names, and of a tied model's table and head
    there may be only one.
    """
    family = FAMILIES[config.family]
    parts = family.prefix.split(".", 1)
    found = {}
    for name in names:
        short = name.removeprefix(family.prefix)
        if short == name and parts[1]:  # "model.decoder.": older OPT files say "decoder."
            short = name.removeprefix(parts[1])
        found[family.head if name == "lm_head.weight" else short] = name
    table = table_of(family)
    if config.tie_embeddings and table not in found and family.head in found:
        found[table] = found.pop(family.head)
    return found


def table_of(family: Family) -> str:
    """Name in the map of the embedding table."""
    return next(tensor.name for tensor in family.trunk if tensor.leaves == (("embed",),))


def check(folder: Path, config: ModelConfig, expected: list[Place], shapes: Shapes) -> None:
    """UserError that names the tensors that are missing, too many, or of another shape."""
    family = FAMILIES[config.family]
    stored = stored_names(config, shapes)
    twice = [name for name in shapes if name not in stored.values()]
    wanted = {place.name: place for place in expected}
    missing = [file_name(family, name) for name in wanted if name not in stored]
    # A tied model may hold its table twice; one of them is read.
    spare = (family.head,) if config.tie_embeddings else ()
    over = [name for short, name in stored.items() if short not in wanted and short not in spare]
    computed = [name for name in over if f".{name}".endswith(family.harmless)]
    extra = [name for name in over if name not in computed]
    other = [
        f"{stored[name]} is {list(shapes[stored[name]])} and should be {list(place.shape)}"
        for name, place in wanted.items()
        if name in stored and shapes[stored[name]] != place.shape
    ]
    said = [
        f"{what}: {', '.join(sorted(names)[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" * (len(names) > _NAMED))
        for what, names in (
            ("missing tensors", missing),
            ("unknown tensors", extra),
            ("tensors under two names", twice),
            ("other shapes", other),
        )
        if names
    ]
    if said:
        raise UserError(
            f"{folder}: the weights are not those of its config.json ({config.family}); "
            f"{'; '.join(said)}; {_advice(config, missing, extra)}"
        )
    if computed:
        more = f" and {len(computed) - 1} more" if computed[1:] else ""
        notices.once(f"{folder}: not read, because it is computed: {computed[0]}{more}")


def _advice(config: ModelConfig, missing: list[str], extra: list[str]) -> str:
    """What helps with tensors that are missing, or too many."""
    family = FAMILIES[config.family]
    table = file_name(family, table_of(family))
    for name in extra:
        if table in missing and name.endswith(f".{table}"):
            wrapper = name.removesuffix(table)
            return f"every name begins with {wrapper!r}: save the model without what is wrapped around it"
    if any(".base_layer." in name or ".lora_" in name for name in extra):
        return "an adapter is saved within it: save what PEFT's merge_and_unload() gives"
    if any(name.endswith(_SCALES) for name in extra):
        return "these are quantized weights, which cannot be trained: take the float version"
    if missing == [family.head] and not extra:
        return (
            "give the language model and not its trunk alone, or, where its head is its embedding table, "
            "set tie_word_embeddings to true in config.json"
        )
    return "copy config.json and weights of one model"


def _places(
    tensor: Tensor,
    group: tuple[str, ...],
    stacked: tuple[int, ...],
    shapes: dict[tuple[str, ...], tuple[int, ...]],
    config: ModelConfig,
) -> list[Place]:
    """One place per layer and expert; none when the config has no such parameters."""
    leaves = tuple(group + leaf for leaf in tensor.leaves)
    if leaves[0] not in shapes:
        return []
    if "{e}" in tensor.name:
        stacked = (*stacked, config.experts)
    empty = tuple(np.empty(shapes[leaf][len(stacked) :], bool) for leaf in leaves)
    shape = tensor.layout.join(empty, config.head_dim).shape
    found = []
    for index in np.ndindex(stacked):
        name = tensor.name.replace("{e}", str(index[-1])) if index else tensor.name
        if group:
            name = f"{FAMILIES[config.family].blocks}.{index[0]}.{name}"
        found.append(Place(name, leaves, index, tensor.layout, shape))
    return found
