"""The layers of the decoder: norm, rotary positions, attention, feed-forward, and the block they form."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.attention import attend, attend_cached
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.linear import linear, swiglu
from rlhf_jax.models.sharding import constrain

# Keys and values of one layer: [B, T, G, K] as a sequence gives them, [B, G, S, K] as a cache keeps them.
KeyValue = tuple[Float[Array, "B _ _ K"], Float[Array, "B _ _ K"]]


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int) -> Array:
    """A normal(0, 1/sqrt(fan_in)) parameter with logical axis names, cast to the compute dtype."""
    init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
    return module.param(name, init, shape, jnp.float32).astype(module.config.dtype)


def rope(
    x_BTHK: Float[Array, "B T H K"], positions_BT: Int[Array, "B T"], theta: float
) -> Float[Array, "B T H K"]:
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
    """Grouped-query self-attention, over the sequence itself or, for one new token, over a key-value cache."""

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
        B, T = x_BTD.shape[:2]
        q_BTHK = linear(x_BTD, q_DHK.reshape(D, H * K)).reshape(B, T, H, K)
        k_BTGK = linear(x_BTD, k_DGK.reshape(D, G * K)).reshape(B, T, G, K)
        v_BTGK = linear(x_BTD, v_DGK.reshape(D, G * K)).reshape(B, T, G, K)
        q_BTHK = constrain(rope(q_BTHK, positions_BT, c.rope_theta), "batch", "length", "heads", "head_dim")
        k_BTGK = rope(k_BTGK, positions_BT, c.rope_theta)
        if cache is None:
            keys_values = (k_BTGK, v_BTGK)
            y_BTHK = attend(q_BTHK, *keys_values, mask_BTS)
        else:  # only the new column is written; the cache is carried, never copied
            keys_values = tuple(
                jax.lax.dynamic_update_slice_in_dim(old_BGSK, new_B1GK.swapaxes(1, 2), column, axis=2)
                for old_BGSK, new_B1GK in zip(cache, (k_BTGK, v_BTGK), strict=True)
            )
            y_BTHK = attend_cached(q_BTHK, *keys_values, mask_BTS)
        return linear(y_BTHK.reshape(B, T, H * K), o_HKD.reshape(H * K, D)), keys_values


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        D, F = self.config.width, self.config.ff
        gate_DF = kernel(self, "gate", (D, F), ("embed", "mlp"), D)
        up_DF = kernel(self, "up", (D, F), ("embed", "mlp"), D)
        down_FD = kernel(self, "down", (F, D), ("mlp", "embed"), F)
        hidden_BTF = swiglu(linear(x_BTD, gate_DF), linear(x_BTD, up_DF))
        return linear(constrain(hidden_BTF, "batch", "length", "mlp"), down_FD)


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
