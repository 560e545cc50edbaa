"""Log-probabilities and entropies of tokens, without ever holding the logits of a whole batch; the loss of SFT.

Every loss and every score in the project goes through `token_logprobs`: the logits exist for one chunk of
positions at a time, and again, recomputed, for one chunk at a time in the backward pass.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, ScalarLike

from rlhf_jax.objectives.reduce import Mean, masked_mean


class Ways(NamedTuple):
    """How the rows of a batch lie on devices: in `count` equal runs, each of which adds up its part of a sum by itself.

    So what a sum over rows is as large as, such as the gradient of a head, is sent between devices once, and not with
    every chunk of positions.

    Attributes:
      apart: pins an array [count, ...] so that the devices of a run hold its part.
      together: the sum of such an array over its first axis.
    """

    count: int = 1
    apart: Callable[[Array], Array] = lambda x: x
    together: Callable[[Array], Array] = functools.partial(jnp.sum, axis=0)


ONE_WAY = Ways()


class Head(NamedTuple):
    """What gives logits softcap(hidden @ head) of T positions, which are made for some of them at a time.

    Attributes:
      softcap: c of c * tanh(z / c) (Gemma 2); 0 where logits are not capped.
      ways: how the rows lie on devices.
    """

    hidden_BTD: Float[Array, "B T D"]
    head_DV: Float[Array, "D V"]
    softcap: float = 0.0
    ways: Ways = ONE_WAY


def head_logprobs(
    head: Head, targets_BT: Int[Array, "B T"], *, temperature: ScalarLike = 1.0, chunk: int = 128
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """`token_logprobs` of a head and the hidden states that it reads."""
    how = {"temperature": temperature, "chunk": chunk, "softcap": head.softcap, "ways": head.ways}
    return token_logprobs(head.hidden_BTD, head.head_DV, targets_BT, **how)


def token_logprobs(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: ScalarLike = 1.0,
    chunk: int = 128,
    softcap: float = 0.0,
    ways: Ways = ONE_WAY,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Log-probability of each target and entropy of each distribution, in nats, float32.

    The distribution is `softmax(hidden @ head / temperature)` over all V; with a `softcap` (Gemma 2), logits z
    are `softcap * tanh(z / softcap)` before the temperature. `temperature` may be traced (one
    compilation serves all) but is a constant to differentiation; it must be positive, and it must be the
    one the tokens were sampled with wherever the two are compared. A target of V or more gives NaN.

    `chunk` bounds the positions of T in flight: at most [B, chunk, V] logits exist. Chunks are cut evenly,
    so any T and chunk fit and padding is less than one position per chunk. T is cut and never B, because
    B is what a mesh shards. Differentiable in `hidden` and `head`, reverse mode; the head's gradient is
    accumulated over chunks in float32, and over the `ways` that rows lie on devices after the last chunk.

    The result is never above 0: with m the largest logit it is (z_y - m) - log(sum(exp(z - m))), where
    the first term is at most 0 and the sum at least exp(0) = 1 also after rounding. So there is nothing to
    clamp, and near p = 1 it loses less than z_y - logsumexp(z), which cancels two large numbers.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    # A traced temperature has no value yet, so only a Python number can be refused here.
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; score greedy samples with 1.0")
    return _token_logprobs(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap, ways)


# A hand-written backward pass rather than jax.checkpoint around an ordinary chunk: autodiff of a gather is
# a scatter into zeros, of logsumexp and entropy two more passes over the logits, and under lax.map it
# computes the entropy's gradient even where only the log-probability is used. One fused expression gives all.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _token_logprobs(
    hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap, ways
) -> tuple[Array, Array]:
    return _forward(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap, ways)[0]


def _forward(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap, _) -> tuple[tuple, tuple]:
    def one(hidden_BCD, targets_BC) -> tuple[Array, ...]:
        logits_BCV = chunk_logits(hidden_BCD, head_DV, temperature, softcap)
        # The softmax by hand rather than jax.nn.log_softmax: of each position only the peak and the log of
        # the sum are kept, and the backward pass makes the probabilities again from those two numbers.
        peak_BC = jnp.max(logits_BCV, axis=-1)
        logsum_BC = jnp.log(jnp.sum(jnp.exp(logits_BCV - peak_BC[..., None]), axis=-1))
        # No [B, C, V] term is shared with the line above: XLA would write it out instead of fusing it twice.
        logp_BCV = logits_BCV - (peak_BC + logsum_BC)[..., None]
        entropy_BC = -jnp.sum(jnp.exp(logp_BCV) * logp_BCV, axis=-1)
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1, mode="fill")[..., 0]
        return (target_BC - peak_BC) - logsum_BC, entropy_BC, peak_BC, logsum_BC

    T = targets_BT.shape[1]
    count = chunk_count(T, chunk)
    if count == 1:
        outputs = one(hidden_BTD, targets_BT)
    else:
        xs = (split_chunks(hidden_BTD, count), split_chunks(targets_BT, count))
        outputs = tuple(join_chunks(y, T) for y in jax.lax.map(lambda x: one(*x), xs))
    logprobs_BT, entropy_BT, peak_BT, logsum_BT = outputs
    residuals = (hidden_BTD, head_DV, targets_BT, temperature, peak_BT, logsum_BT, entropy_BT)
    return (logprobs_BT, entropy_BT), residuals


def _backward(chunk, softcap, ways, residuals, cotangents) -> tuple:
    hidden_BTD, head_DV, targets_BT, temperature, peak_BT, logsum_BT, entropy_BT = residuals
    dtype = jnp.result_type(hidden_BTD, head_DV)

    def one(hidden_BCD, targets_BC, peak_BC, logsum_BC, entropy_BC, dlogprobs_BC, dentropy_BC) -> tuple:
        logits_BCV = chunk_logits(hidden_BCD, head_DV, temperature, softcap)
        logp_BCV = (logits_BCV - peak_BC[..., None]) - logsum_BC[..., None]
        # d logp_y / dz_v = [v = y] - p_v and d entropy / dz_v = -p_v (log p_v + entropy), in float32 to the
        # end: rounded once, after the difference, or 1 - p would be lost in bfloat16 where p is near 1.
        hit_BCV = jax.lax.broadcasted_iota(targets_BC.dtype, logp_BCV.shape, 2) == targets_BC[..., None]
        per_p_BCV = dlogprobs_BC[..., None] + dentropy_BC[..., None] * (logp_BCV + entropy_BC[..., None])
        dlogits_BCV = jnp.where(hit_BCV, dlogprobs_BC[..., None], 0.0) - jnp.exp(logp_BCV) * per_p_BCV
        # The logits at hand are capped and divided by the temperature; the derivative
        # of cap * tanh(z / cap) is 1 - tanh(z / cap)^2.
        if softcap:
            dlogits_BCV = dlogits_BCV * (1.0 - (logits_BCV * temperature / softcap) ** 2)
        dlogits_BCV = (dlogits_BCV / temperature).astype(dtype)
        f32 = {"preferred_element_type": jnp.float32}
        dhidden_BCD = jnp.einsum("bcv,dv->bcd", dlogits_BCV, head_DV, **f32)
        if ways.count == 1:
            return jnp.einsum("bcd,bcv->dv", hidden_BCD, dlogits_BCV, **f32), dhidden_BCD
        own = (x.reshape(ways.count, -1, *x.shape[1:]) for x in (hidden_BCD, dlogits_BCV))
        return ways.apart(jnp.einsum("wbcd,wbcv->wdv", *own, **f32)), dhidden_BCD

    T = targets_BT.shape[1]
    count = chunk_count(T, chunk)
    xs = (hidden_BTD, targets_BT, peak_BT, logsum_BT, entropy_BT, *cotangents)
    if count == 1:
        dhead_xDV, dhidden_BTD = one(*xs)
    else:
        # The head's gradient is a sum over chunks: as the carry of a scan it is one [D, V] buffer, where
        # lax.map would return one per chunk.
        def accumulate(dhead_xDV, x) -> tuple[Array, Array]:
            part_xDV, dhidden_BCD = one(*x)
            return dhead_xDV + part_xDV, dhidden_BCD

        start_DV = jnp.zeros(head_DV.shape, jnp.float32)
        start_xDV = start_DV if ways.count == 1 else way_copies(start_DV, ways)
        dhead_xDV, parts = jax.lax.scan(accumulate, start_xDV, tuple(split_chunks(x, count) for x in xs))
        dhidden_BTD = join_chunks(parts, T)
    dhead_DV = dhead_xDV if ways.count == 1 else ways.together(dhead_xDV)
    return dhidden_BTD.astype(hidden_BTD.dtype), dhead_DV.astype(head_DV.dtype), None, None


_token_logprobs.defvjp(_forward, _backward)


def way_copies(x_DV: Array, ways: Ways) -> Array:
    """x for each of the ways, [W, D, V]."""
    return ways.apart(jnp.broadcast_to(x_DV, (ways.count, *x_DV.shape)))


def chunk_logits(hidden_BCD, head_xDV, temperature, softcap) -> Array:
    """Logits of a chunk of positions, float32; head_xDV is [D, V], or [W, D, V]: one for each of W runs of rows."""
    f32 = {"preferred_element_type": jnp.float32}
    if head_xDV.ndim == 2:
        logits_BCV = jnp.einsum("bcd,dv->bcv", hidden_BCD, head_xDV, **f32)
    else:
        own_WBCD = hidden_BCD.reshape(len(head_xDV), -1, *hidden_BCD.shape[1:])
        logits_WBCV = jnp.einsum("wbcd,wdv->wbcv", own_WBCD, head_xDV, **f32)
        logits_BCV = logits_WBCV.reshape(*hidden_BCD.shape[:2], -1)
    if softcap:
        logits_BCV = softcap * jnp.tanh(logits_BCV / softcap)
    return logits_BCV / temperature


def chunk_count(T: int, chunk: int) -> int:
    return max(1, -(-T // chunk))


def split_chunks(x: Array, count: int) -> Array:
    """[B, T, ...] -> [count, B, ceil(T / count), ...], padded with zeros (whose cotangents are 0 too)."""
    B, T = x.shape[:2]
    size = -(-T // count)
    x = jnp.pad(x, ((0, 0), (0, count * size - T)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, count, size, *x.shape[2:]).swapaxes(0, 1)


def join_chunks(x: Array, T: int) -> Array:
    """The inverse of `split_chunks`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


# Supervised fine-tuning: the negative log-likelihood of trained tokens.


def sft_loss(
    logprobs_BT: Float[Array, "B T"], entropy_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> dict[str, Mean]:
    """Negative log-likelihood per trained token (nats); every token of the global batch weighs the same.

    `entropy` is the mean entropy of the model's distributions at the same positions.
    """
    return {"loss": masked_mean(-logprobs_BT, mask_BT), "entropy": masked_mean(entropy_BT, mask_BT)}
