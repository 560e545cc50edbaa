"""Means that are divided once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives.reduce import Mean, add, masked_mean, value

MEAN = jax.jit(masked_mean)
VALUE = jax.jit(value)
# Not jitted: XLA rewrites some products with a mask into selections, which would hide a NaN * 0.
VALUE_AND_GRADIENT = jax.value_and_grad(lambda x, mask: value(masked_mean(x, mask)))


def test_masked_mean_keeps_sum_and_weight_apart():
    x = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    mean = MEAN(x, mask)
    assert (float(mean.sum), float(mean.weight)) == (7.0, 3.0)
    assert float(VALUE(mean)) == pytest.approx(7 / 3)


def test_weights_weigh():
    mean = MEAN(jnp.array([1.0, 10.0, 100.0]), jnp.array([2.0, 0.5, 0.0]))
    assert (float(mean.sum), float(mean.weight)) == (7.0, 2.5)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_what_is_masked_reaches_neither_value_nor_gradient(junk):
    x = jnp.array([1.0, junk, 3.0])
    mask = jnp.array([True, False, True])
    result, gradient = VALUE_AND_GRADIENT(x, mask)
    assert float(result) == 2.0
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


def test_nothing_counted_is_zero_with_zero_gradient():
    mask = jnp.zeros(3, bool)
    result, gradient = VALUE_AND_GRADIENT(jnp.ones(3), mask)
    assert float(result) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(3))
    assert float(jax.grad(lambda total: value(Mean(total, jnp.float32(0.0))))(1.0)) == 0.0


def test_integers_booleans_and_bfloat16_are_summed_in_float32():
    ones = jnp.ones(1000, jnp.bfloat16)  # bfloat16 cannot count past 256
    assert float(MEAN(ones, jnp.ones(1000, bool)).sum) == 1000.0
    truths = jnp.array([True, False, True])
    assert float(VALUE(MEAN(truths, jnp.ones(3, bool)))) == pytest.approx(2 / 3)
    mean = MEAN(jnp.arange(4), jnp.ones(4, bool))
    assert mean.sum.dtype == mean.weight.dtype == jnp.float32


def test_add_of_means_is_the_mean_of_the_whole_and_mean_of_means_is_not():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(4, 6)), np.arange(6) < np.array([6, 5, 1, 2])[:, None]
    top, bottom = (MEAN(jnp.asarray(x[s]), jnp.asarray(mask[s])) for s in (slice(0, 2), slice(2, 4)))
    assert float(VALUE(add(top, bottom))) == pytest.approx(x[mask].mean(), rel=1e-6)
    assert abs((float(VALUE(top)) + float(VALUE(bottom))) / 2 - x[mask].mean()) > 1e-3


def test_add_works_on_dicts_of_means_and_under_jit():
    metrics = {
        "loss": Mean(jnp.float32(1.0), jnp.float32(2.0)),
        "kl": Mean(jnp.float32(3.0), jnp.float32(4.0)),
    }
    total = jax.jit(add)(metrics, metrics)
    assert float(total["loss"].sum) == 2.0 and float(total["kl"].weight) == 8.0
    assert isinstance(total["loss"], Mean)
