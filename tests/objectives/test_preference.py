"""Bradley-Terry against float64 NumPy and a published golden value; sequence log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference, number, split_and_add

from rlhf_jax.objectives.preference import bradley_terry, sequence_logprob

BT = jax.jit(bradley_terry)
BT_GRADIENT = jax.jit(jax.grad(lambda *args: bradley_terry(*args)["loss"].sum, argnums=(0, 1)))


def array(x):
    return jnp.asarray(x, jnp.float32)


def softplus(x):
    return np.logaddexp(0.0, x)


# --- sequence log-probabilities


def test_sequence_logprob_is_the_sum_over_real_tokens_whatever_stands_at_pads():
    logprobs = array([[-1.0, -2.0, np.nan], [-np.inf, -3.0, -4.0], [np.nan, np.nan, np.nan]])
    mask = jnp.array([[True, True, False], [False, True, True], [False, False, False]])
    total, gradient = jax.jit(jax.value_and_grad(lambda x: sequence_logprob(x, mask).sum()))(logprobs)
    np.testing.assert_array_equal(sequence_logprob(logprobs, mask), [-3.0, -7.0, 0.0])
    assert float(total) == -10.0
    np.testing.assert_array_equal(gradient, np.asarray(mask, np.float32))


# --- Bradley-Terry


def test_bradley_terry_value_gradient_and_metrics():
    rng = np.random.default_rng(0)
    chosen, rejected = 3 * rng.normal(size=(2, 8))
    weight = np.array([1.0, 1.0, 0.0, 2.0, 0.5, 1.0, 0.0, 1.0])

    def loss(chosen, rejected):
        return float((weight * softplus(rejected - chosen)).sum())

    metrics = BT(array(chosen), array(rejected), array(weight))
    mean = lambda x: (weight * x).sum() / weight.sum()  # noqa: E731
    np.testing.assert_allclose(number(metrics["loss"]), loss(chosen, rejected) / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(number(metrics["rewards/chosen"]), mean(chosen), rtol=1e-5)
    np.testing.assert_allclose(number(metrics["rewards/rejected"]), mean(rejected), rtol=1e-5)
    np.testing.assert_allclose(number(metrics["rewards/margins"]), mean(chosen - rejected), rtol=1e-5)
    np.testing.assert_allclose(number(metrics["rewards/accuracies"]), mean(chosen > rejected), rtol=1e-5)
    got = BT_GRADIENT(array(chosen), array(rejected), array(weight))
    np.testing.assert_allclose(got[0], central_difference(lambda x: loss(x, rejected), chosen), atol=1e-6)
    np.testing.assert_allclose(got[1], central_difference(lambda x: loss(chosen, x), rejected), atol=1e-6)


def test_sparse_feedback_golden_value():
    rewards = array([1.2, 0.4, -0.1, 0.3, 0.8, 0.8])  # better, worse, better, worse, ...
    metrics = BT(rewards[::2], rewards[1::2], jnp.ones(3))
    assert number(metrics["loss"]) == pytest.approx(0.6590876996358919, rel=1e-6)
    assert number(metrics["rewards/accuracies"]) == pytest.approx(1 / 3)  # the tie is not accurate


@pytest.mark.parametrize("margin", [-200.0, -90.0, 90.0, 200.0])
def test_extreme_margins_neither_overflow_nor_lose_their_gradient(margin):
    arguments = (array([margin]), array([0.0]), jnp.ones(1))
    assert number(BT(*arguments)["loss"]) == pytest.approx(max(-margin, 0.0), abs=1e-6)
    assert float(BT_GRADIENT(*arguments)[0][0]) == pytest.approx(-1.0 if margin < 0 else 0.0, abs=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_rows_of_weight_zero_count_nowhere(junk):
    clean = (array([1.0, 2.0]), array([0.5, 3.0]), jnp.ones(2))
    filled = (array([1.0, junk, 2.0]), array([0.5, junk, 3.0]), array([1.0, 0.0, 1.0]))
    want, got = BT(*clean), BT(*filled)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    for gradient in BT_GRADIENT(*filled):
        assert gradient[1] == 0.0 and np.all(np.isfinite(gradient))
    nothing = BT(*filled[:2], jnp.zeros(3, bool))
    assert all(float(m.sum) == float(m.weight) == 0.0 for m in nothing.values())


def test_rows_are_a_set_and_micro_batches_add_up():
    rng = np.random.default_rng(3)
    rows = [array(-20 * rng.random(8)) for _ in range(2)] + [array(rng.integers(0, 2, 8))]
    order = rng.permutation(8)
    whole, mixed = BT(*rows), BT(*(array(np.asarray(r)[order]) for r in rows))
    parts = split_and_add(BT, rows, cut=3)
    for name, mean in whole.items():
        np.testing.assert_allclose(mean, mixed[name], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(mean, parts[name], rtol=1e-5, atol=1e-6, err_msg=name)
