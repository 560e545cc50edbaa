"""Parameters onto the mesh: fresh ones are born sharded, loaded ones are cut, rollout copies are re-cut."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.lora import merged
from rlhf_jax.parallel.rules import ROLLOUT_RULES, TRAIN_RULES, Rules, shardings

Shardings = dict[str, NamedSharding]


def param_shardings(
    config: ModelConfig, mesh: Mesh, *, scalar: bool = False, rules: Rules = TRAIN_RULES
) -> Shardings:
    """Where every parameter of a language model (or scalar model) lives; UserError when the mesh does not fit."""
    boxed = decoder.shapes(config, scalar=scalar)
    return shardings(nn.get_partition_spec(boxed), mesh, rules, shapes=nn.unbox(boxed))


def planned(
    config: ModelConfig,
    mesh: Mesh,
    *,
    scalar: bool = False,
    rules: Rules = TRAIN_RULES,
    dtype: str = "float32",
) -> decoder.Params:
    """Parameters as shapes with shardings: enough to compile with, before any weight is read."""
    shapes = nn.unbox(decoder.shapes(config, scalar=scalar))
    where = param_shardings(config, mesh, scalar=scalar, rules=rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, where)


def init_sharded(config: ModelConfig, mesh: Mesh, seed: int, *, scalar: bool = False) -> decoder.Params:
    """Fresh parameters, the same numbers on any mesh; they never exist unsharded."""
    init = jax.jit(
        lambda key: nn.unbox(decoder.init(config, key, scalar=scalar)),
        out_shardings=param_shardings(config, mesh, scalar=scalar),
    )
    return init(jax.random.key(seed))


def place(config: ModelConfig, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """Host parameters (the same on every process) onto the mesh; each device receives only its part."""
    where = param_shardings(config, mesh, scalar="score" in params)
    return jax.tree.map(_put, {name: params[name] for name in where}, where)


def rollout_copier(config: ModelConfig, mesh: Mesh, dtype: str) -> Callable[[decoder.Params], decoder.Params]:
    """A compiled `params -> params` that casts and re-cuts a policy for decoding.

    Decoding reads every weight per token, so the copy is sharded over "tensor" only: gathering the rest once
    per rollout replaces an all-gather per token. An adapter is merged for the same reason.
    """
    return jax.jit(
        lambda params: jax.tree.map(lambda x: x.astype(dtype), merged(config, params)),
        out_shardings=param_shardings(config, mesh, rules=ROLLOUT_RULES),
    )


def _put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
