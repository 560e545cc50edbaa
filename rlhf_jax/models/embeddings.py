"""More tokens than a checkpoint has embeddings for: the new rows are the mean of the old ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.placement import param_shardings

# The axis of each parameter that runs over tokens.
_TOKEN_AXIS = {"embed": 0, "head": 1, "head_bias": 0}


def grow(config: ModelConfig, params: Params, vocab_size: int, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """The model with `vocab_size` tokens, input and output embeddings of the new ones at the mean of the others.

    So AlpacaFarm does it: a new token then is as likely as an average one, where a random row can be the
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
