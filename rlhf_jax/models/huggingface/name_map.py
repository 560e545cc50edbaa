"""Maps tensors of a checkpoint to parameters, and checks that a folder has exactly the tensors that it should."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import family_tensors
from rlhf_jax.models.huggingface.families import FAMILIES, Family
from rlhf_jax.models.huggingface.family_tensors import Layout, Tensor
from rlhf_jax.models.huggingface.tensor_files import Tensors
from rlhf_jax.parallel import startup

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
    # Layer by layer and not tensor by tensor, so that a shard of an export holds whole layers.
    layers = [_places(tensor, ("layers",), (config.layers,), shapes, config) for tensor in family.layer]
    for i in range(config.layers):
        found += [place for tensor in layers for place in tensor if place.index[0] == i]
    for name, leaf, layout in (
        (family.head, "head", family_tensors.MATRIX),
        ("lm_head.bias", "head_bias", family_tensors.SAME),
        ("score.weight", "score", family_tensors.ROW),
    ):
        found += _places(Tensor(name, ((leaf,),), layout), (), (), shapes, config)
    # A parameter without a tensor is a mistake in this family's table and not the user's.
    missed = set(shapes) - {leaf for place in found for leaf in place.leaves}
    assert not missed, f"no tensor of {config.family} holds {missed}"
    return found


def file_name(family: Family, name: str) -> str:
    """A tensor's full name in a file: heads have no prefix, everything else has the trunk's."""
    return name if name in (family.head, "lm_head.bias", "score.weight") else family.prefix + name


def stored_names(config: ModelConfig, names: Shapes) -> dict[str, str]:
    """Finds the file's tensors: name in the map -> name in the file.

    The two differ where a base model is saved without the prefix, where a head has two possible names, and where a
    tied model has its embedding table under the head's name only.
    """
    family = FAMILIES[config.family]
    parts = family.prefix.split(".", 1)
    found = {}
    for name in names:
        short = name.removeprefix(family.prefix)
        # "model.decoder.": older files of OPT say "decoder.".
        if short == name and parts[1]:
            short = name.removeprefix(parts[1])
        found[family.head if name == "lm_head.weight" else short] = name
    # safetensors keeps a shared tensor once, under either name.
    table = table_of(family)
    if config.tie_embeddings and table not in found and family.head in found:
        found[table] = found.pop(family.head)
    return found


def table_of(family: Family) -> str:
    """Name in the map of the embedding table."""
    return next(tensor.name for tensor in family.trunk if tensor.leaves == (("embed",),))


def check_tensors(folder: Path, config: ModelConfig, expected: list[Place], shapes: Shapes) -> None:
    """Raises UserError if tensors are missing, unknown, there twice or of another shape; names them."""
    family = FAMILIES[config.family]
    stored = stored_names(config, shapes)
    twice = [name for name in shapes if name not in stored.values()]
    wanted = {place.name: place for place in expected}
    missing = [file_name(family, name) for name in wanted if name not in stored]
    # A tied model may hold its table twice; one of them is read.
    spare = (family.head,) if config.tie_embeddings else ()
    over = [name for short, name in stored.items() if short not in wanted and short not in spare]
    # A dot in front, so that an ending meets a whole part of the name also at its start.
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
        startup.notice_once(f"{folder}: not read, because it is computed: {computed[0]}{more}")


def _advice(config: ModelConfig, missing: list[str], extra: list[str]) -> str:
    """Advice for tensors that are missing or unknown, by the usual reasons."""
    family = FAMILIES[config.family]
    table = file_name(family, table_of(family))
    for name in extra:
        # A model that was saved inside torch's DataParallel or a trainer's wrapper.
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
    # The tensor's shape comes from joining empty arrays, so that no layout has to state it.
    empty = tuple(np.empty(shapes[leaf][len(stacked) :], bool) for leaf in leaves)
    shape = tensor.layout.join(empty, config.head_dim).shape
    found = []
    for index in np.ndindex(stacked):
        name = tensor.name.replace("{e}", str(index[-1])) if index else tensor.name
        if group:
            name = f"{FAMILIES[config.family].blocks}.{index[0]}.{name}"
        found.append(Place(name, leaves, index, tensor.layout, shape))
    return found


# Which head a folder has: a language model's (its own, or the embedding table), or a reward model's.

SCORE = "score.weight"
# What each means is in `data.tokens.scored_text`, which models may not import.
SCORE_AT = ("eos", "last", "template")
SCORE_AS = ("logit", "sigmoid")
_OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering")
_CLASSIFIER = "ForSequenceClassification"


def check_heads(path: Path, raw: dict[str, Any], shapes: Shapes, family: Family) -> None:
    """Raises UserError if `architectures` names another head than the tensors have; a notice for another family."""
    found = raw.get("architectures") or []
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list):
        raise UserError(f"{path}: architectures is {found!r}; a list with the name of a class is needed")
    labels = shapes[SCORE][0] if SCORE in shapes else 0
    for name in map(str, names):
        if name.endswith(_OTHER_TASKS):
            fix = f"only {family.classes[0]} and {family.classes[1]} of one label are"
            raise UserError(f"{path}: architectures is {name!r}, which is not supported; {fix}")
        if name.endswith(_CLASSIFIER) and not labels:
            raise _disagree(path, name, f"the weights hold no {SCORE}")
        if name == family.classes[0] and labels:
            raise _disagree(path, name, f"the weights hold {SCORE}, a reward model's head")
        # "LlamaForCausalLM" -> "Llama", "GPT2LMHeadModel" -> "GPT2".
        trunk = family.classes[0].split("For")[0].split("LMHead")[0]
        if not name.lower().startswith(trunk.lower()):
            startup.notice_once(
                f"{path}: architectures names {name}; computed as its model_type says, as {trunk}"
            )
    if labels > 1:
        raise UserError(
            f"{path}: {SCORE} has {labels} rows, so this is a classifier of {labels} labels; "
            "give a reward model, which has one"
        )


def has_own(config: ModelConfig, tensors: Tensors) -> bool:
    """Whether a model with tie_word_embeddings has in truth a head that differs from its embedding table."""
    family = FAMILIES[config.family]
    stored = stored_names(config, tensors.shapes)
    names = [stored.get(name) for name in (table_of(family), family.head)]
    if None in names:
        return False
    table, head = names
    if tensors.shapes[table] != tensors.shapes[head]:
        return True
    return not np.array_equal(*(tensors.read(name).astype(np.float32) for name in (table, head)))


def reading(path: Path, raw: dict[str, Any]) -> tuple[float, str]:
    """(mean to subtract from a reward model's scores, token at which it is read, "" where config.json does not say)."""
    mean, score_at = raw.get("reward_mean"), raw.get("score_at")
    if score_at not in (None, *SCORE_AT):
        raise UserError(f"{path}: score_at is {score_at!r}; use one of {', '.join(SCORE_AT)}, or take it out")
    if mean is None:
        startup.notice_once(f"{path}: no reward_mean, so scores are taken as they are")
        return 0.0, score_at or ""
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not math.isfinite(mean):
        raise UserError(f"{path}: reward_mean is {mean!r}; a number is needed")
    return float(mean), score_at or ""


def reward_of(path: Path, raw: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """(what a reward model's score is, "logit" or "sigmoid"; thresholds of ordinal ratings, or none) by config.json."""
    score_as, thresholds = raw.get("score_as", SCORE_AS[0]), raw.get("thresholds", [])
    if score_as not in SCORE_AS:
        raise UserError(f"{path}: score_as is {score_as!r}; use one of {', '.join(SCORE_AS)}, or take it out")
    numbers = isinstance(thresholds, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in thresholds
    )
    if not numbers or thresholds != sorted(thresholds):
        raise UserError(f"{path}: thresholds are {thresholds!r}; a list of numbers that rise is needed")
    return score_as, tuple(map(float, thresholds))


def _disagree(path: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{path}: architectures is {name!r}, but {what}; copy config.json and weights of one model"
    )
