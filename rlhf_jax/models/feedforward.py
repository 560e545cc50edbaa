"""The feed-forward of a block: gated or plain, one or several of which each token takes the best few."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.linear import linear, swiglu
from rlhf_jax.models.parameters import adapted, bias, kernel
from rlhf_jax.models.sharding import constrain

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), or down(act(up(x))) where the config is not gated."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        D, F = c.width, c.ff
        gate_DF = kernel(self, "gate", (D, F), ("embed", "mlp"), D) if c.gated else None
        up_DF = kernel(self, "up", (D, F), ("embed", "mlp"), D)
        down_FD = kernel(self, "down", (F, D), ("mlp", "embed"), F)
        up_BTF = adapted(self, "up", x_BTD, linear(x_BTD, up_DF))
        if c.gated:
            hidden_BTF = gated(c, adapted(self, "gate", x_BTD, linear(x_BTD, gate_DF)), up_BTF)
        else:
            up_BTF = up_BTF + bias(self, "up_bias", F, "mlp") if c.mlp_bias else up_BTF
            hidden_BTF = _ACTIVATIONS[c.activation](up_BTF)
        hidden_BTF = constrain(hidden_BTF, "batch", "length", "mlp")
        y_BTD = adapted(self, "down", hidden_BTF, linear(hidden_BTF, down_FD))
        return y_BTD + bias(self, "down_bias", D, "embed") if c.mlp_bias else y_BTD


class Experts(nn.Module):
    """Mixture of feed-forwards (Mixtral, Jiang et al. 2024): the best `experts_per_token`, weighted by softmax.

    Every expert is computed for every token, so this costs E / experts_per_token times what it must.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        D, F, E = c.width, c.ff, c.experts
        router_DE = kernel(self, "router", (D, E), ("embed", None), D)
        gate_EDF = kernel(self, "gate", (E, D, F), (None, "embed", "mlp"), D)
        up_EDF = kernel(self, "up", (E, D, F), (None, "embed", "mlp"), D)
        down_EFD = kernel(self, "down", (E, F, D), (None, "mlp", "embed"), F)
        weights_BTE = route(linear(x_BTD, router_DE), c.experts_per_token).astype(x_BTD.dtype)
        hidden_BTEF = gated(
            c, jnp.einsum("btd,edf->btef", x_BTD, gate_EDF), jnp.einsum("btd,edf->btef", x_BTD, up_EDF)
        )
        hidden_BTEF = constrain(hidden_BTEF * weights_BTE[..., None], "batch", "length", "experts", "mlp")
        return jnp.einsum("btef,efd->btd", hidden_BTEF, down_EFD)


def gated(config: ModelConfig, gate_xF: Float[Array, "*x F"], up_xF: Float[Array, "*x F"]) -> Array:
    """act(gate) * up."""
    if config.activation == "silu":
        return swiglu(gate_xF, up_xF)
    return _ACTIVATIONS[config.activation](gate_xF) * up_xF


def route(logits_BTE: Float[Array, "B T E"], best: int) -> Float[Array, "B T E"]:
    """float32 weights: softmax over experts, kept for each token's best and made to sum to 1; 0 elsewhere."""
    probs_BTE = jax.nn.softmax(logits_BTE.astype(jnp.float32), axis=-1)
    top_BTN, index_BTN = jax.lax.top_k(probs_BTE, best)
    top_BTN = top_BTN / jnp.sum(top_BTN, -1, keepdims=True)
    hit_BTNE = jax.nn.one_hot(index_BTN, logits_BTE.shape[-1], dtype=jnp.float32)
    return jnp.einsum("btn,btne->bte", top_BTN, hit_BTNE)
