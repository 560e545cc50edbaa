"""Divergences from a teacher against float64 NumPy, and the gradient of whole responses against an enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives.divergences import distillation_loss, token_divergence
from rlhf_jax.objectives.logprobs import Head, Ways

B, T, D, E, V, W = 3, 5, 4, 6, 7, 9  # E: the teacher's width, W: its tokens
TAU, CAP = 0.7, 3.0


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def draw():
    rng = np.random.default_rng(0)
    return [rng.normal(size=s) for s in ((B, T, D), (D, V), (B, T, E), (E, W), (B, T))]


def wanted(name, hidden, head, teacher, teacher_head):
    """In float64: the student's logits are capped, the teacher's not."""
    p = log_softmax(CAP * np.tanh(hidden @ head / CAP) / TAU)
    q = log_softmax(teacher @ teacher_head[:, :V] / TAU)

    def kl(a, b):
        return (np.exp(a) * (a - b)).sum(-1)

    m = np.log((np.exp(p) + np.exp(q)) / 2)
    return {"reverse_kl": kl(p, q), "forward_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[name]


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd"])
def test_divergence_and_gradient_are_those_of_numpy(name):
    hidden, head, teacher, teacher_head, weights = draw()

    def total(hidden, head, teacher, chunk, ways):
        given = Head(hidden, head, CAP, Ways(ways)), Head(teacher, jnp.float32(teacher_head))
        found = token_divergence(*given, divergence=name, temperature=TAU, chunk=chunk)
        return jnp.sum(found * weights), found

    for chunk, ways in ((2, 1), (100, 3)):
        grads, found = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(
            *map(jnp.float32, (hidden, head, teacher)), chunk, ways
        )
        np.testing.assert_allclose(
            found, wanted(name, hidden, head, teacher, teacher_head), rtol=2e-5, atol=1e-6
        )
        for i, grad in enumerate(grads[:2]):
            np.testing.assert_allclose(grad, slope(name, i, weights), rtol=1e-3, atol=1e-4)
        assert not np.asarray(grads[2]).any()  # nobody teaches the teacher


def slope(name, which, weights, step=1e-5):
    """Central differences of the weighted sum, in float64."""
    given = draw()[:4]
    found = np.zeros(given[which].shape)
    for at in np.ndindex(found.shape):
        ends = []
        for sign in (1, -1):
            moved = [x.copy() for x in given]
            moved[which][at] += sign * step
            ends.append((wanted(name, *moved) * weights).sum())
        found[at] = (ends[0] - ends[1]) / (2 * step)
    return found


def test_no_array_holds_all_logits():
    """Neither forward nor backward, with twelve positions of two rows in chunks of three."""
    long, many = 12, 50
    shapes = [jnp.zeros(s) for s in ((2, long, D), (D, many))]

    def total(hidden, head):
        return token_divergence(Head(hidden, head), Head(hidden, head + 1), chunk=3).sum()

    text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile().as_text()
    assert f"2,3,{many}" in text and f"2,12,{many}" not in text and f"4,2,3,{many}" not in text


# A policy over sequences of at most three of five tokens, of which 0 ends: a table of logits for every prefix.

TOKENS, LONGEST = 5, 3
PREFIXES = [p for n in range(LONGEST) for p in itertools.product(range(1, TOKENS), repeat=n)]
SEQUENCES = [(*p, 0) for p in PREFIXES] + [
    (*p, t) for p in PREFIXES if len(p) == LONGEST - 1 for t in range(1, TOKENS)
]


def sequence_kl(table, teacher):
    """KL(policy || teacher) of whole sequences, over all of them, in float64."""
    p, q = log_softmax(table), log_softmax(teacher)
    total = 0.0
    for sequence in SEQUENCES:
        at = [PREFIXES.index(sequence[:i]) for i in range(len(sequence))]
        logp, logq = (sum(x[row, token] for row, token in zip(at, sequence, strict=True)) for x in (p, q))
        total += np.exp(logp) * (logp - logq)
    return total


@pytest.mark.parametrize("credit", ["sequence", "token"])
def test_the_expected_gradient_is_that_of_the_kl_of_sequences(credit):
    rng = np.random.default_rng(1)
    table, teacher = rng.normal(size=(2, len(PREFIXES), TOKENS))
    rows = np.array([[PREFIXES.index(s[:i]) if i < len(s) else 0 for i in range(LONGEST)] for s in SEQUENCES])
    tokens = np.array([[*s, *[0] * (LONGEST - len(s))] for s in SEQUENCES])
    mask = np.array([[i < len(s) for i in range(LONGEST)] for s in SEQUENCES])
    logp = log_softmax(table)[rows, tokens]
    likelihood = np.exp(np.where(mask, logp, 0).sum(1))
    assert likelihood.sum() == pytest.approx(1)

    def expected(table):
        logp, logq = jax.nn.log_softmax(table), jax.nn.log_softmax(jnp.float32(teacher))
        apart = jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)

        def of_one(rows, tokens, mask):
            given = apart[rows][None], logp[rows, tokens][None], mask[None]
            return distillation_loss(*given, credit=credit)["loss"].sum

        return jnp.sum(jax.vmap(of_one)(rows, tokens, mask) * likelihood)

    value, grad = jax.value_and_grad(expected)(jnp.float32(table))
    exact = np.zeros(table.shape)
    for at in np.ndindex(table.shape):
        ends = []
        for sign in (1, -1):
            moved = table.copy()
            moved[at] += sign * 1e-5
            ends.append(sequence_kl(moved, teacher))
        exact[at] = (ends[0] - ends[1]) / 2e-5
    # The chain rule of the KL: of sequences it is the expected sum of those of the tokens.
    assert value == pytest.approx(sequence_kl(table, teacher), rel=1e-5)
    if credit == "sequence":
        np.testing.assert_allclose(grad, exact, atol=2e-6)
    else:
        # The last token has nothing behind it; before it both gradients differ.
        last = [i for i, p in enumerate(PREFIXES) if len(p) == LONGEST - 1]
        np.testing.assert_allclose(grad[np.array(last)], exact[last], atol=2e-6)
        assert np.abs(grad - exact).max() > 0.01


def test_means_are_over_tokens_or_over_responses():
    apart, logp = jnp.array([[1.0, 2.0, 4.0], [8.0, np.nan, np.nan]]), jnp.full((2, 3), -1.0)
    mask = jnp.array([[True] * 3, [True, False, False]])
    by_token, by_response = (
        {
            k: (float(m.sum), float(m.weight))
            for k, m in distillation_loss(apart, logp, mask, credit=c).items()
        }
        for c in ("token", "sequence")
    )
    assert by_token["loss"] == by_token["divergence"] == by_response["divergence"] == (15.0, 4.0)
    assert by_response["loss"] == (15.0, 2.0)
    with pytest.raises(ValueError, match="unknown credit"):
        distillation_loss(apart, logp, mask, credit="all")
