"""What a trainer trains of a model: all of it, or, with `lora.rank`, an adapter beside the frozen rest."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.huggingface import Checkpoint
from rlhf_jax.models.lora import Lora
from rlhf_jax.models.placement import planned as planned_params
from rlhf_jax.parallel import notices
from rlhf_jax.training.state import joined


class Start(NamedTuple):
    """A model before its training: arrays, or shapes with shardings.

    Attributes:
      frozen: what stays; empty without LoRA.
      trained: what is trained: an adapter and, of a scalar model, its score head; without LoRA everything.
    """

    frozen: Params
    trained: Params

    @property
    def whole(self) -> Params:
        """The model as it is now, which is also what a reference model is: a fresh adapter in it adds exactly 0.

        It holds the frozen arrays themselves, not copies of them.
        """
        return joined(self.frozen, self.trained)


def settings(group: ConfigDict) -> Lora:
    """A page's group `lora`, whose ranges have been checked."""
    found = Lora(**group.to_dict())
    targets = tuple(name.strip() for name in found.targets.split(","))
    return found._replace(targets=targets, base_dtype=found.base_dtype if found.rank else "float32")


def model_of(checkpoint: Checkpoint, found: Lora) -> ModelConfig:
    """The shape of the model that is trained; UserError when it has an adapter of other settings already."""
    if not found.rank:
        return checkpoint.config
    _check_rank(found, checkpoint.config)
    if checkpoint.adapter is not None:
        _check_same(found, checkpoint.adapter, checkpoint.config)
    return dataclasses.replace(checkpoint.config, adapter_scale=found.scale)


def planned(config: ModelConfig, found: Lora, mesh: Mesh, *, scalar: bool = False) -> Start:
    """What `start` will make, as shapes with shardings."""
    base = planned_params(config, mesh, scalar=scalar)
    if not found.rank:
        return Start({}, base)
    return _divided(lora.stored(base, found.base_dtype), lora.planned(config, found, mesh))


def start(config: ModelConfig, params: Params, found: Lora, mesh: Mesh, seed: int) -> Start:
    """Divides a model, with or without an adapter already, into what is frozen and what is trained.

    config: of `model_of`. params: loaded with the adapter's base_dtype, or made so here.
    """
    base, adapter = lora.split(params)
    if not found.rank:
        return Start({}, plain(config, params))
    base = lora.stored(base, found.base_dtype)
    return _divided(base, adapter or lora.init_sharded(config, found, mesh, seed))


def plain(config: ModelConfig, params: Params) -> Params:
    """A model on a mesh, its adapter merged if it has one."""
    base, adapter = lora.split(params)
    if not adapter:
        return params
    where = jax.tree.map(lambda x: x.sharding, base)
    return jax.jit(lambda params: lora.merged(config, params), out_shardings=where)(params)


def _divided(base: Params, adapter: Params) -> Start:
    trained = dict(adapter)
    if "score" in base:  # a head of one number per feature: trained whole, as PEFT does
        trained["score"] = base["score"]
    return Start({name: x for name, x in base.items() if name != "score"}, trained)


def _check_rank(found: Lora, config: ModelConfig) -> None:
    """A rank beyond a kernel's own adds nothing but cost: refused where that holds for all kernels, else said."""
    sides = {
        "".join(site.kernels): min(math.prod(site.inputs), sum(map(math.prod, site.outputs)))
        for site in lora.chosen(config, found.targets)
    }
    low, high = min(sides.values()), max(sides.values())
    if found.rank > high:
        raise UserError(
            f"lora.rank: {found.rank}; no kernel of this model has a rank above {high}; use a small number such as "
            f"{min(16, low)}, or 0 to train all parameters"
        )
    if found.rank > low:
        names = ", ".join(name for name, side in sides.items() if side < found.rank)
        notices.once(
            f"lora.rank: {found.rank} is more than the rank of {names} itself ({low}); less does the same"
        )


def _check_same(wanted: Lora, there: Lora, config: ModelConfig) -> None:
    targets = tuple(kernel for site in lora.chosen(config, wanted.targets) for kernel in site.kernels)
    for field, asked, found in (
        ("rank", wanted.rank, there.rank),
        ("alpha", wanted.alpha, there.alpha),
        ("targets", ",".join(targets), ",".join(there.targets)),
    ):
        if asked != found:
            raise UserError(
                f"lora.{field}: {asked}, but model.adapter has {found}; use its values to train it further, or "
                "lora.rank=0 to train the merged model"
            )
