"""How layers declare their parameters: initial values and the logical name of every axis; and use adapters."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.models.linear import linear

Axes = tuple[str | None, ...]


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: Axes, fan_in: int) -> Array:
    """A normal(0, 1/sqrt(fan_in)) parameter with logical axis names, cast to the compute dtype."""
    init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
    return module.param(name, init, shape, jnp.float32).astype(module.config.dtype)


def bias(module: nn.Module, name: str, size: int, axis: str) -> Array:
    """A vector of zeros, cast to the compute dtype. Biases of heads are flat: weight decay is for matrices."""
    init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis,))
    return module.param(name, init, (size,), jnp.float32).astype(module.config.dtype)


def adapted(
    module: nn.Module, name: str, x_xI: Float[Array, "*x I"], y_xO: Float[Array, "*x O"]
) -> Float[Array, "*x O"]:
    """y = x @ kernel with what the kernel's low-rank adapter adds: scale * (x a) b (Hu et al. 2021, LoRA).

    Whether there is an adapter is a question of what the parameters hold; without one this is y itself. Kernels
    that a checkpoint keeps as one tensor (query, key and value of some families) share their a.
    """
    if not module.has_variable("params", f"{name}_lora_b"):
        return y_xO
    own = module.has_variable("params", f"{name}_lora_a")
    a, b = (module.get_variable("params", x) for x in (f"{name if own else 'qkv'}_lora_a", f"{name}_lora_b"))
    dtype = module.config.dtype
    a_IR, b_RO = a.reshape(-1, a.shape[-1]).astype(dtype), b.reshape(b.shape[0], -1).astype(dtype)
    return y_xO + linear(linear(x_xI, a_IR), b_RO) * module.config.adapter_scale
