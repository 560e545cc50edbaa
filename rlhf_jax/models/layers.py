"""The layers of the decoder: norm, attention with rotary positions, feed-forward, and the block that they form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.attention.attend import attend, attend_cached
from rlhf_jax.models.config import ModelConfig, RopeScaling
from rlhf_jax.models.linear import adapted, bias, kernel, linear, swiglu
from rlhf_jax.parallel.mesh import constrain

# Keys and values of one layer: [B, T, G, K] as a sequence gives them, [B, G, S, K] as a cache keeps them.
KeyValue = tuple[Float[Array, "B _ _ K"], Float[Array, "B _ _ K"]]


class Masks(NamedTuple):
    """Where the queries of a layer may look; None is causal.

    Attributes:
      full_BTS: for layers that see everything, and for all layers where they are all alike.
      local_BTS: for windowed layers, where only some are windowed.
      segments_BT: where causal, the documents of packed rows; each sees itself only,
      roots_BT: and the segment that is its root, where responses share a prompt.
    """

    full_BTS: Bool[Array, "B T S"] | None
    local_BTS: Bool[Array, "B T S"] | None = None
    segments_BT: Int[Array, "B T"] | None = None
    roots_BT: Int[Array, "B T"] | None = None


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
            # In float32: 1 plus a small number would lose its digits in the dtype of a bfloat16 copy.
            scale_D = 1.0 + scale_D.astype(jnp.float32)
        x32_xD = x_xD.astype(jnp.float32)
        if (self.kind or c.norm) == "rms":
            inverse = jax.lax.rsqrt(jnp.mean(x32_xD * x32_xD, -1, keepdims=True) + c.norm_eps)
            return (x32_xD * inverse * scale_D).astype(x_xD.dtype)
        init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis,))
        bias_D = self.param("bias", init, (x_xD.shape[-1],), jnp.float32)
        # The mean is taken off first: mean(x^2) - mean(x)^2 cancels where the mean is large.
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
        documents: tuple[Int[Array, "B T"] | None, Int[Array, "B T"] | None],
        local: Bool[Array, ""] | bool,
        cache: KeyValue | None,
        column: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], KeyValue]:
        c = self.config
        D, H, G, K = c.width, c.heads, c.kv_heads, c.head_dim
        # Heads are an axis of the parameters, so that a mesh can split them; for the product they are folded.
        q_DHK = kernel(self, "q", (D, H, K), ("embed", "heads", "head_dim"), D)
        k_DGK = kernel(self, "k", (D, G, K), ("embed", "kv_heads", "head_dim"), D)
        v_DGK = kernel(self, "v", (D, G, K), ("embed", "kv_heads", "head_dim"), D)
        o_HKD = kernel(self, "o", (H, K, D), ("heads", "head_dim", "embed"), H * K)
        B, T = x_BTD.shape[:2]
        q_BTHK = self._heads(x_BTD, "q", q_DHK)
        k_BTGK = self._heads(x_BTD, "k", k_DGK)
        v_BTGK = self._heads(x_BTD, "v", v_DGK)
        # Before the rotation, as in Qwen 3 and Gemma 3. One scale [K] serves all heads, so no axis is split.
        if c.qk_norm:
            q_BTHK = Norm(c, kind="rms", axis=None, name="q_norm")(q_BTHK)
            k_BTGK = Norm(c, kind="rms", axis=None, name="k_norm")(k_BTGK)
        # Keys go into the cache rotated, so that a decode step rotates the new one only.
        if c.positions == "rotary":
            frequency = frequencies(c, local)
            q_BTHK = rope(q_BTHK, positions_BT, frequency, interleaved=c.rotary_interleaved)
            k_BTGK = rope(k_BTGK, positions_BT, frequency, interleaved=c.rotary_interleaved)
        # Attention itself divides by sqrt(K); Gemma 2 27B wants sqrt(144) with heads of 128.
        if c.query_scale:
            q_BTHK = q_BTHK * jnp.asarray(c.query_scale * K**0.5, q_BTHK.dtype)
        q_BTHK = constrain(q_BTHK, "batch", "length", "heads", "head_dim")
        if cache is None:
            keys_values = (k_BTGK, v_BTGK)
            y_BTHK = attend(q_BTHK, *keys_values, mask_BTS, c.attention_softcap, c.attention, *documents)
        else:
            # Only the new column is written: the decode loop carries the cache, and XLA updates it in place.
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
        # Inside the scan over layers `local` is traced, so both masks exist and one is selected.
        if masks.local_BTS is not None:
            mask_BTS = jnp.where(local, masks.local_BTS, masks.full_BTS)
        if local is None:
            local = any(c.local_layers)
        normed_BTD = Norm(c, name="attention_norm")(x_BTD)
        mixed_BTD, keys_values = Attention(c, name="attention")(
            normed_BTD, positions_BT, mask_BTS, (masks.segments_BT, masks.roots_BT), local, cache, column
        )
        if c.post_norms:
            mixed_BTD = Norm(c, name="attention_post_norm")(mixed_BTD)
        feed = Experts(c, name="mlp") if c.experts else FeedForward(c, name="mlp")
        # GPT-J and GPT-NeoX add attention and feed-forward to the same x; in the other families the
        # feed-forward reads what attention has been added to.
        if c.residual == "shared":
            x_BTD = x_BTD + mixed_BTD + feed(normed_BTD)
        elif c.residual == "parallel":
            x_BTD = x_BTD + mixed_BTD + feed(Norm(c, name="mlp_norm")(x_BTD))
        else:
            x_BTD = x_BTD + mixed_BTD
            fed_BTD = feed(Norm(c, name="mlp_norm")(x_BTD))
            x_BTD = x_BTD + (Norm(c, name="mlp_post_norm")(fed_BTD) if c.post_norms else fed_BTD)
        return constrain(x_BTD, "batch", "length", "embed_act"), keys_values


# Rotary positions (Su et al. 2021): frequencies, how they are stretched, and the rotation.


def frequencies(config: ModelConfig, local: Bool[Array, ""] | bool) -> Float[Array, " half"]:
    """Radians per position of each pair of features; `local` says whether the layer is windowed."""
    half = (config.rotary_dim or config.head_dim) // 2
    exponent = -jnp.arange(half, dtype=jnp.float32) / half
    everywhere = stretch(config.rope_theta**exponent, config.rope_scaling)
    if not config.rope_theta_local:
        return everywhere
    return jnp.where(local, config.rope_theta_local**exponent, everywhere)


def stretch(frequency: Float[Array, " half"], scaling: RopeScaling | None) -> Float[Array, " half"]:
    """Frequencies for sequences longer than those of pre-training.

    "linear" is position interpolation (Chen et al. 2023). "llama3" (Llama 3.1) keeps frequencies that turn more
    than `high` times in the original length, divides those that turn less than `low` times, and blends between.
    """
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    turns = scaling.original * frequency / (2 * math.pi)
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def rope(
    x_BTHK: Float[Array, "B T H K"],
    positions_BT: Int[Array, "B T"],
    frequency: Float[Array, " half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "B T H K"]:
    """Rotates the first 2 * len(frequency) features of each head; the rest pass.

    A pair is (i, i + half), the layout of Hugging Face Llama, or (2i, 2i + 1) when interleaved.
    """
    # bfloat16 holds whole numbers only up to 256, so later positions would fall together.
    angle_BT1K = positions_BT[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle_BT1K), jnp.sin(angle_BT1K)
    rotated = 2 * frequency.shape[0]
    x, rest = x_BTHK[..., :rotated].astype(jnp.float32), x_BTHK[..., rotated:]
    # The layouts are permutations of each other: the wrong one is no error, it only gives wrong logits.
    if interleaved:
        low, high = x[..., ::2], x[..., 1::2]
        x = jnp.stack([low * cos - high * sin, high * cos + low * sin], -1).reshape(x.shape)
    else:
        low, high = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
    x = x.astype(x_BTHK.dtype)
    return x if rest.shape[-1] == 0 else jnp.concatenate([x, rest], -1)


# The feed-forward of a block: gated or plain, one or several of which each token takes the best few.

# Both forms of gelu by name: jax.nn.gelu's default is the tanh form, torch's is the exact one.
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
        # Dense products over all experts: the shapes do not depend on where tokens go, and none is dropped.
        weights_BTE = route(linear(x_BTD, router_DE), c.experts_per_token).astype(x_BTD.dtype)
        hidden_BTEF = gated(
            c, jnp.einsum("btd,edf->btef", x_BTD, gate_EDF), jnp.einsum("btd,edf->btef", x_BTD, up_EDF)
        )
        hidden_BTEF = constrain(hidden_BTEF * weights_BTE[..., None], "batch", "length", "experts", "mlp")
        return jnp.einsum("btef,efd->btd", hidden_BTEF, down_EFD)


def gated(config: ModelConfig, gate_xF: Float[Array, "*x F"], up_xF: Float[Array, "*x F"]) -> Array:
    """act(gate) * up, the hidden units of a gated feed-forward."""
    if config.activation == "silu":
        return swiglu(gate_xF, up_xF)
    return _ACTIVATIONS[config.activation](gate_xF) * up_xF


def route(logits_BTE: Float[Array, "B T E"], best: int) -> Float[Array, "B T E"]:
    """float32 weights: softmax over experts, kept for each token's best and made to sum to 1; 0 elsewhere."""
    # Softmax first and normalised again is the softmax over the best alone, which Mixtral's paper describes.
    probs_BTE = jax.nn.softmax(logits_BTE.astype(jnp.float32), axis=-1)
    top_BTN, index_BTN = jax.lax.top_k(probs_BTE, best)
    top_BTN = top_BTN / jnp.sum(top_BTN, -1, keepdims=True)
    hit_BTNE = jax.nn.one_hot(index_BTN, logits_BTE.shape[-1], dtype=jnp.float32)
    return jnp.einsum("btn,btne->bte", top_BTN, hit_BTNE)
