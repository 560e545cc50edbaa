"""Learning from a teacher's distributions: divergences over the whole vocabulary, a chunk of positions at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rlhf_jax.objectives.logprobs import (
    Head,
    chunk_count,
    chunk_logits,
    join_chunks,
    split_chunks,
    way_copies,
)
from rlhf_jax.objectives.reduce import Mean, masked_mean

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
CREDITS = ("token", "sequence")


def token_divergence(
    student: Head,
    teacher: Head,
    *,
    divergence: str = "reverse_kl",
    temperature: float = 1.0,
    chunk: int = 128,
) -> Float32[Array, "B T"]:
    """The divergence of the student's distribution from the teacher's at each position, in nats, float32.

    With p the student's and q the teacher's, both softmax(logits / temperature): reverse_kl is KL(p || q), forward_kl
    is KL(q || p), jsd is (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 (Agarwal et al. 2024, GKD, eq. 1 at
    beta 1/2). A teacher with more tokens than the student is renormalised over the student's. At most two arrays
    [B, chunk, V] of logits exist, in the backward pass too, which makes them again. No gradient reaches the teacher.

    Raises:
      ValueError: for an unknown divergence.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; choose one of {', '.join(DIVERGENCES)}")
    V, T = student.head_DV.shape[1], student.hidden_BTD.shape[1]
    teacher_BTD, teacher_DV = jax.lax.stop_gradient((teacher.hidden_BTD, teacher.head_DV[:, :V]))
    # In float32 outside of the loop and cast inside: so the head's gradient is summed over chunks in float32. And for
    # the rows of each device its own: so it is summed over devices once, and not with every chunk.
    dtype, head_xDV = student.head_DV.dtype, student.head_DV.astype(jnp.float32)
    if student.ways.count > 1:
        head_xDV = way_copies(head_xDV, student.ways)

    @jax.checkpoint
    def one(head_xDV: Array, hidden_BCD: Array, teacher_BCD: Array) -> Array:
        logp_BCV = _logprobs(hidden_BCD, head_xDV.astype(dtype), student.softcap, temperature)
        logq_BCV = _logprobs(teacher_BCD, teacher_DV, teacher.softcap, temperature)
        return _of_distributions(logp_BCV, logq_BCV, divergence)

    count = chunk_count(T, chunk)
    xs = (split_chunks(student.hidden_BTD, count), split_chunks(teacher_BTD, count))
    return join_chunks(jax.lax.map(lambda x: one(head_xDV, *x), xs), T)


def distillation_loss(
    divergence_BR: Float[Array, "B R"],
    logprobs_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    credit: str = "token",
) -> dict[str, Mean]:
    """The loss of responses that the student has sampled.

    divergence_BR: of `token_divergence` at the positions of their tokens. logprobs_BR: of the tokens themselves.

    credit "token": the mean over tokens. Its gradient moves each distribution towards the teacher's where the student
    has come to, and is not responsible for where it comes to (GKD; the sampling is a constant).
    credit "sequence": the mean over responses of the sum over tokens, an unbiased estimate of the divergence of whole
    responses: for reverse_kl, KL(p || q) of sequences. To the gradient of each position it adds
    grad log p(token) * (the divergences that follow), which is what that token is responsible for; the sum is then an
    unbiased gradient, too (MiniLLM's decomposition, Gu et al. 2024, eq. 3, with every single step in full). That holds
    while the student is the one that sampled, which is so in the first update on a rollout.

    Raises:
      ValueError: for an unknown credit.
    """
    if credit not in CREDITS:
        raise ValueError(f"unknown credit {credit!r}; choose one of {', '.join(CREDITS)}")
    at_BR, logprobs_BR = (
        jnp.where(mask_BR, x.astype(jnp.float32), 0.0) for x in (divergence_BR, logprobs_BR)
    )
    per_token = masked_mean(at_BR, mask_BR)
    if credit == "token":
        return {"loss": per_token, "divergence": per_token}
    constant = jax.lax.stop_gradient
    later_BR = jnp.cumsum(at_BR[:, ::-1], axis=1)[:, ::-1] - at_BR
    # The second factor is 0 with the gradient of the log-prob: the loss that is shown stays the divergence.
    blame_BR = constant(later_BR) * (logprobs_BR - constant(logprobs_BR))
    per_response = masked_mean(jnp.sum(at_BR + blame_BR, axis=1), jnp.any(mask_BR, axis=1))
    return {"loss": per_response, "divergence": per_token}


def _logprobs(hidden_BCD: Array, head_xDV: Array, softcap: float, temperature: float) -> Array:
    return jax.nn.log_softmax(chunk_logits(hidden_BCD, head_xDV, temperature, softcap))


def _of_distributions(logp_BCV: Array, logq_BCV: Array, divergence: str) -> Array:
    if divergence == "reverse_kl":
        return _kl(logp_BCV, logq_BCV)
    if divergence == "forward_kl":
        return _kl(logq_BCV, logp_BCV)
    logm_BCV = jnp.logaddexp(logp_BCV, logq_BCV) - jnp.log(2.0)
    return (_kl(logp_BCV, logm_BCV) + _kl(logq_BCV, logm_BCV)) / 2


def _kl(log_one_BCV: Array, log_other_BCV: Array) -> Array:
    return jnp.sum(jnp.exp(log_one_BCV) * (log_one_BCV - log_other_BCV), axis=-1)
