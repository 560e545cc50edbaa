"""Causal attention in blocks, with its backward pass written out (the idea of FlashAttention, Dao et al. 2022).

A block of queries meets only the keys before its end, so a quarter and more of the square is never computed, and
the probabilities are made again in the backward pass instead of being kept for every layer. On CPU this is also
what uses the cores: XLA runs one batched product on one core, but independent blocks on several.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LOWEST = -1e30  # not -inf: a difference of two would be NaN


def causal_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGK: Float[Array, "B T G K"],
    segments_BT: Int[Array, "B T"] | None = None,
    *,
    block: int,
) -> Float[Array, "B T H K"]:
    """softmax(q k / sqrt(K)) v where each token sees itself and what came before; scores in float32.

    Right-padded rows need no mask: their pads come after every real token. With segments, a token sees its own
    only. G divides H; `block` is the number of queries (and, backward, of keys) that are worked on together.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    y_BGRTK = _attention(q_BGRTK, k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2), segments_BT, block)
    return y_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q_BGRTK: Array, k_BGTK: Array, v_BGTK: Array, segments_BT: Array | None, block: int) -> Array:
    return _forward(q_BGRTK, k_BGTK, v_BGTK, segments_BT, block)[0]


def _forward(
    q_BGRTK: Array, k_BGTK: Array, v_BGTK: Array, segments_BT: Array | None, block: int
) -> tuple[Array, tuple[Array | None, ...]]:
    """Saves the log of each softmax's denominator, from which the backward pass makes the probabilities again."""
    B, G, R, T, K = q_BGRTK.shape
    outputs, logsums = [], []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen = jnp.tile(jnp.arange(start, end)[:, None] >= jnp.arange(end), (R, 1))
        if segments_BT is not None:
            seen = seen & _same(segments_BT[:, start:end], segments_BT[:, :end], (1, R, 1))
        scores = _dot(_fold(q_BGRTK[:, :, :, start:end]), k_BGTK[:, :, :end], 3, 3) * K**-0.5
        scores = jnp.where(seen, scores, _LOWEST)
        peak = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, -1, keepdims=True)
        output = _dot(weights.astype(v_BGTK.dtype), v_BGTK[:, :, :end], 3, 2) / total
        outputs.append(output.reshape(B, G, R, end - start, K))
        logsums.append((peak + jnp.log(total)).reshape(B, G, R, end - start))
    y_BGRTK = jnp.concatenate(outputs, 3).astype(q_BGRTK.dtype)
    return y_BGRTK, (q_BGRTK, k_BGTK, v_BGTK, segments_BT, y_BGRTK, jnp.concatenate(logsums, 3))


def _backward(
    block: int, saved: tuple[Array | None, ...], dy_BGRTK: Array
) -> tuple[Array, Array, Array, None]:
    """By blocks of keys. Scores are made as k q, so that every product contracts the last axis of its left side."""
    q_BGRTK, k_BGTK, v_BGTK, segments_BT, y_BGRTK, logsum_BGRT = saved
    B, G, R, T, K = q_BGRTK.shape
    delta_BGRT = jnp.sum((y_BGRTK * dy_BGRTK).astype(jnp.float32), -1)
    k_BGKT = k_BGTK.swapaxes(2, 3)
    dq_BGKRT = jnp.zeros((B, G, K, R, T), jnp.float32)
    dks, dvs = [], []
    for start in range(0, T, block):
        end = min(start + block, T)
        q, dy = (
            _fold(q_BGRTK[:, :, :, start:]),
            _fold(dy_BGRTK[:, :, :, start:]),
        )  # only these queries see the keys
        logsum, delta = (x[:, :, :, start:].reshape(B, G, 1, -1) for x in (logsum_BGRT, delta_BGRT))
        seen = jnp.tile(jnp.arange(start, end)[:, None] <= jnp.arange(start, T), (1, R))
        if segments_BT is not None:
            seen = seen & _same(segments_BT[:, start:end], segments_BT[:, start:], (1, 1, R))
        scores = _dot(k_BGTK[:, :, start:end], q, 3, 3) * K**-0.5 - logsum
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, _LOWEST)), 0.0)
        dscores = weights * (_dot(v_BGTK[:, :, start:end], dy, 3, 3) - delta) * K**-0.5
        weights, dscores = weights.astype(q.dtype), dscores.astype(q.dtype)
        dvs.append(_dot(weights, dy, 3, 2))
        dks.append(_dot(dscores, q, 3, 2))
        part = _dot(k_BGKT[:, :, :, start:end], dscores, 3, 2).reshape(B, G, K, R, T - start)
        dq_BGKRT += jnp.pad(part, ((0, 0),) * 4 + ((start, 0),))
    dk_BGTK, dv_BGTK = (jnp.concatenate(parts, 2).astype(k_BGTK.dtype) for parts in (dks, dvs))
    return dq_BGKRT.transpose(0, 1, 3, 4, 2).astype(q_BGRTK.dtype), dk_BGTK, dv_BGTK, None


_attention.defvjp(_forward, _backward)


def _same(one_BQ: Array, other_BS: Array, tiles: tuple[int, int, int]) -> Array:
    """Which of two stretches are of one segment, [B, 1, Q, S] repeated for the query heads of a group."""
    return jnp.tile(one_BQ[:, :, None] == other_BS[:, None], tiles)[:, None]


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Product over one axis of each, batched over the first two; sums in float32."""
    axes = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _fold(x: Array) -> Array:
    """[B, G, R, T, K] -> [B, G, R*T, K]: the query heads of a group share their keys."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])
