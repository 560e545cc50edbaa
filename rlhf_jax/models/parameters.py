"""How layers declare their parameters: initial values and the logical name of every axis."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

Axes = tuple[str | None, ...]


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: Axes, fan_in: int) -> Array:
    """A normal(0, 1/sqrt(fan_in)) parameter with logical axis names, cast to the compute dtype."""
    init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
    return module.param(name, init, shape, jnp.float32).astype(module.config.dtype)


def bias(module: nn.Module, name: str, size: int, axis: str) -> Array:
    """A vector of zeros, cast to the compute dtype. Biases of heads are flat: weight decay is for matrices."""
    init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis,))
    return module.param(name, init, (size,), jnp.float32).astype(module.config.dtype)
