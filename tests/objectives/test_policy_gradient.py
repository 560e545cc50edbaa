"""PPO's losses in closed form: both signs of the advantage, at step 0, clipped, padded, cut in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference, number, prefix_mask, split_and_add

from rlhf_jax.objectives.policy_gradient import explained_variance, policy_loss, value_loss

POLICY = jax.jit(policy_loss)
VALUE = jax.jit(value_loss)
POLICY_GRADIENT = jax.jit(
    jax.grad(lambda *a, clip: policy_loss(*a, clip=clip)["loss"].sum, argnums=(0, 1, 2))
)
VALUE_GRADIENT = jax.jit(jax.grad(lambda *a, clip: value_loss(*a, clip=clip)["loss"].sum, argnums=(0, 1, 2)))
EXPLAINED = jax.jit(explained_variance)
B, R = 6, 9
MASK = prefix_mask([9, 1, 4, 0, 8, 2], R)


def array(x):
    return jnp.asarray(x, jnp.float32)


def policy_example(seed, spread=0.5):
    rng = np.random.default_rng(seed)
    new = -rng.exponential(size=(B, R))
    return new, new + spread * rng.normal(size=(B, R)), rng.normal(size=(B, R))


def value_example(seed):
    return np.random.default_rng(seed).normal(size=(3, B, R))


def poisoned(*arrays):
    """float32, with different junk at every pad."""
    junk = (np.nan, -np.inf, 1e30)
    return [array(np.where(MASK, x, j)) for x, j in zip(arrays, junk, strict=True)]


# --- policy loss


def brute_policy(new, old, advantages, clip):
    ratio = np.exp(new - old)[MASK]
    plain = -advantages[MASK] * ratio
    clipped = -advantages[MASK] * np.clip(ratio, 1 - clip, 1 + clip)
    return np.maximum(plain, clipped), clipped > plain, ratio


def test_policy_loss_and_metrics_over_real_tokens_only():
    new, old, advantages = policy_example(0)
    metrics = POLICY(*poisoned(new, old, advantages), jnp.asarray(MASK), clip=0.2)
    losses, clipped, ratio = brute_policy(new, old, advantages, 0.2)
    want = {
        "loss": losses.mean(),
        "policy/approxkl": 0.5 * ((new - old)[MASK] ** 2).mean(),
        "policy/clipfrac": clipped.mean(),
        "policy/ratio": ratio.mean(),
    }
    assert set(metrics) == set(want) and 0 < want["policy/clipfrac"] < 1
    for name, wanted in want.items():
        assert number(metrics[name]) == pytest.approx(wanted, rel=1e-5), name
        assert float(metrics[name].weight) == MASK.sum()


def test_policy_gradient_by_finite_differences_reaches_only_the_new_log_probs():
    new, old, advantages = policy_example(1)
    got = POLICY_GRADIENT(*poisoned(new, old, advantages), jnp.asarray(MASK), clip=0.2)
    want = central_difference(lambda x: brute_policy(x, old, advantages, 0.2)[0].sum(), new)
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
    assert not np.asarray(got[0])[~MASK].any()
    assert not np.any(got[1]) and not np.any(got[2])  # the rollout's numbers are constants


def test_before_the_first_update_the_ratio_is_one_and_the_loss_is_minus_the_mean_advantage():
    _, old, advantages = policy_example(2)
    old, _, advantages = poisoned(old, old, advantages)
    metrics = POLICY(old, old, advantages, jnp.asarray(MASK), clip=0.2)
    assert number(metrics["policy/ratio"]) == 1.0
    assert number(metrics["policy/approxkl"]) == number(metrics["policy/clipfrac"]) == 0.0
    assert number(metrics["loss"]) == pytest.approx(-np.asarray(advantages)[MASK].mean(), rel=1e-5)
    gradient = POLICY_GRADIENT(old, old, advantages, jnp.asarray(MASK), clip=0.2)[0]
    np.testing.assert_allclose(np.asarray(gradient)[MASK], -np.asarray(advantages)[MASK], rtol=1e-6)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [  # slope: d loss / d log-prob = -A r where it flows
        (2.0, 1.1, -2.2, -2.2),  # inside the clip range
        (2.0, 1.5, -2.4, 0.0),  # good and already likelier: stop
        (2.0, 0.5, -1.0, -1.0),  # good but less likely: pull back, unclipped
        (-2.0, 1.5, 3.0, 3.0),  # bad and likelier: push away, unclipped
        (-2.0, 0.5, 1.6, 0.0),  # bad and already less likely: stop
        (-2.0, 0.9, 1.8, 1.8),
    ],
)
def test_clipping_stops_the_gradient_for_both_signs_of_the_advantage(advantage, ratio, loss, slope):
    arguments = (array([[np.log(ratio)]]), array([[0.0]]), array([[advantage]]), jnp.ones((1, 1), bool))
    metrics = POLICY(*arguments, clip=0.2)
    assert number(metrics["loss"]) == pytest.approx(loss, rel=1e-6)
    assert number(metrics["policy/clipfrac"]) == float(slope == 0.0)
    gradient = POLICY_GRADIENT(*arguments, clip=0.2)[0]
    assert float(gradient[0, 0]) == pytest.approx(slope, rel=1e-6)


# --- value loss


def brute_value(values, old, returns, clip):
    near = np.clip(values, old - clip, old + clip)
    plain, clipped = (values - returns)[MASK] ** 2, (near - returns)[MASK] ** 2
    return 0.5 * np.maximum(plain, clipped), clipped > plain


def test_value_loss_and_clipfrac_over_real_tokens_only():
    values, old, returns = value_example(3)
    metrics = VALUE(*poisoned(values, old, returns), jnp.asarray(MASK), clip=0.2)
    losses, clipped = brute_value(values, old, returns, 0.2)
    assert number(metrics["loss"]) == pytest.approx(losses.mean(), rel=1e-5)
    assert number(metrics["val/clipfrac"]) == pytest.approx(clipped.mean(), rel=1e-5)
    assert 0 < clipped.mean() < 1


def test_value_gradient_by_finite_differences_reaches_only_the_values():
    values, old, returns = value_example(4)
    got = VALUE_GRADIENT(*poisoned(values, old, returns), jnp.asarray(MASK), clip=0.2)
    want = central_difference(lambda x: brute_value(x, old, returns, 0.2)[0].sum(), values)
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
    assert not np.asarray(got[0])[~MASK].any()
    assert not np.any(got[1]) and not np.any(got[2])


def test_values_that_have_not_moved_far_are_not_called_clipped():
    """Any rounding in the clipped path would show as a spurious clip fraction near one half."""
    rng = np.random.default_rng(5)
    old, returns = 100 * rng.normal(size=(2, B, R))
    values = old + 0.1 * rng.random((B, R))
    mask = jnp.ones((B, R), bool)
    metrics = VALUE(array(values), array(old), array(returns), mask, clip=0.2)
    assert number(metrics["val/clipfrac"]) == 0.0
    gradient = VALUE_GRADIENT(array(values), array(old), array(returns), mask, clip=0.2)[0]
    np.testing.assert_allclose(gradient, values - returns, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "old", "ret", "loss", "slope"),
    [
        (0.1, 0.0, 1.0, 0.5 * 0.81, -0.9),  # inside the clip range
        (0.5, 0.0, 1.0, 0.5 * 0.64, 0.0),  # moved enough towards the return: stop
        (-0.5, 0.0, 1.0, 0.5 * 2.25, -1.5),  # moved the wrong way: pull back, unclipped
        (2.0, 0.0, 1.0, 0.5 * 1.0, 1.0),  # overshot further than the clipped value is short: pull back
    ],
)
def test_value_clipping(value, old, ret, loss, slope):
    arguments = (*(array([[x]]) for x in (value, old, ret)), jnp.ones((1, 1), bool))
    metrics = VALUE(*arguments, clip=0.2)
    assert number(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert number(metrics["val/clipfrac"]) == float(slope == 0.0)
    assert float(VALUE_GRADIENT(*arguments, clip=0.2)[0][0, 0]) == pytest.approx(slope, rel=1e-5)


# --- both


@pytest.mark.parametrize("losses", ["policy", "value"])
def test_pads_row_order_and_micro_batches_do_not_matter(losses):
    function, example = (POLICY, policy_example) if losses == "policy" else (VALUE, value_example)
    rows = [*poisoned(*example(6)), jnp.asarray(MASK)]
    whole = function(*rows, clip=0.2)
    order = np.random.default_rng(7).permutation(B)
    mixed = function(*(jnp.asarray(np.asarray(x)[order]) for x in rows), clip=0.2)
    wide = function(*(jnp.asarray(np.pad(np.asarray(x), ((0, 2), (3, 1)))) for x in rows), clip=0.2)
    parts = split_and_add(lambda *rows: function(*rows, clip=0.2), rows, cut=4)
    for name, mean in whole.items():
        for other in (mixed[name], wide[name], parts[name]):
            np.testing.assert_allclose(mean, other, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_batch_without_real_tokens_has_no_loss_and_no_gradient():
    rows, nothing = [jnp.full((B, R), np.nan)] * 3, jnp.zeros((B, R), bool)
    for function, gradient in ((POLICY, POLICY_GRADIENT), (VALUE, VALUE_GRADIENT)):
        metrics = function(*rows, nothing, clip=0.2)
        assert all(float(m.sum) == float(m.weight) == 0.0 for m in metrics.values())
        assert not np.any(gradient(*rows, nothing, clip=0.2)[0])


# --- explained variance


def test_explained_variance_over_real_tokens():
    values, returns, _ = value_example(8)
    want = 1 - (returns - values)[MASK].var() / returns[MASK].var()
    got = EXPLAINED(*poisoned(values, returns, returns)[:2], jnp.asarray(MASK))
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_explained_variance_of_perfect_constant_and_shifted_values():
    _, returns, _ = value_example(9)
    mask = jnp.asarray(MASK)
    assert float(EXPLAINED(array(returns), array(returns), mask)) == 1.0
    assert float(EXPLAINED(array(returns + 5), array(returns), mask)) == pytest.approx(1.0, abs=1e-5)
    assert float(EXPLAINED(array(np.zeros((B, R))), array(returns), mask)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e6])
def test_explained_variance_of_returns_that_do_not_vary_is_zero(level):
    values, _, _ = value_example(10)
    assert float(EXPLAINED(array(values), array(np.full((B, R), level)), jnp.asarray(MASK))) == 0.0
    assert float(EXPLAINED(array(values), array(values), jnp.zeros((B, R), bool))) == 0.0
