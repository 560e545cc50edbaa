"""Attention behind one function, so that every caller means the same thing by a mask."""

from __future__ import annotations

import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models import fused
from rlhf_jax.models.causal import causal_attention

_MIN_BLOCK = 128
_MAX_BLOCKS = 4  # blocks are unrolled: more of them save less and compile longer


def attend(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    mask_BTS: Bool[Array, "B T S"] | None,
    softcap: float = 0.0,
    implementation: str = "xla",
    segments_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(q k / sqrt(K)) v with grouped heads; scores and softmax in float32.

    Args:
      mask_BTS: True where the query may look. None means causal, S == T: enough for right-padded
        batches, whose pads come after every real token.
      softcap: scores become cap * tanh(score / cap); 0 is off.
      implementation: one of config.IMPLEMENTATIONS, used where there is no mask or softcap.
      segments_BT: without a mask, a query looks at its own segment only (packed rows).
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    if mask_BTS is None and not softcap:
        platform, capability = fused.here()
        about = {"dtype": q_BTHK.dtype.name, "platform": platform, "capability": capability}
        kind = fused.choose(implementation, T=T, K=K, packed=segments_BT is not None, **about)
        if kind == "cudnn":
            return fused.cudnn(q_BTHK, k_BSGK, v_BSGK)
        if kind == "splash":
            return fused.splash(q_BTHK, k_BSGK, v_BSGK, segments_BT)
    if mask_BTS is None and softcap:
        mask_BTS = causal_mask(B, T, segments_BT)
    if mask_BTS is None:
        block = max(_MIN_BLOCK, -(-T // _MAX_BLOCKS))
        return causal_attention(q_BTHK, k_BSGK, v_BSGK, segments_BT, block=block)
    q_BTGRK = (q_BTHK * (K**-0.5)).reshape(B, T, G, H // G, K)
    scores_BGRTS = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)
    scores_BGRTS = cap(scores_BGRTS, softcap)
    scores_BGRTS = jnp.where(mask_BTS[:, None, None], scores_BGRTS, jnp.finfo(jnp.float32).min)
    weights_BGRTS = nn.softmax(scores_BGRTS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK).reshape(B, T, H, K)


def attend_cached(
    q_B1HK: Float[Array, "B 1 H K"],
    k_BGSK: Float[Array, "B G S K"],
    v_BGSK: Float[Array, "B G S K"],
    mask_B1S: Bool[Array, "B 1 S"],
    softcap: float = 0.0,
) -> Float[Array, "B 1 H K"]:
    """As `attend`, for one query per row over a cache.

    The cache keeps heads before columns: each head then reads one contiguous block per token, which on CPU is
    three times as fast as reading across heads.
    """
    B, _, H, K = q_B1HK.shape
    G = k_BGSK.shape[1]
    q_BGRK = (q_B1HK * (K**-0.5)).reshape(B, G, H // G, K)
    scores_BGRS = jnp.einsum("bgrk,bgsk->bgrs", q_BGRK, k_BGSK, preferred_element_type=jnp.float32)
    scores_BGRS = cap(scores_BGRS, softcap)
    scores_BGRS = jnp.where(mask_B1S[:, None], scores_BGRS, jnp.finfo(jnp.float32).min)
    weights_BGRS = nn.softmax(scores_BGRS, axis=-1).astype(v_BGSK.dtype)
    return jnp.einsum("bgrs,bgsk->bgrk", weights_BGRS, v_BGSK).reshape(B, 1, H, K)


def causal_mask(B: int, T: int, segments_BT: Int[Array, "B T"] | None = None) -> Bool[Array, "B T T"]:
    """Each token sees itself and those before it, of its own segment where there are segments."""
    mask_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return mask_BTT if segments_BT is None else mask_BTT & (segments_BT[:, :, None] == segments_BT[:, None])


def cap(x: Float[Array, "*x"], softcap: float) -> Float[Array, "*x"]:
    """softcap * tanh(x / softcap), which keeps x within the cap (Gemma 2); x itself when softcap is 0."""
    return softcap * jnp.tanh(x / softcap) if softcap else x


def within_window(
    mask_BTS: Bool[Array, "B T S"] | None, B: int, T: int, window: int
) -> Bool[Array, "B T S"] | None:
    """The mask of a layer where a token sees itself and `window - 1` before it. None still means causal.

    Columns are counted, not positions: wherever two tokens may see each other, both differ by the same number.
    """
    if window == 0 or window >= T:  # every token before is near enough
        return mask_BTS
    columns_T = jnp.arange(T)
    near_TT = columns_T[:, None] - columns_T < window
    if mask_BTS is None:
        return jnp.broadcast_to(near_TT & (columns_T[:, None] >= columns_T), (B, T, T))
    return mask_BTS & near_TT
