"""Parameters onto the mesh: fresh ones are made sharded, loaded ones are split, rollout copies are resharded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import merged
from rlhf_jax.parallel.mesh import ROLLOUT_RULES, TRAIN_RULES, Rules, shardings

Shardings = dict[str, NamedSharding]


def param_shardings(
    config: ModelConfig,
    mesh: Mesh,
    *,
    scalar: bool = False,
    rules: Rules = TRAIN_RULES,
    section: str = "mesh",
) -> Shardings:
    """The sharding of every parameter of a language or scalar model.

    UserError when the mesh does not fit, whose sizes are those of a section of the page.
    """
    boxed = decoder.shapes(config, scalar=scalar)
    return shardings(nn.get_partition_spec(boxed), mesh, rules, shapes=nn.unbox(boxed), section=section)


def planned_params(
    config: ModelConfig,
    mesh: Mesh,
    *,
    scalar: bool = False,
    rules: Rules = TRAIN_RULES,
    dtype: str = "float32",
    section: str = "mesh",
) -> decoder.Params:
    """Parameters as shapes with shardings: enough to compile with, before any weight is read. As `param_shardings`."""
    shapes = nn.unbox(decoder.shapes(config, scalar=scalar))
    where = param_shardings(config, mesh, scalar=scalar, rules=rules, section=section)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, where)


def init_sharded(config: ModelConfig, mesh: Mesh, seed: int, *, scalar: bool = False) -> decoder.Params:
    """Initialises parameters directly in their shardings; the numbers are the same on any mesh."""
    # Under jit with shardings every device draws its own part, and a 7B model never lies on one of them.
    init = jax.jit(
        lambda key: nn.unbox(decoder.init(config, key, scalar=scalar)),
        out_shardings=param_shardings(config, mesh, scalar=scalar),
    )
    return init(jax.random.key(seed))


def place(config: ModelConfig, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """Places host parameters (the same on every process) on the mesh; each device receives only its part."""
    where = param_shardings(config, mesh, scalar="score" in params)
    return jax.tree.map(_put, {name: params[name] for name in where}, where)


def rollout_copier(
    config: ModelConfig, mesh: Mesh, dtype: str, trained_on: Mesh | None = None
) -> Callable[[decoder.Params], decoder.Params]:
    """Returns a compiled `params -> params` that casts and reshards a policy for decoding.

    Decoding reads every weight for each token, so the copy is sharded over "tensor" only: weights are gathered once
    per rollout and not once per token. An adapter is merged for the same reason. Its layers are apart, a tuple of L
    trees: decoding reads them one by one, and slices of a stack would be a second copy of all weights.
    mesh: that it samples on. trained_on: that of the policy, of the same devices in the same order; None if the same.
    """
    moves = trained_on not in (None, mesh)
    gathered = param_shardings(config, trained_on or mesh, rules=ROLLOUT_RULES)

    def copy(params: decoder.Params) -> decoder.Params:
        params = jax.tree.map(lambda x: x.astype(dtype), merged(config, params))
        apart = layers_apart(config, params, lambda x, i: x[i])
        if not moves:
            return apart
        # Whole over fsdp first, of which each device then keeps its part: XLA knows no other way from mesh to mesh, and
        # by itself takes it before the cast.
        return jax.lax.with_sharding_constraint(apart, layers_apart(config, gathered, _of_a_layer))

    return jax.jit(
        copy,
        out_shardings=layers_apart(config, param_shardings(config, mesh, rules=ROLLOUT_RULES), _of_a_layer),
    )


def planned_copy(config: ModelConfig, mesh: Mesh, dtype: str, section: str = "mesh") -> decoder.Params:
    """What `rollout_copier` will return, as shapes with shardings; errors name that section of the page."""
    stack = planned_params(config, mesh, rules=ROLLOUT_RULES, dtype=dtype, section=section)

    def layer(x: jax.ShapeDtypeStruct, i: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=_of_a_layer(x.sharding, i))

    return layers_apart(config, stack, layer)


def layers_apart(config: ModelConfig, params: Any, part: Callable[[Any, int], Any]) -> Any:
    """A tree of parameters whose layers are a tuple of L trees: part(leaf, i) is layer i's of a stacked leaf."""
    layers = tuple(jax.tree.map(lambda x, i=i: part(x, i), params["layers"]) for i in range(config.layers))
    return {**params, "layers": layers}


def _of_a_layer(stack: NamedSharding, _: int) -> NamedSharding:
    return NamedSharding(stack.mesh, PartitionSpec(*stack.spec[1:]))


def both_ways(
    config: ModelConfig, params: decoder.Params
) -> tuple[decoder.Params, tuple[decoder.Params, ...]]:
    """(parameters with stacked layers, every layer's), of parameters of which a program is given one or the other."""
    layers = params["layers"]
    if isinstance(layers, tuple):
        return {**params, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}, layers
    return params, layers_apart(config, params, lambda x, i: x[i])["layers"]


def _put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


# More tokens than a checkpoint has embeddings for: the new rows are the mean of the old ones.

# The axis of each parameter that runs over tokens.
_TOKEN_AXIS = {"embed": 0, "head": 1, "head_bias": 0}


def grow(config: ModelConfig, params: Params, vocab_size: int, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """The model with `vocab_size` tokens; embeddings of the new ones, input and output, are the mean of the old ones.

    AlpacaFarm does the same: a new token then is about as likely as an average one, where a random row can be the
    likeliest of all. Parameters stay on the mesh, sharded as a model of that size is; `vocab_size` must be larger
    than the config's. Errors: UserError when the mesh cannot divide the new table.
    """
    assert vocab_size > config.vocab_size
    new = vocab_size - config.vocab_size
    config = dataclasses.replace(config, vocab_size=vocab_size)
    where = param_shardings(config, mesh, scalar="score" in params)
    grown = {}
    for name, leaf in params.items():
        if name not in _TOKEN_AXIS:
            grown[name] = leaf
            continue
        axis = _TOKEN_AXIS[name]

        def longer(x: jax.Array, axis: int = axis) -> jax.Array:
            mean = jnp.mean(x, axis, keepdims=True)
            return jnp.concatenate([x, jnp.repeat(mean, new, axis)], axis)

        grown[name] = jax.jit(longer, out_shardings=where[name])(leaf)
    return config, grown
