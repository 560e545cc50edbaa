"""Rotary positions (Su et al. 2021): frequencies, how they are stretched, and the rotation."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.config import ModelConfig, RopeScaling


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
    angle_BT1K = positions_BT[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle_BT1K), jnp.sin(angle_BT1K)
    rotated = 2 * frequency.shape[0]
    x, rest = x_BTHK[..., :rotated].astype(jnp.float32), x_BTHK[..., rotated:]
    if interleaved:
        low, high = x[..., ::2], x[..., 1::2]
        x = jnp.stack([low * cos - high * sin, high * cos + low * sin], -1).reshape(x.shape)
    else:
        low, high = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
    x = x.astype(x_BTHK.dtype)
    return x if rest.shape[-1] == 0 else jnp.concatenate([x, rest], -1)
