"""Chunked log-probs and entropies against dense float64 NumPy: values, gradients, memory."""

import functools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference
from quick import EIGHT

from rlhf_jax.objectives.logprobs import Ways, token_logprobs

score = jax.jit(token_logprobs, static_argnames="chunk")


def dense(hidden, head, targets, temperature=1.0):
    """(log-probs, entropies, all probabilities) in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64) / temperature
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(logp)
    return np.take_along_axis(logp, np.asarray(targets)[..., None], -1)[..., 0], -(p * logp).sum(-1), p


def dense_gradient(hidden, head, targets, weights, entropy_weights, temperature=1.0):
    """d sum(weights * logp + entropy_weights * entropy) / d (hidden, head), by the analytic formula."""
    _, entropy, p = dense(hidden, head, targets, temperature)
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    onehot = np.eye(head.shape[1])[np.asarray(targets)]
    dlogits = weights[..., None] * (onehot - p)
    dlogits -= entropy_weights[..., None] * p * (np.log(p) + entropy[..., None])
    dlogits /= temperature
    return dlogits @ head.T, np.einsum("btd,btv->dv", hidden, dlogits)


def example(seed, B, T, D, V, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    head = jnp.asarray(scale * rng.normal(size=(D, V)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), rng


def weighted_sum(weights, entropy_weights, targets, **options):
    def function(hidden, head):
        logprobs, entropy = token_logprobs(hidden, head, targets, **options)
        return jnp.sum(weights * logprobs + entropy_weights * entropy)

    return function


def test_the_oracle_gradient_is_a_gradient():
    hidden, head, targets, rng = example(0, 1, 2, 3, 4)
    w, e = rng.normal(size=(2, 1, 2))
    dhidden, dhead = dense_gradient(hidden, head, targets, w, e, 0.7)

    def total(hidden, head):
        logp, entropy, _ = dense(hidden, head, targets, 0.7)
        return (w * logp + e * entropy).sum()

    np.testing.assert_allclose(dhidden, central_difference(lambda x: total(x, head), hidden), atol=1e-8)
    np.testing.assert_allclose(dhead, central_difference(lambda x: total(hidden, x), head), atol=1e-8)


# One position, T < chunk, T = chunk, T % chunk == 0, ragged last chunk, chunk 1, V prime, V = 1.
SHAPES = [
    (1, 1, 1, 2, 128),
    (2, 5, 3, 17, 128),
    (2, 8, 4, 16, 8),
    (3, 12, 5, 31, 4),
    (2, 13, 4, 101, 5),
    (2, 7, 6, 23, 1),
    (1, 77, 2, 1003, 16),
    (2, 3, 4, 1, 2),
]


@pytest.mark.parametrize(("B", "T", "D", "V", "chunk"), SHAPES)
def test_values_and_gradients_equal_the_dense_ones(B, T, D, V, chunk):
    hidden, head, targets, rng = example(T * V, B, T, D, V)
    w, e = rng.normal(size=(2, B, T))
    temperature = 0.6
    options = {"temperature": temperature, "chunk": chunk}
    logprobs, entropy = score(hidden, head, targets, **options)
    assert logprobs.dtype == entropy.dtype == jnp.float32
    want_logprobs, want_entropy, _ = dense(hidden, head, targets, temperature)
    np.testing.assert_allclose(logprobs, want_logprobs, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(entropy, want_entropy, rtol=1e-5, atol=2e-6)
    function = weighted_sum(w.astype(np.float32), e.astype(np.float32), targets, **options)
    gradients = jax.jit(jax.grad(function, (0, 1)))(hidden, head)
    for got, want in zip(gradients, dense_gradient(hidden, head, targets, w, e, temperature), strict=True):
        # A sum over the vocabulary in float32: what its terms cancel to is as uncertain as the largest of them.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * max(1.0, np.abs(want).max()))


def test_chunks_change_nothing():
    hidden, head, targets, _ = example(3, 2, 10, 4, 50)
    for_chunk = {chunk: score(hidden, head, targets, chunk=chunk) for chunk in (1, 3, 10)}
    for chunk in (1, 3):
        np.testing.assert_allclose(for_chunk[chunk][0], for_chunk[10][0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(for_chunk[chunk][1], for_chunk[10][1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chunk", [4, 9])
def test_ways_change_nothing(chunk):
    hidden, head, targets, _ = example(4, 6, 9, 4, 50)
    whole, parted = (
        jax.jit(jax.value_and_grad(weighted_sum(1.0, 0.3, targets, chunk=chunk, ways=ways), (0, 1)))(
            hidden, head
        )
        for ways in (Ways(1), Ways(3))
    )
    for got, want in zip(jax.tree.leaves(parted), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@jax.jit
def head_gradient(hidden, head, targets):
    return jax.grad(lambda head: token_logprobs(hidden, head, targets, chunk=1)[0].sum())(head)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 0.999, 0.9999])
def test_confident_tokens_keep_their_precision(p):
    """log p and 1 - p are small differences of large numbers when p nears 1; logits here are around 20."""
    V, others = 64, 63
    target_logit = 20.0
    other_logit = target_logit - np.log(p * others / (1 - p))
    hidden, targets = jnp.ones((1, 1, 1)), jnp.array([[7]], jnp.int32)
    head = jnp.asarray(np.where(np.arange(V) == 7, target_logit, other_logit)[None], jnp.float32)
    want, want_entropy, probabilities = dense(hidden, head, targets)
    logprobs, entropy = score(hidden, head, targets)
    rtol = 1e-6 / (1 - p)  # 10 float32 roundings of 1, relative to 1 - p
    np.testing.assert_allclose(logprobs, want, rtol=rtol)
    np.testing.assert_allclose(entropy, want_entropy, rtol=rtol)
    dhead = head_gradient(hidden, head, targets)
    np.testing.assert_allclose(dhead[0, 7], 1 - probabilities[0, 0, 7], rtol=rtol)
    np.testing.assert_allclose(dhead[0, 8], -probabilities[0, 0, 8], rtol=1e-5)


def test_bfloat16_inputs_are_scored_in_float32_and_confident_gradients_survive():
    """Rounding softmax to bfloat16 before subtracting 1 loses a fifth of the gradient at p = .99."""
    V = 16
    hidden, targets = jnp.ones((1, 1, 1), jnp.bfloat16), jnp.array([[3]], jnp.int32)
    confident = np.where(np.arange(V) == 3, np.log(0.99 * (V - 1) / 0.01), 0.0)
    head = jnp.asarray(confident[None], jnp.bfloat16)
    logprobs, _ = score(hidden, head, targets)
    want, _, p = dense(np.ones((1, 1, 1)), np.asarray(head, np.float64), np.asarray(targets))
    np.testing.assert_allclose(logprobs, want, rtol=1e-4)
    dhead = head_gradient(hidden, head, targets)
    assert dhead.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(dhead, np.float64)[0, 3], 1 - p[0, 0, 3], rtol=2**-8)


def test_the_head_gradient_is_accumulated_in_float32():
    """A thousand equal bfloat16 contributions: a bfloat16 accumulator would stop growing after 256."""
    T, V = 1024, 8
    hidden, targets = jnp.ones((1, T, 1), jnp.bfloat16), jnp.zeros((1, T), jnp.int32)
    head = jnp.zeros((1, V), jnp.bfloat16)
    dhead = head_gradient(hidden, head, targets)
    np.testing.assert_allclose(np.asarray(dhead, np.float64)[0, 0], T * (1 - 1 / V), rtol=2**-8)


def test_log_probabilities_are_never_positive_and_huge_logits_stay_finite():
    hidden, head, _, _ = example(5, 4, 64, 8, 32, scale=1e4)
    best = jnp.asarray(np.argmax(np.asarray(hidden) @ np.asarray(head), -1))
    logprobs, entropy = score(hidden, head, best)
    assert np.max(logprobs) <= 0.0 and np.min(entropy) >= 0.0
    gradients = jax.jit(jax.grad(weighted_sum(1.0, 1.0, best), (0, 1)))(hidden, head)
    assert all(np.all(np.isfinite(x)) for x in (logprobs, entropy, *gradients))


def test_uniform_entropy_is_log_v():
    zeros = jnp.zeros((1, 3, 2))
    _, entropy = score(zeros, jnp.zeros((2, 100)), jnp.zeros((1, 3), jnp.int32), chunk=2)
    np.testing.assert_allclose(entropy, np.log(100), rtol=1e-6)


def test_one_compilation_serves_every_temperature():
    hidden, head, targets, _ = example(6, 2, 6, 3, 20)
    traced = jax.jit(lambda t: token_logprobs(hidden, head, targets, temperature=t, chunk=4))
    for temperature in (0.3, 1.0, 2.5):
        logprobs, entropy = traced(jnp.float32(temperature))
        want_logprobs, want_entropy, _ = dense(hidden, head, targets, temperature)
        np.testing.assert_allclose(logprobs, want_logprobs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(entropy, want_entropy, rtol=1e-5, atol=1e-6)
    assert traced._cache_size() == 1


def test_rows_do_not_see_each_other_and_positions_keep_their_place():
    hidden, head, targets, rng = example(7, 5, 9, 3, 12)
    whole = score(hidden, head, targets, chunk=4)
    order = rng.permutation(5)
    mixed = score(
        jnp.asarray(np.asarray(hidden)[order]), head, jnp.asarray(np.asarray(targets)[order]), chunk=4
    )
    for got, want in zip(mixed, whole, strict=True):
        np.testing.assert_allclose(got, np.asarray(want)[order], rtol=1e-6, atol=1e-7)
    padded = (jnp.asarray(np.pad(x, ((0, 0), (2, 3)) + ((0, 0),) * (x.ndim - 2))) for x in (hidden, targets))
    hidden, targets = padded
    shifted = score(hidden, head, targets, chunk=4)
    np.testing.assert_allclose(shifted[0][:, 2:-3], whole[0], rtol=1e-6, atol=1e-7)


def test_bad_arguments_are_named():
    hidden, head, targets, _ = example(8, 1, 2, 2, 3)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        token_logprobs(hidden, head, targets, chunk=0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        token_logprobs(hidden, head, targets, temperature=0.0)
    too_large = jnp.full_like(targets, 3)
    assert bool(jnp.all(jnp.isnan(score(hidden, head, too_large)[0])))


def largest_buffer(function, *arguments):
    """Elements of the largest array named anywhere in the compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    shapes = re.findall(r"\b(?:f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize(("T", "widest"), [(64, 16), (58, 15)])  # 4 chunks of at most 16
def test_no_buffer_of_the_whole_batch_of_logits_exists(T, widest):
    B, D, V, chunk = 2, 8, 512, 16
    hidden, head = jnp.zeros((B, T, D)), jnp.zeros((D, V))
    targets = jnp.zeros((B, T), jnp.int32)

    def loss(hidden, head):
        logprobs, entropy = token_logprobs(hidden, head, targets, chunk=chunk)
        return jnp.sum(logprobs), jnp.sum(entropy)

    def dense_loss(hidden, head):
        logp = jax.nn.log_softmax(hidden @ head)
        return jnp.sum(jnp.take_along_axis(logp, targets[..., None], -1)), 0.0

    gradient = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    assert largest_buffer(gradient(dense_loss), hidden, head) >= B * T * V  # the check can fail
    assert largest_buffer(gradient(loss), hidden, head) == B * widest * V


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from rlhf_jax.objectives.policy_gradient import whiten
from rlhf_jax.objectives.logprobs import token_logprobs
B, T, D, V = 8, 12, 8, 32
rng = np.random.default_rng(0)
hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, T, D), (D, V)))
targets, mask = jnp.asarray(rng.integers(0, V, (B, T))), jnp.asarray(rng.random((B, T)) < 0.7)
def f(hidden, head):
    logprobs, entropy = token_logprobs(hidden, head, targets, chunk=5)
    return jnp.sum(jnp.where(mask, logprobs + 0.1 * entropy, 0)), (logprobs, entropy, whiten(logprobs, mask))
g = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))
one = jax.tree.leaves(g(hidden, head))
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
put = lambda x, *names: jax.device_put(x, NamedSharding(mesh, P(*names)))
many = jax.tree.leaves(g(put(hidden, "fsdp"), put(head, "fsdp", "tensor")))
for a, b in zip(one, many, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
print("devices", jax.device_count())
"""


def test_eight_devices_agree_with_one():
    environment = os.environ | {
        "XLA_FLAGS": EIGHT,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "devices 8"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_capped_logits_have_the_values_and_gradients_of_autodiff(temperature):
    """Gemma 2's logits: cap * tanh(z / cap) before the temperature."""
    hidden, head, targets, rng = example(11, 2, 7, 5, 30)
    w, e = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 2, 7)))
    cap = 2.0

    def plain(hidden, head):
        logits = cap * jnp.tanh(hidden @ head / cap) / temperature
        logp = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
        return jnp.sum(w * jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] + e * entropy)

    ours = weighted_sum(w, e, targets, temperature=temperature, chunk=3, softcap=cap)
    np.testing.assert_allclose(ours(hidden, head), plain(hidden, head), rtol=1e-5)
    for got, want in zip(
        jax.grad(ours, (0, 1))(hidden, head), jax.grad(plain, (0, 1))(hidden, head), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=2e-5)
