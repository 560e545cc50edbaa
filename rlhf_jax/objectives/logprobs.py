"""Log-probabilities, entropies and KL of tokens, without ever holding the logits of a whole batch; the loss of SFT.

Every loss and every score in the project goes through `token_logprobs` or `token_kl_full`: the logits exist for one
chunk of positions at a time, and again, recomputed, for one chunk at a time in the backward pass.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, ScalarLike

from rlhf_jax.objectives.reduce import Mean, masked_mean


def token_logprobs(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: ScalarLike = 1.0,
    chunk: int = 128,
    softcap: float = 0.0,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Log-probability of each target and entropy of each distribution, in nats, float32.

    The distribution is `softmax(hidden @ head / temperature)` over all V; with a `softcap` (Gemma 2), logits z
    are `softcap * tanh(z / softcap)` before the temperature. `temperature` may be traced (one
    compilation serves all) but is a constant to differentiation; it must be positive, and it must be the
    one the tokens were sampled with wherever the two are compared. A target of V or more gives NaN.

    `chunk` bounds the positions of T in flight: at most [B, chunk, V] logits exist. Chunks are cut evenly,
    so any T and chunk fit and padding is less than one position per chunk. T is cut and never B, because
    B is what a mesh shards. Differentiable in `hidden` and `head`, reverse mode; the head's gradient is
    accumulated over chunks in float32.

    The result is never above 0: with m the largest logit it is (z_y - m) - log(sum(exp(z - m))), where
    the first term is at most 0 and the sum at least exp(0) = 1 also after rounding. So there is nothing to
    clamp, and near p = 1 it loses less than z_y - logsumexp(z), which cancels two large numbers.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    # A traced temperature has no value yet, so only a Python number can be refused here.
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; score greedy samples with 1.0")
    return _token_logprobs(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap)


# A hand-written backward pass rather than jax.checkpoint around an ordinary chunk: autodiff of a gather is
# a scatter into zeros, of logsumexp and entropy two more passes over the logits, and under lax.map it
# computes the entropy's gradient even where only the log-probability is used. One fused expression gives all.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _token_logprobs(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap) -> tuple[Array, Array]:
    return _forward(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap)[0]


def _forward(hidden_BTD, head_DV, targets_BT, temperature, chunk, softcap) -> tuple[tuple, tuple]:
    def one(hidden_BCD, targets_BC) -> tuple[Array, ...]:
        logits_BCV = _logits(hidden_BCD, head_DV, temperature, softcap)
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
    count = _chunk_count(T, chunk)
    if count == 1:
        outputs = one(hidden_BTD, targets_BT)
    else:
        xs = (_split(hidden_BTD, count), _split(targets_BT, count))
        outputs = tuple(_join(y, T) for y in jax.lax.map(lambda x: one(*x), xs))
    logprobs_BT, entropy_BT, peak_BT, logsum_BT = outputs
    residuals = (hidden_BTD, head_DV, targets_BT, temperature, peak_BT, logsum_BT, entropy_BT)
    return (logprobs_BT, entropy_BT), residuals


def _backward(chunk, softcap, residuals, cotangents) -> tuple:
    hidden_BTD, head_DV, targets_BT, temperature, peak_BT, logsum_BT, entropy_BT = residuals
    dtype = jnp.result_type(hidden_BTD, head_DV)

    def one(hidden_BCD, targets_BC, peak_BC, logsum_BC, entropy_BC, dlogprobs_BC, dentropy_BC) -> tuple:
        logits_BCV = _logits(hidden_BCD, head_DV, temperature, softcap)
        logp_BCV = (logits_BCV - peak_BC[..., None]) - logsum_BC[..., None]
        # d logp_y / dz_v = [v = y] - p_v and d entropy / dz_v = -p_v (log p_v + entropy), in float32 to the
        # end: rounded once, after the difference, or 1 - p would be lost in bfloat16 where p is near 1.
        hit_BCV = jax.lax.broadcasted_iota(targets_BC.dtype, logp_BCV.shape, 2) == targets_BC[..., None]
        per_p_BCV = dlogprobs_BC[..., None] + dentropy_BC[..., None] * (logp_BCV + entropy_BC[..., None])
        dlogits_BCV = jnp.where(hit_BCV, dlogprobs_BC[..., None], 0.0) - jnp.exp(logp_BCV) * per_p_BCV
        return _through_head(hidden_BCD, head_DV, logits_BCV, dlogits_BCV, temperature, softcap, dtype)

    xs = (hidden_BTD, targets_BT, peak_BT, logsum_BT, entropy_BT, *cotangents)
    dhidden_BTD, dhead_DV = _summed_over_chunks(one, xs, head_DV.shape, chunk)
    return dhidden_BTD.astype(hidden_BTD.dtype), dhead_DV.astype(head_DV.dtype), None, None


_token_logprobs.defvjp(_forward, _backward)


def _through_head(hidden_BCD, head_DV, logits_BCV, dlogits_BCV, temperature, softcap, dtype) -> tuple:
    """(gradient of the hidden states, of the head), from that of a chunk's logits."""
    # The logits at hand are capped and divided by the temperature; the derivative
    # of cap * tanh(z / cap) is 1 - tanh(z / cap)^2.
    if softcap:
        dlogits_BCV = dlogits_BCV * (1.0 - (logits_BCV * temperature / softcap) ** 2)
    dlogits_BCV = (dlogits_BCV / temperature).astype(dtype)
    f32 = {"preferred_element_type": jnp.float32}
    dhidden_BCD = jnp.einsum("bcv,dv->bcd", dlogits_BCV, head_DV, **f32)
    return dhidden_BCD, jnp.einsum("bcd,bcv->dv", hidden_BCD, dlogits_BCV, **f32)


def _summed_over_chunks(one, xs, head_shape, chunk) -> tuple[Array, Array]:
    """(gradient of the hidden states, of the head) of all chunks; one: of a single one."""
    T = xs[0].shape[1]
    count = _chunk_count(T, chunk)
    if count == 1:
        return one(*xs)

    # The head's gradient is a sum over chunks: as the carry of a scan it is one [D, V] buffer, where
    # lax.map would return one per chunk.
    def accumulate(dhead_DV, x) -> tuple[Array, Array]:
        dhidden_BCD, dhead_part_DV = one(*x)
        return dhead_DV + dhead_part_DV, dhidden_BCD

    start_DV = jnp.zeros(head_shape, jnp.float32)
    dhead_DV, parts = jax.lax.scan(accumulate, start_DV, tuple(_split(x, count) for x in xs))
    return _join(parts, T), dhead_DV


# The KL divergence between two models at every position, over all tokens of the vocabulary and not the sampled one.


def token_kl_full(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    reference_BTE: Float[Array, "B T E"],
    reference_head_EV: Float[Array, "E V"],
    *,
    temperature: ScalarLike = 1.0,
    chunk: int = 128,
    softcap: float = 0.0,
    reference_softcap: float = 0.0,
) -> Float32[Array, "B T"]:
    """KL(pi || pi_ref) of the next token, sum over v of p_v (log p_v - log q_v), in nats, float32.

    Exact, where an estimate from the sampled token (`policy_gradient.token_kl`) is right on average, and on the
    policy's own samples alone. Both distributions are at the temperature. Settings are those of `token_logprobs`, and
    so is the memory: logits of both models exist for one chunk of positions at a time, forward and backward.
    Differentiable in `hidden` and `head`; the reference is a constant to differentiation.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    how = (chunk, softcap, reference_softcap)
    return _token_kl(hidden_BTD, head_DV, reference_BTE, reference_head_EV, temperature, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _token_kl(hidden_BTD, head_DV, reference_BTE, reference_head_EV, temperature, how) -> Array:
    return _kl_forward(hidden_BTD, head_DV, reference_BTE, reference_head_EV, temperature, how)[0]


def _log_ratio(hidden_BCD, head_DV, reference_BCE, reference_head_EV, temperature, how) -> tuple[Array, ...]:
    """(logits, probabilities, log p - log q) of the positions of a chunk."""
    logits_BCV = _logits(hidden_BCD, head_DV, temperature, how[1])
    logp_BCV = jax.nn.log_softmax(logits_BCV)
    logq_BCV = jax.nn.log_softmax(_logits(reference_BCE, reference_head_EV, temperature, how[2]))
    return logits_BCV, jnp.exp(logp_BCV), logp_BCV - logq_BCV


def _kl_forward(hidden_BTD, head_DV, reference_BTE, reference_head_EV, temperature, how) -> tuple:
    def one(hidden_BCD, reference_BCE) -> Array:
        _, p_BCV, ratio_BCV = _log_ratio(
            hidden_BCD, head_DV, reference_BCE, reference_head_EV, temperature, how
        )
        return jnp.sum(p_BCV * ratio_BCV, axis=-1)

    T = hidden_BTD.shape[1]
    count = _chunk_count(T, how[0])
    if count == 1:
        kl_BT = one(hidden_BTD, reference_BTE)
    else:
        xs = (_split(hidden_BTD, count), _split(reference_BTE, count))
        kl_BT = _join(jax.lax.map(lambda x: one(*x), xs), T)
    return kl_BT, (hidden_BTD, head_DV, reference_BTE, reference_head_EV, temperature, kl_BT)


def _kl_backward(how, residuals, dkl_BT) -> tuple:
    hidden_BTD, head_DV, reference_BTE, reference_head_EV, temperature, kl_BT = residuals
    dtype = jnp.result_type(hidden_BTD, head_DV)

    def one(hidden_BCD, reference_BCE, kl_BC, dkl_BC) -> tuple[Array, Array]:
        logits_BCV, p_BCV, ratio_BCV = _log_ratio(
            hidden_BCD, head_DV, reference_BCE, reference_head_EV, temperature, how
        )
        # d KL / dz_v = p_v (log p_v - log q_v - KL); the derivative of log p itself sums to 0.
        dlogits_BCV = dkl_BC[..., None] * p_BCV * (ratio_BCV - kl_BC[..., None])
        return _through_head(hidden_BCD, head_DV, logits_BCV, dlogits_BCV, temperature, how[1], dtype)

    xs = (hidden_BTD, reference_BTE, kl_BT, dkl_BT)
    dhidden_BTD, dhead_DV = _summed_over_chunks(one, xs, head_DV.shape, how[0])
    return dhidden_BTD.astype(hidden_BTD.dtype), dhead_DV.astype(head_DV.dtype), None, None, None


_token_kl.defvjp(_kl_forward, _kl_backward)


def _logits(hidden_BCD, head_DV, temperature, softcap) -> Array:
    logits_BCV = jnp.einsum("bcd,dv->bcv", hidden_BCD, head_DV, preferred_element_type=jnp.float32)
    if softcap:
        logits_BCV = softcap * jnp.tanh(logits_BCV / softcap)
    return logits_BCV / temperature


def _chunk_count(T: int, chunk: int) -> int:
    return max(1, -(-T // chunk))


def _split(x: Array, count: int) -> Array:
    """[B, T, ...] -> [count, B, ceil(T / count), ...], padded with zeros (whose cotangents are 0 too)."""
    B, T = x.shape[:2]
    size = -(-T // count)
    x = jnp.pad(x, ((0, 0), (0, count * size - T)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, count, size, *x.shape[2:]).swapaxes(0, 1)


def _join(x: Array, T: int) -> Array:
    """The inverse of `_split`."""
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
