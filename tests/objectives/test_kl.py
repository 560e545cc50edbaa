"""KL estimators: bias and gradient on a known categorical. KL controllers: the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import number, prefix_mask

from rlhf_jax.objectives import policy_gradient
from rlhf_jax.objectives.reduce import value

TOKEN_KL = jax.jit(policy_gradient.token_kl, static_argnames="estimator")
SEQUENCE_KL = jax.jit(policy_gradient.sequence_kl)


def categorical(seed, V=7):
    rng = np.random.default_rng(seed)
    policy, reference = (np.exp(z) / np.exp(z).sum() for z in rng.normal(size=(2, V)))
    return policy, reference


@pytest.mark.parametrize("estimator", policy_gradient.ESTIMATORS)
def test_estimators_follow_their_formulas_and_are_zero_at_pads(estimator):
    rng = np.random.default_rng(0)
    policy, reference = -rng.exponential(size=(2, 3, 5))
    mask = prefix_mask([5, 2, 0], 5)
    d = policy - reference
    want = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[estimator]
    policy[~mask], reference[~mask] = np.nan, np.inf
    policy, reference = (jnp.asarray(x, jnp.float32) for x in (policy, reference))
    # Not jitted: XLA rewrites some products with a mask into selections, which would hide a NaN * 0.
    got = policy_gradient.token_kl(policy, reference, jnp.asarray(mask), estimator=estimator)
    np.testing.assert_allclose(got, np.where(mask, want, 0.0), rtol=2e-5, atol=1e-6)
    assert got.dtype == jnp.float32


def expectation(estimator, policy, reference):
    """Exact mean of the estimator over tokens drawn from the policy."""
    logs = (jnp.log(jnp.asarray(p[None], jnp.float32)) for p in (policy, reference))
    sampled = TOKEN_KL(*logs, jnp.ones((1, len(policy)), bool), estimator=estimator)
    return float((policy * np.asarray(sampled, np.float64)[0]).sum())


@pytest.mark.parametrize("seed", range(3))
def test_k1_and_k3_are_unbiased_k3_is_never_negative_and_the_clamped_k1_is_biased(seed):
    policy, reference = categorical(seed)
    d = np.log(policy / reference)
    exact = float((policy * d).sum())
    assert expectation("k1", policy, reference) == pytest.approx(exact, abs=1e-6)
    assert expectation("k3", policy, reference) == pytest.approx(exact, abs=1e-6)
    assert (policy * np.maximum(d, 0)).sum() > exact + 0.05  # what AlpacaFarm adds up
    assert float((policy * d).min()) < 0  # k1 of single tokens has either sign
    tokens = (jnp.log(jnp.asarray(p[None], jnp.float32)) for p in (policy, reference))
    assert np.min(TOKEN_KL(*tokens, jnp.ones((1, 7), bool), estimator="k3")) >= 0.0


def test_as_a_loss_only_k2_has_the_gradient_of_the_kl():
    policy, reference = categorical(4)
    d = np.log(policy / reference)
    exact = (policy * d).sum()
    reverse = policy * (d - exact)  # d KL(policy || reference) / d logits
    forward = policy - reference  # d KL(reference || policy) / d logits
    logits = jnp.log(jnp.asarray(policy, jnp.float32))

    def surrogate(logits, estimator):
        logp = jax.nn.log_softmax(logits)[None]
        ref = jnp.log(jnp.asarray(reference, jnp.float32))[None]
        sampled = policy_gradient.token_kl(logp, ref, jnp.ones((1, 7), bool), estimator=estimator)
        return jnp.sum(jnp.asarray(policy, jnp.float32) * sampled[0])  # samples held fixed

    gradient = jax.jit(jax.grad(surrogate), static_argnums=1)
    np.testing.assert_allclose(gradient(logits, "k1"), np.zeros(7), atol=1e-6)
    np.testing.assert_allclose(gradient(logits, "k2"), reverse, atol=1e-6)
    np.testing.assert_allclose(gradient(logits, "k3"), forward, atol=1e-6)
    assert np.abs(reverse - forward).max() > 0.01


def test_unknown_estimator_lists_the_known_ones():
    x = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="unknown KL estimator 'kl3'; choose one of k1, k2, k3"):
        policy_gradient.token_kl(x, x, jnp.ones((1, 1), bool), estimator="kl3")


def test_sequence_kl_sums_tokens_and_averages_rows_that_have_any():
    per_token = jnp.array([[1.0, 2.0, np.nan], [0.5, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    mean = SEQUENCE_KL(per_token, jnp.asarray(prefix_mask([2, 1, 0], 3)))
    assert number(mean) == (3.0 + 0.5) / 2 and float(mean.weight) == 2.0
    assert float(value(SEQUENCE_KL(per_token, jnp.zeros((3, 3), bool)))) == 0.0


@pytest.mark.parametrize(
    ("measured", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 0.1),
        (60.0, 1 + 0.1 * 0.2),
        (5.7, 1 - 0.1 * 0.05),
        (0.0, 1 - 0.1 * 0.2),
        (-3.0, 0.98),
    ],
)
def test_adaptive_controller_is_alpaca_farms_formula(measured, factor):
    got = policy_gradient.adaptive_kl_coef(0.2, measured, target=6.0, responses=512, horizon=5120)
    assert float(got) == pytest.approx(0.2 * factor, rel=1e-6)


def test_adaptive_controller_counts_its_horizon_in_responses_as_ziegler_and_trl_do():
    rows, horizon, coefficient = 512, 10_000, 0.15
    want = coefficient * (1 + np.clip(9.0 / 6.0 - 1, -0.2, 0.2) * rows / horizon)
    got = policy_gradient.adaptive_kl_coef(
        jnp.float32(coefficient), jnp.float32(9.0), target=6.0, responses=rows, horizon=horizon
    )
    assert float(got) == pytest.approx(want, rel=1e-6)


def test_adaptive_controller_settles_on_its_target():
    """A policy whose KL falls as its price rises: the controller finds the price of the target."""
    coefficient, controller = jnp.float32(1.0), jax.jit(policy_gradient.adaptive_kl_coef)
    for _ in range(400):
        coefficient = controller(coefficient, 2.0 / coefficient, target=6.0, responses=512, horizon=5120)
    assert 2.0 / float(coefficient) == pytest.approx(6.0, rel=1e-3)
