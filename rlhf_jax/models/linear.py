"""Matrix products and the gated activation, with backward passes written out.

Left to itself, autodiff asks for the gradient of a weight as transpose(dot(dy, x)). XLA's CPU compiler then
transposes dy, and fuses all that made dy into that strided copy: a third of the time of a training step. Asking
for dot(x, dy) over the rows gives the same numbers without a transpose; on GPU and TPU it is the same program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def linear(x_xI: Float[Array, "*rows I"], kernel_IO: Float[Array, "I O"]) -> Float[Array, "*rows O"]:
    """x @ kernel over the last axis of x."""
    return (_rows(x_xI) @ kernel_IO).reshape(*x_xI.shape[:-1], kernel_IO.shape[-1])


def _linear_forward(x_xI: Array, kernel_IO: Array) -> tuple[Array, tuple[Array, Array]]:
    return linear(x_xI, kernel_IO), (x_xI, kernel_IO)


def _linear_backward(saved: tuple[Array, Array], dy_xO: Array) -> tuple[Array, Array]:
    x_xI, kernel_IO = saved
    dy_NO = _rows(dy_xO)
    dx_NI = jax.lax.dot_general(dy_NO, kernel_IO, (((1,), (1,)), ((), ())))
    dkernel_IO = jax.lax.dot_general(_rows(x_xI), dy_NO, (((0,), (0,)), ((), ())))
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
    return dy_BTF * up_BTF * (sigmoid_BTF + silu_BTF * (1 - sigmoid_BTF)), dy_BTF * silu_BTF


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def _rows(x: Array) -> Array:
    return jnp.reshape(x, (-1, x.shape[-1]))
