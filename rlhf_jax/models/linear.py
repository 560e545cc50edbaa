"""Matrix products and the gated activation, with backward passes written out.

Autodiff computes the gradient of a weight as transpose(dot(dy, x)). XLA's CPU compiler then transposes dy, and fuses
all that made dy into that strided copy: a third of the time of a training step. dot(x, dy) over the rows gives the
same numbers without a transpose; on GPU and TPU the compiled program is the same either way.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# How layers declare their parameters: initial values and the logical name of every axis; and use adapters.

Axes = tuple[str | None, ...]


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: Axes, fan_in: int) -> Array:
    """A normal(0, 1/sqrt(fan_in)) parameter with logical axis names, cast to the compute dtype."""
    # Created in float32 and cast at every use: updates are often smaller than a bfloat16 step of the weight.
    init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
    return module.param(name, init, shape, jnp.float32).astype(module.config.dtype)


def bias(module: nn.Module, name: str, size: int, axis: str) -> Array:
    """A vector parameter that begins at 0, cast to the compute dtype.

    Also the biases of heads are vectors [H K], and not [H, K], because weight decay takes every matrix.
    """
    init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis,))
    return module.param(name, init, (size,), jnp.float32).astype(module.config.dtype)


def adapted(
    module: nn.Module, name: str, x_xI: Float[Array, "*x I"], y_xO: Float[Array, "*x O"]
) -> Float[Array, "*x O"]:
    """y = x @ kernel with what the kernel's low-rank adapter adds: scale * (x a) b (Hu et al. 2021, LoRA).

    Without an adapter among the parameters this is y itself. Kernels that a checkpoint keeps as one tensor (query,
    key and value of some families) share their a.
    """
    # Asked of the parameters: the same config without adapter leaves is the reference model.
    if not module.has_variable("params", f"{name}_lora_b"):
        return y_xO
    own = module.has_variable("params", f"{name}_lora_a")
    a, b = (module.get_variable("params", x) for x in (f"{name if own else 'qkv'}_lora_a", f"{name}_lora_b"))
    dtype = module.config.dtype
    a_IR, b_RO = a.reshape(-1, a.shape[-1]).astype(dtype), b.reshape(b.shape[0], -1).astype(dtype)
    # Two thin products: a times b would be a matrix of the kernel's size, and so would its gradient.
    return y_xO + linear(linear(x_xI, a_IR), b_RO) * module.config.adapter_scale


@jax.custom_vjp
def linear(x_xI: Float[Array, "*rows I"], kernel_IO: Float[Array, "I O"]) -> Float[Array, "*rows O"]:
    """x @ kernel over the last axis of x."""
    x_NI = x_xI.reshape(-1, x_xI.shape[-1])
    return (x_NI @ kernel_IO).reshape(*x_xI.shape[:-1], kernel_IO.shape[-1])


def _linear_forward(x_xI: Array, kernel_IO: Array) -> tuple[Array, tuple[Array, Array]]:
    return linear(x_xI, kernel_IO), (x_xI, kernel_IO)


def _linear_backward(saved: tuple[Array, Array], dy_xO: Array) -> tuple[Array, Array]:
    x_xI, kernel_IO = saved
    x_NI, dy_NO = x_xI.reshape(-1, x_xI.shape[-1]), dy_xO.reshape(-1, dy_xO.shape[-1])
    dx_NI = jax.lax.dot_general(dy_NO, kernel_IO, (((1,), (1,)), ((), ())))
    dkernel_IO = jax.lax.dot_general(x_NI, dy_NO, (((0,), (0,)), ((), ())))
    return dx_NI.reshape(x_xI.shape), dkernel_IO


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def swiglu(gate_BTF: Float[Array, "*rows F"], up_BTF: Float[Array, "*rows F"]) -> Float[Array, "*rows F"]:
    """silu(gate) * up (Shazeer 2020). Saves its two inputs only; autodiff would save five arrays of that size."""
    return jax.nn.silu(gate_BTF) * up_BTF


def _swiglu_forward(gate_BTF: Array, up_BTF: Array) -> tuple[Array, tuple[Array, Array]]:
    return swiglu(gate_BTF, up_BTF), (gate_BTF, up_BTF)


def _swiglu_backward(saved: tuple[Array, Array], dy_BTF: Array) -> tuple[Array, Array]:
    gate_BTF, up_BTF = saved
    sigmoid_BTF = jax.nn.sigmoid(gate_BTF)
    silu_BTF = gate_BTF * sigmoid_BTF
    # d silu(g) / dg = s + silu(g) (1 - s), with s = sigmoid(g).
    return dy_BTF * up_BTF * (sigmoid_BTF + silu_BTF * (1 - sigmoid_BTF)), dy_BTF * silu_BTF


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
