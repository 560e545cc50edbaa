"""The layers of the decoder: norm, rotary positions, attention, feed-forward, and the block they form."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.attention import attend
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.sharding import constrain

KeyValue = tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int) -> Array:
    """A normal(0, 1/sqrt(fan_in)) parameter with logical axis names, cast to the compute dtype."""
    init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
    return module.param(name, init, shape, jnp.float32).astype(module.config.dtype)


def rope(x_BTHK: Float[Array, "B T H K"], positions_BT: Int[Array, "B T"], theta: float) -> Float[Array, "B T H K"]:
    """Rotary position embedding, halves convention (Su et al. 2021; the layout of Hugging Face Llama)."""
    half = x_BTHK.shape[-1] // 2
    frequency_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = positions_BT[..., None, None].astype(jnp.float32) * frequency_K
    cos, sin = jnp.cos(angle_BT1K), jnp.sin(angle_BT1K)
    low, high = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x_BTHK.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), statistics in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",))
        scale_D = self.param("scale", init, (x_BTD.shape[-1],), jnp.float32)
        x32_BTD = x_BTD.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32_BTD * x32_BTD, -1, keepdims=True) + self.config.norm_eps)
        return (x32_BTD * inverse * scale_D).astype(x_BTD.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention, over the sequence itself or over a key-value cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"] | None,
        cache: KeyValue | None,
        column: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], KeyValue]:
        c = self.config
        D, H, G, K = c.width, c.heads, c.kv_heads, c.head_dim
        q_DHK = kernel(self, "q", (D, H, K), ("embed", "heads", "head_dim"), D)
        k_DGK = kernel(self, "k", (D, G, K), ("embed", "kv_heads", "head_dim"), D)
        v_DGK = kernel(self, "v", (D, G, K), ("embed", "kv_heads", "head_dim"), D)
        o_HKD = kernel(self, "o", (H, K, D), ("heads", "head_dim", "embed"), H * K)
        q_BTHK = rope(jnp.einsum("btd,dhk->bthk", x_BTD, q_DHK), positions_BT, c.rope_theta)
        k_BTGK = rope(jnp.einsum("btd,dgk->btgk", x_BTD, k_DGK), positions_BT, c.rope_theta)
        v_BTGK = jnp.einsum("btd,dgk->btgk", x_BTD, v_DGK)
        q_BTHK = constrain(q_BTHK, "batch", "length", "heads", "head_dim")
        if cache is None:
            k_BSGK, v_BSGK = k_BTGK, v_BTGK
        else:  # only the new column is written; the cache is carried, never copied
            k_BSGK = jax.lax.dynamic_update_slice_in_dim(cache[0], k_BTGK, column, axis=1)
            v_BSGK = jax.lax.dynamic_update_slice_in_dim(cache[1], v_BTGK, column, axis=1)
        y_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, mask_BTS)
        return jnp.einsum("bthk,hkd->btd", y_BTHK, o_HKD), (k_BSGK, v_BSGK)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        D, F = self.config.width, self.config.ff
        gate_DF = kernel(self, "gate", (D, F), ("embed", "mlp"), D)
        up_DF = kernel(self, "up", (D, F), ("embed", "mlp"), D)
        down_FD = kernel(self, "down", (F, D), ("mlp", "embed"), F)
        hidden_BTF = nn.silu(x_BTD @ gate_DF) * (x_BTD @ up_DF)
        return constrain(hidden_BTF, "batch", "length", "mlp") @ down_FD


class Block(nn.Module):
    """One pre-norm decoder layer. Called `(x, positions, mask, cache, column) -> (x, (keys, values))`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"] | None,
        cache: KeyValue | None = None,
        column: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValue]:
        normed_BTD = RMSNorm(self.config, name="attention_norm")(x_BTD)
        mixed_BTD, keys_values = Attention(self.config, name="attention")(
            normed_BTD, positions_BT, mask_BTS, cache, column
        )
        x_BTD = x_BTD + mixed_BTD
        x_BTD = x_BTD + FeedForward(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x_BTD))
        return constrain(x_BTD, "batch", "length", "embed_act"), keys_values
