"""The exact KL between two models' distributions against dense float64 NumPy: values, gradients, chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference

from rlhf_jax.objectives.logprobs import token_kl_full

B, T, D, E, V = 2, 7, 5, 3, 23
SOFTCAPS = {"softcap": 2.0, "reference_softcap": 3.0}


def log_softmax(hidden, head, temperature, softcap):
    z = np.float64(hidden) @ np.float64(head)
    z = (softcap * np.tanh(z / softcap) if softcap else z) / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def dense(hidden, head, other, other_head, temperature, softcap=0.0, reference_softcap=0.0):
    logp = log_softmax(hidden, head, temperature, softcap)
    logq = log_softmax(other, other_head, temperature, reference_softcap)
    return (np.exp(logp) * (logp - logq)).sum(-1)


def example():
    rng = np.random.default_rng(0)
    return [rng.normal(size=s) for s in ((B, T, D), (D, V), (B, T, E), (E, V))], rng.normal(size=(B, T))


@pytest.mark.parametrize(("chunk", "caps"), [(16, {}), (3, {}), (3, SOFTCAPS)])
def test_values_and_gradients_equal_the_dense_ones(chunk, caps):
    arrays, weights = example()
    given = [jnp.asarray(x, jnp.float32) for x in arrays]

    def total(*x):
        kl = token_kl_full(*x, temperature=0.7, chunk=chunk, **caps)
        return jnp.sum(weights.astype(np.float32) * kl), kl

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(*given)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, dense(*arrays, 0.7, **caps), rtol=1e-5, atol=1e-6)
    hidden, head, *other = arrays
    wanted = [
        central_difference(lambda x: (weights * dense(x, head, *other, 0.7, **caps)).sum(), hidden),
        central_difference(lambda x: (weights * dense(hidden, x, *other, 0.7, **caps)).sum(), head),
        *map(np.zeros_like, other),  # the reference is not taught
    ]
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_of_a_model_with_itself_it_is_zero_and_so_is_its_gradient():
    (hidden, head, *_), _ = example()
    hidden, head = jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32)
    kl = token_kl_full(hidden, head, hidden, head, chunk=3)
    gradient = jax.grad(lambda x: token_kl_full(x, head, hidden, head, chunk=3).sum())(hidden)
    assert not np.any(kl) and not np.any(gradient)


def test_no_chunk_is_refused():
    arrays, _ = example()
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        token_kl_full(*(jnp.asarray(x, jnp.float32) for x in arrays), chunk=0)
