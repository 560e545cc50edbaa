"""Attention of a decoder: `attend` over whole sequences, `attend_cached` for one new token over a cache.

`attend` chooses between the accelerators' fused kernels (see `fused`), causal attention in blocks, and the full square
of scores where there is a mask. A mask means the same everywhere: True where the query may look.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.attention import fused

_MIN_BLOCK = 128
# Blocks are unrolled: more of them save less of the square and compile longer.
_MAX_BLOCKS = 4


def attend(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    mask_BTS: Bool[Array, "B T S"] | None,
    softcap: float = 0.0,
    implementation: str = "xla",
    segments_BT: Int[Array, "B T"] | None = None,
    roots_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """Attention, softmax(q k / sqrt(K)) v, with grouped heads; scores and softmax in float32.

    Args:
      mask_BTS: True where the query may look. None means causal, S == T: enough for right-padded
        batches, whose pads come after every real token.
      softcap: scores become cap * tanh(score / cap); 0 is off.
      implementation: one of config.IMPLEMENTATIONS, used where there is no mask or softcap.
      segments_BT: without a mask, a query looks at its own segment only (packed rows),
      roots_BT: and at this one, where responses share a prompt; no fused kernel knows of it.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    # Fused kernels know causal attention only, with no mask and no cap.
    if mask_BTS is None and not softcap:
        platform, capability = fused.here()
        about = {"dtype": q_BTHK.dtype.name, "platform": platform, "capability": capability}
        rows = {"packed": segments_BT is not None, "shared": roots_BT is not None}
        kind = fused.choose_kernel(implementation, T=T, K=K, **rows, **about)
        if kind == "cudnn":
            return fused.cudnn(q_BTHK, k_BSGK, v_BSGK)
        if kind == "splash":
            return fused.splash(q_BTHK, k_BSGK, v_BSGK, segments_BT)
    # The blocks' backward pass has no cap either, so capped scores are computed as a whole square.
    if mask_BTS is None and softcap:
        mask_BTS = causal_mask(B, T, segments_BT, roots_BT)
    if mask_BTS is None:
        block = block_size(T)
        # Heads before columns, and the query heads of a key-value head together.
        q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
        y_BGRTK, _ = causal_attention(
            q_BGRTK, k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2), segments_BT, roots_BT, block
        )
        return y_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    # Query heads as [G, R], R to a key-value head: keys and values are never repeated. Scaling the queries is
    # T K products, where scaling the scores would be T S.
    q_BTGRK = (q_BTHK * (K**-0.5)).reshape(B, T, G, H // G, K)
    scores_BGRTS = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)
    scores_BGRTS = cap(scores_BGRTS, softcap)
    # The lowest number and not -inf: a pad that may look nowhere gets a uniform softmax instead of NaN.
    scores_BGRTS = jnp.where(mask_BTS[:, None, None], scores_BGRTS, jnp.finfo(jnp.float32).min)
    weights_BGRTS = nn.softmax(scores_BGRTS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK).reshape(B, T, H, K)


def block_size(T: int) -> int:
    """How many queries of a row of T tokens causal attention works on together."""
    return max(_MIN_BLOCK, -(-T // _MAX_BLOCKS))


def attend_cached(
    q_B1HK: Float[Array, "B 1 H K"],
    k_BGSK: Float[Array, "B G S K"],
    v_BGSK: Float[Array, "B G S K"],
    mask_B1S: Bool[Array, "B 1 S"],
    softcap: float = 0.0,
) -> Float[Array, "B 1 H K"]:
    """Attention of one new query per row over a key-value cache; otherwise as `attend`.

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


def causal_mask(
    B: int, T: int, segments_BT: Int[Array, "B T"] | None = None, roots_BT: Int[Array, "B T"] | None = None
) -> Bool[Array, "B T T"]:
    """The causal mask: each token sees itself and those before it, of its own segment and its root where there are."""
    mask_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return mask_BTT if segments_BT is None else mask_BTT & _related(segments_BT, roots_BT)


def cap(x: Float[Array, "*x"], softcap: float) -> Float[Array, "*x"]:
    """softcap * tanh(x / softcap), which keeps x within the cap (Gemma 2); x itself when softcap is 0."""
    return softcap * jnp.tanh(x / softcap) if softcap else x


def within_window(
    mask_BTS: Bool[Array, "B T S"] | None,
    B: int,
    T: int,
    window: int,
    positions_BT: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B T S"] | None:
    """The mask of a layer where a token sees itself and `window - 1` before it. None still means causal.

    Columns are counted, not positions: wherever two tokens may see each other, both differ by the same number. Where
    responses share a prompt they do not, since the first response stands between prompt and second; there `mask_BTS`
    and `positions_BT` are given.
    """
    if window == 0 or window >= T:  # every token before is near enough
        return mask_BTS
    if positions_BT is not None:
        return mask_BTS & (positions_BT[:, :, None] - positions_BT[:, None] < window)
    columns_T = jnp.arange(T)
    near_TT = columns_T[:, None] - columns_T < window
    if mask_BTS is None:
        return jnp.broadcast_to(near_TT & (columns_T[:, None] >= columns_T), (B, T, T))
    return mask_BTS & near_TT


# Causal attention in blocks, with its backward pass written out (the idea of FlashAttention, Dao et al. 2022).
#
# A block of queries meets only the keys before its end, so a quarter and more of the square is never computed, and the
# probabilities are made again in the backward pass instead of being kept for every layer. On CPU this is also what uses
# the cores: XLA runs one batched product on one core, but independent blocks on several.

# Not -inf, because the difference of two would be NaN.
_LOWEST = -1e30
# Products batched over the first two axes, of the last axis with the last, or with the one before; sums in float32.
_LAST_LAST = (((3,), (3,)), ((0, 1), (0, 1)))
_LAST_ROWS = (((3,), (2,)), ((0, 1), (0, 1)))
_dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def causal_attention(
    q_BGRTK: Float[Array, "B G R T K"],
    k_BGTK: Float[Array, "B G T K"],
    v_BGTK: Float[Array, "B G T K"],
    segments_BT: Int[Array, "B T"] | None,
    roots_BT: Int[Array, "B T"] | None,
    block: int,
) -> tuple[Float[Array, "B G R T K"], Float[Array, "B G R T"]]:
    """Causal attention in blocks: each token sees itself and what came before; scores in float32.

    Right-padded rows need no mask: their pads come after every real token. With segments, a token sees its own
    only, and with roots the segment that its root names, too. R query heads share a key-value head; `block` is the
    number of queries (and, backward, of keys) that are worked on together. Beside the output: the log of each softmax's
    denominator, for the backward pass.
    """
    B, G, R, T, K = q_BGRTK.shape
    outputs, logsums = [], []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen = jnp.tile(jnp.arange(start, end)[:, None] >= jnp.arange(end), (R, 1))
        if segments_BT is not None:
            related_BQS = _related(segments_BT, roots_BT, slice(start, end), slice(end))
            seen = seen & jnp.tile(related_BQS, (1, R, 1))[:, None]
        q_BGQK = q_BGRTK[:, :, :, start:end].reshape(B, G, -1, K)
        scores = _dot(q_BGQK, k_BGTK[:, :, :end], _LAST_LAST) * K**-0.5
        scores = jnp.where(seen, scores, _LOWEST)
        peak = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, -1, keepdims=True)
        # Divided after the product, which is [.., K] wide, and not before it, where it is [.., S].
        output = _dot(weights.astype(v_BGTK.dtype), v_BGTK[:, :, :end], _LAST_ROWS) / total
        outputs.append(output.reshape(B, G, R, end - start, K))
        # exp(score - logsum) is the probability: one number for each query is all that has to be saved.
        logsums.append((peak + jnp.log(total)).reshape(B, G, R, end - start))
    return jnp.concatenate(outputs, 3).astype(q_BGRTK.dtype), jnp.concatenate(logsums, 3)


def _forward(
    q_BGRTK: Array,
    k_BGTK: Array,
    v_BGTK: Array,
    segments_BT: Array | None,
    roots_BT: Array | None,
    block: int,
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    inputs = (q_BGRTK, k_BGTK, v_BGTK, segments_BT, roots_BT)
    y_BGRTK, logsum_BGRT = causal_attention(*inputs, block)
    return (y_BGRTK, logsum_BGRT), (*inputs, y_BGRTK, logsum_BGRT)


def _backward(
    block: int, saved: tuple[Array | None, ...], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array, None, None]:
    """Works by blocks of keys, with scores as k q: then each product contracts the last axis of its left side."""
    # Nobody but this function reads the logs of the denominators, so they have no gradient.
    dy_BGRTK, _ = cotangents
    q_BGRTK, k_BGTK, v_BGTK, segments_BT, roots_BT, y_BGRTK, logsum_BGRT = saved
    B, G, R, T, K = q_BGRTK.shape
    # The softmax's gradient subtracts y . dy from every dp (FlashAttention calls it D).
    delta_BGRT = jnp.sum((y_BGRTK * dy_BGRTK).astype(jnp.float32), -1)
    k_BGKT = k_BGTK.swapaxes(2, 3)
    dq_BGKRT = jnp.zeros((B, G, K, R, T), jnp.float32)
    dks, dvs = [], []
    for start in range(0, T, block):
        end = min(start + block, T)
        # Queries before `start` do not see these keys.
        q, dy = (x[:, :, :, start:].reshape(B, G, -1, K) for x in (q_BGRTK, dy_BGRTK))
        logsum, delta = (x[:, :, :, start:].reshape(B, G, 1, -1) for x in (logsum_BGRT, delta_BGRT))
        seen = jnp.tile(jnp.arange(start, end)[:, None] <= jnp.arange(start, T), (1, R))
        if segments_BT is not None:
            related_BQS = _related(segments_BT, roots_BT, slice(start, T), slice(start, end))
            seen = seen & jnp.tile(related_BQS.swapaxes(1, 2), (1, 1, R))[:, None]
        scores = _dot(k_BGTK[:, :, start:end], q, _LAST_LAST) * K**-0.5 - logsum
        # Masked before exp as well: the score of an unseen pair can be above the logsum and overflow.
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, _LOWEST)), 0.0)
        dscores = weights * (_dot(v_BGTK[:, :, start:end], dy, _LAST_LAST) - delta) * K**-0.5
        weights, dscores = weights.astype(q.dtype), dscores.astype(q.dtype)
        dvs.append(_dot(weights, dy, _LAST_ROWS))
        dks.append(_dot(dscores, q, _LAST_ROWS))
        part = _dot(k_BGKT[:, :, :, start:end], dscores, _LAST_ROWS).reshape(B, G, K, R, T - start)
        dq_BGKRT += jnp.pad(part, ((0, 0),) * 4 + ((start, 0),))
    dk_BGTK, dv_BGTK = (jnp.concatenate(parts, 2).astype(k_BGTK.dtype) for parts in (dks, dvs))
    return dq_BGKRT.transpose(0, 1, 3, 4, 2).astype(q_BGRTK.dtype), dk_BGTK, dv_BGTK, None, None


causal_attention.defvjp(_forward, _backward)


def _related(
    segments_BT: Array, roots_BT: Array | None, queries: slice = slice(None), keys: slice = slice(None)
) -> Array:
    """Whether a key is of the query's own segment or of its root, [B, Q, S]."""
    keys_B1S = segments_BT[:, None, keys]
    own_BQS = segments_BT[:, queries, None] == keys_B1S
    return own_BQS if roots_BT is None else own_BQS | (roots_BT[:, queries, None] == keys_B1S)
