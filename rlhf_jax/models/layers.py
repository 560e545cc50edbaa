"""The layers of the decoder: norm, attention, and the block they form with a feed-forward."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.attention import attend, attend_cached
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.feedforward import Experts, FeedForward
from rlhf_jax.models.linear import linear
from rlhf_jax.models.parameters import adapted, bias, kernel
from rlhf_jax.models.rotary import frequencies, rope
from rlhf_jax.models.sharding import constrain

# Keys and values of one layer: [B, T, G, K] as a sequence gives them, [B, G, S, K] as a cache keeps them.
KeyValue = tuple[Float[Array, "B _ _ K"], Float[Array, "B _ _ K"]]


class Masks(NamedTuple):
    """Where the queries of a layer may look; None is causal.

    Attributes:
      full_BTS: for layers that see everything, and for all layers where they are all alike.
      local_BTS: for windowed layers, where only some are windowed.
      segments_BT: where causal, the documents of packed rows; each sees itself only.
    """

    full_BTS: Bool[Array, "B T S"] | None
    local_BTS: Bool[Array, "B T S"] | None = None
    segments_BT: Int[Array, "B T"] | None = None


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016), statistics in float32."""

    config: ModelConfig
    kind: str = ""  # "" is the config's
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x_xD: Float[Array, "*x D"]) -> Float[Array, "*x D"]:
        c = self.config
        start = nn.initializers.zeros_init() if c.norm_offset else nn.initializers.ones_init()
        init = nn.with_logical_partitioning(start, (self.axis,))
        scale_D = self.param("scale", init, (x_xD.shape[-1],), jnp.float32)
        if c.norm_offset:
            scale_D = 1.0 + scale_D.astype(
                jnp.float32
            )  # a bfloat16 copy of a scale near 0 has digits to lose
        x32_xD = x_xD.astype(jnp.float32)
        if (self.kind or c.norm) == "rms":
            inverse = jax.lax.rsqrt(jnp.mean(x32_xD * x32_xD, -1, keepdims=True) + c.norm_eps)
            return (x32_xD * inverse * scale_D).astype(x_xD.dtype)
        init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis,))
        bias_D = self.param("bias", init, (x_xD.shape[-1],), jnp.float32)
        x32_xD = x32_xD - jnp.mean(x32_xD, -1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(x32_xD * x32_xD, -1, keepdims=True) + c.norm_eps)
        return (x32_xD * inverse * scale_D + bias_D).astype(x_xD.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention, over the sequence itself or, for one new token, over a key-value cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"] | None,
        segments_BT: Int[Array, "B T"] | None,
        local: Bool[Array, ""] | bool,
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
        q_BTHK, k_BTGK, v_BTGK = (
            self._heads(x_BTD, name, weight) for name, weight in (("q", q_DHK), ("k", k_DGK), ("v", v_DGK))
        )
        if c.qk_norm:
            q_BTHK = Norm(c, kind="rms", axis=None, name="q_norm")(q_BTHK)
            k_BTGK = Norm(c, kind="rms", axis=None, name="k_norm")(k_BTGK)
        if c.positions == "rotary":
            frequency = frequencies(c, local)
            q_BTHK = rope(q_BTHK, positions_BT, frequency, interleaved=c.rotary_interleaved)
            k_BTGK = rope(k_BTGK, positions_BT, frequency, interleaved=c.rotary_interleaved)
        if c.query_scale:  # attention itself divides by sqrt(K)
            q_BTHK = q_BTHK * jnp.asarray(c.query_scale * K**0.5, q_BTHK.dtype)
        q_BTHK = constrain(q_BTHK, "batch", "length", "heads", "head_dim")
        if cache is None:
            keys_values = (k_BTGK, v_BTGK)
            y_BTHK = attend(q_BTHK, *keys_values, mask_BTS, c.attention_softcap, c.attention, segments_BT)
        else:  # only the new column is written; the cache is carried, never copied
            keys_values = tuple(
                jax.lax.dynamic_update_slice_in_dim(old_BGSK, new_B1GK.swapaxes(1, 2), column, axis=2)
                for old_BGSK, new_B1GK in zip(cache, (k_BTGK, v_BTGK), strict=True)
            )
            y_BTHK = attend_cached(q_BTHK, *keys_values, mask_BTS, c.attention_softcap)
        y_BTN = y_BTHK.reshape(B, T, H * K)
        y_BTD = adapted(self, "o", y_BTN, linear(y_BTN, o_HKD.reshape(H * K, D)))
        return y_BTD + bias(self, "o_bias", D, "embed") if c.out_bias else y_BTD, keys_values

    def _heads(
        self, x_BTD: Float[Array, "B T D"], name: str, kernel_DHK: Float[Array, "D H K"]
    ) -> Float[Array, "B T H K"]:
        D, H, K = kernel_DHK.shape
        y_BTN = adapted(self, name, x_BTD, linear(x_BTD, kernel_DHK.reshape(D, H * K)))
        if self.config.qkv_bias:
            y_BTN = y_BTN + bias(self, f"{name}_bias", H * K, "heads" if name == "q" else "kv_heads")
        return y_BTN.reshape(*x_BTD.shape[:2], H, K)


class Block(nn.Module):
    """One decoder layer. Called `(x, positions, masks, local, cache, column) -> (x, (keys, values))`.

    local: whether the layer is windowed; None where all layers are alike.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        masks: Masks,
        local: Bool[Array, ""] | bool | None = None,
        cache: KeyValue | None = None,
        column: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValue]:
        c = self.config
        mask_BTS = masks.full_BTS
        if masks.local_BTS is not None:
            mask_BTS = jnp.where(local, masks.local_BTS, masks.full_BTS)
        if local is None:
            local = any(c.local_layers)
        normed_BTD = Norm(c, name="attention_norm")(x_BTD)
        mixed_BTD, keys_values = Attention(c, name="attention")(
            normed_BTD, positions_BT, mask_BTS, masks.segments_BT, local, cache, column
        )
        if c.post_norms:
            mixed_BTD = Norm(c, name="attention_post_norm")(mixed_BTD)
        feed = Experts(c, name="mlp") if c.experts else FeedForward(c, name="mlp")
        if c.residual == "shared":
            x_BTD = x_BTD + mixed_BTD + feed(normed_BTD)
        elif c.residual == "parallel":
            x_BTD = x_BTD + mixed_BTD + feed(Norm(c, name="mlp_norm")(x_BTD))
        else:
            x_BTD = x_BTD + mixed_BTD
            fed_BTD = feed(Norm(c, name="mlp_norm")(x_BTD))
            x_BTD = x_BTD + (Norm(c, name="mlp_post_norm")(fed_BTD) if c.post_norms else fed_BTD)
        return constrain(x_BTD, "batch", "length", "embed_act"), keys_values
