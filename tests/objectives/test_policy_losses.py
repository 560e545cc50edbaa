"""The composed policy loss against float64 NumPy: every combination, its gradient, and what must not matter."""

import itertools
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference, number, prefix_mask, split_and_add

from rlhf_jax.objectives import policy_losses
from rlhf_jax.objectives.policy_gradient import policy_loss
from rlhf_jax.objectives.policy_losses import (
    PolicyLoss,
    composed_policy_loss,
    kl_losses,
    log_ratio,
    sampler_weights,
)

B, R, MOST = 6, 7, 10
MASK = prefix_mask([7, 1, 4, 0, 6, 2], R)
CLIPS = {"ppo": (0.2, 0.3, 0.0), "dual": (0.2, 0.3, 1.6), "cispo": (0.4, 0.5, 0.0)}


def how_of(ratio, clipping, aggregation, **changes):
    low, high, dual = CLIPS[clipping]
    clipping = "cispo" if clipping == "cispo" else "ppo"
    return PolicyLoss(ratio, clipping, low, high, dual, aggregation, MOST)._replace(**changes)


def example(seed=0):
    """(new, old, advantages, weights, reference): ratios far enough from 1 that all ways of being held occur."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(B, R)) - 0.5
    # A share of its own for each row, so that mean ratios of sequences are held, too.
    shift = np.array([0.9, -0.7, -0.9, 0.0, 0.8, -0.8])[:, None]
    new = old + shift + 0.3 * rng.normal(size=(B, R))
    return new, old, rng.normal(size=(B, R)), rng.uniform(0.5, 2, (B, R)), old + 0.4 * rng.normal(size=(B, R))


def poisoned(*arrays):
    """float32, with different junk at every pad."""
    junk = itertools.cycle((np.nan, -np.inf, 1e30))
    return [jnp.asarray(np.where(MASK, x, j), jnp.float32) for x, j in zip(arrays, junk, strict=False)]


def by_hand(x, old, advantages, weights, ref, how, kl_coef=0.0, start=None):
    """(loss, shares held), token by token. start: what counts as constant where the paper stops the gradient."""
    start = x if start is None else start
    total = rows = tokens = 0.0
    held = {"": 0, "_low": 0, "_high": 0, "_dual": 0}
    for b in range(B):
        at = np.flatnonzero(MASK[b])
        if not len(at):
            continue
        losses = []
        for t in at:
            if how.ratio == "token":
                r = np.exp(x[b, t] - old[b, t])
            elif how.ratio == "sequence":
                r = np.exp(np.mean(x[b, at] - old[b, at]))
            else:
                r = np.exp(np.mean(start[b, at] - old[b, at])) * np.exp(x[b, t] - start[b, t])
            A, bottom, top = advantages[b, t], 1 - how.clip_low, 1 + how.clip_high
            near = min(max(r, bottom), top)
            if how.clipping == "cispo":
                where = start[b, at] - old[b, at]
                s = np.exp(start[b, t] - old[b, t] if how.ratio == "token" else where.mean())
                loss = -min(max(s, bottom), top) * A * x[b, t]
                low, high, dual = s < bottom, s > top, False
            else:
                low, high = A < 0 and r < bottom, A > 0 and r > top
                loss = -min(A * r, A * near)
                dual = bool(how.dual_clip) and A < 0 and r > how.dual_clip
                loss = -A * how.dual_clip if dual else loss
            for name, is_so in (("_low", low), ("_high", high), ("_dual", dual), ("", low or high or dual)):
                held[name] += is_so
            d = x[b, t] - ref[b, t]
            k = {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[how.kl_estimator]
            k *= np.exp(x[b, t] - old[b, t]) if how.kl_gradient == "exact" else 1
            losses.append(weights[b, t] * loss + kl_coef * k)
        tokens, rows = tokens + len(at), rows + 1
        total += np.mean(losses) if how.aggregation == "sequences" else np.sum(losses)
    divisor = {"tokens": tokens, "sequences": rows, "constant": rows * MOST}[how.aggregation]
    return total / divisor, {name: count / tokens for name, count in held.items()}


@lru_cache
def program(how):
    """new, old, advantages, mask, weights[, reference, coefficients] -> (loss, metrics), gradient in all numbers."""

    def loss(new, old, advantages, weights, mask, *kl):
        means = composed_policy_loss(new, old, advantages, mask, weights, *kl, how=how)
        return means["loss"].sum / means["loss"].weight, means

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


COMBINATIONS = list(itertools.product(policy_losses.RATIOS, CLIPS, policy_losses.AGGREGATIONS))


@pytest.mark.parametrize(("ratio", "clipping", "aggregation"), COMBINATIONS)
def test_every_combination_and_its_gradient(ratio, clipping, aggregation):
    how, (new, old, advantages, weights, ref) = how_of(ratio, clipping, aggregation), example()
    (loss, means), gradient = program(how)(*poisoned(new, old, advantages, weights), jnp.asarray(MASK))
    wanted, held = by_hand(new, old, advantages, weights, ref, how)
    assert float(loss) == pytest.approx(wanted, rel=2e-5)
    for name, share in held.items():
        assert number(means[f"policy/clipfrac{name}"]) == pytest.approx(share), name
    assert held["_low"] and held["_high"] and bool(held["_dual"]) == (clipping == "dual")

    def at(x):
        return by_hand(x, old, advantages, weights, ref, how, start=new)[0]

    np.testing.assert_allclose(gradient[0], central_difference(at, new), rtol=2e-4, atol=1e-6)
    assert not np.asarray(gradient[0])[~MASK].any()
    assert not any(np.any(x) for x in gradient[1:])  # the rollout's numbers are constants


@pytest.mark.parametrize(
    ("estimator", "gradient"), [("k3", "exact"), ("k3", "direct"), ("k2", "direct"), ("k1", "exact")]
)
def test_a_kl_in_the_loss_is_aggregated_like_the_rest(estimator, gradient):
    how = how_of("token", "ppo", "sequences", kl_estimator=estimator, kl_gradient=gradient)
    new, old, advantages, weights, ref = example(1)
    arrays = poisoned(new, old, advantages, weights, ref)
    kl = (arrays.pop(), jnp.full(B, 0.3, jnp.float32))
    (loss, means), found = program(how)(*arrays, jnp.asarray(MASK), *kl)
    assert float(loss) == pytest.approx(by_hand(new, old, advantages, weights, ref, how, 0.3)[0], rel=2e-5)
    assert number(means["loss/policy"]) + 0.3 * number(means["loss/kl"]) == pytest.approx(
        float(loss), rel=1e-5
    )

    def at(x):
        return by_hand(x, old, advantages, weights, ref, how, 0.3)[0]

    np.testing.assert_allclose(found[0], central_difference(at, new), rtol=2e-4, atol=1e-6)


def test_pads_row_order_and_micro_batches_do_not_matter():
    for aggregation in policy_losses.AGGREGATIONS:
        how = how_of("sequence", "dual", aggregation)
        function = jax.jit(lambda *rows, how=how: composed_policy_loss(*rows, how=how))
        new, old, advantages, weights, _ = poisoned(*example(2))
        rows = [new, old, advantages, jnp.asarray(MASK), weights]
        whole, order = function(*rows), np.random.default_rng(3).permutation(B)
        mixed = function(*(jnp.asarray(np.asarray(x)[order]) for x in rows))
        wide = function(*(jnp.asarray(np.pad(np.asarray(x), ((0, 2), (3, 1)))) for x in rows))
        parts = split_and_add(function, rows, cut=4)
        for name, mean in whole.items():
            for other in (mixed[name], wide[name], parts[name]):
                np.testing.assert_allclose(mean, other, rtol=1e-5, atol=1e-6, err_msg=f"{name} {aggregation}")


def test_without_dual_clip_over_tokens_it_is_the_loss_of_ppo():
    new, old, advantages, weights, _ = poisoned(*example(4))
    how = PolicyLoss("token", "ppo", 0.2, 0.2, 0.0, "tokens", MOST)
    for given in (None, weights):
        wanted = policy_loss(new, old, advantages, jnp.asarray(MASK), given, clip=0.2)
        found = composed_policy_loss(new, old, advantages, jnp.asarray(MASK), given, how=how)
        for name, mean in wanted.items():
            np.testing.assert_array_equal(found[name], mean, err_msg=name)


def test_before_the_first_update_every_ratio_is_one_and_every_gradient_that_of_reinforce():
    """Also with CISPO, and with ratios of sequences over sequences."""
    _, old, advantages, *_ = example(5)
    advantages = np.broadcast_to(advantages[:, :1], (B, R))  # one number for each response
    arrays = poisoned(old, old, advantages, np.ones((B, R)))
    lengths = np.maximum(MASK.sum(1, keepdims=True), 1)
    wanted = np.where(MASK, -advantages / lengths / (MASK.any(1).sum()), 0)
    for ratio, clipping in itertools.product(policy_losses.RATIOS, CLIPS):
        (_, means), gradient = program(how_of(ratio, clipping, "sequences"))(*arrays, jnp.asarray(MASK))
        assert number(means["policy/ratio"]) == 1.0
        assert number(means["policy/clipfrac"]) == number(means["policy/approxkl"]) == 0.0
        np.testing.assert_allclose(gradient[0], wanted, rtol=1e-5, atol=1e-7, err_msg=f"{ratio} {clipping}")


def test_a_long_response_weighs_by_its_tokens_its_row_or_neither():
    """Two good responses of 1 and 7 tokens: the gradient of each's tokens."""
    mask = prefix_mask([1, 7], R)
    arrays = [jnp.zeros((2, R)), jnp.zeros((2, R)), jnp.ones((2, R)), jnp.ones((2, R)), jnp.asarray(mask)]
    wanted = {"tokens": (1 / 8, 1 / 8), "sequences": (1 / 2, 1 / 14), "constant": (1 / 20, 1 / 20)}
    for aggregation, slopes in wanted.items():
        gradient = program(how_of("token", "ppo", aggregation))(*arrays)[1][0]
        np.testing.assert_allclose(-np.asarray(gradient)[mask], [slopes[0], *[slopes[1]] * 7], rtol=1e-6)


def test_rows_without_tokens_have_no_loss_no_gradient_and_no_weight():
    """A batch of groups that were all left out, full of NaN."""
    nothing, junk = jnp.zeros((B, R), bool), [jnp.full((B, R), np.nan)] * 4
    for aggregation in policy_losses.AGGREGATIONS:
        how = how_of("sequence_token", "dual", aggregation)
        means = composed_policy_loss(*junk[:3], nothing, junk[3], how=how)
        assert all(float(mean.sum) == float(mean.weight) == 0.0 for mean in means.values())

        def total(new, how=how):
            return composed_policy_loss(new, *junk[:2], nothing, junk[3], how=how)["loss"].sum

        assert not np.any(jax.grad(total)(junk[0]))


# --- what is no number of a single example


def test_the_gradient_of_a_kl_in_the_loss_is_that_of_the_kl():
    """On a categorical, exactly: k1 and k3 by the ratio, also off the policy; k2 directly, on it; k3 is not."""
    rng = np.random.default_rng(6)
    z, other, reference = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(3, 7)))
    ref = jax.nn.log_softmax(reference)

    def true(z):
        return jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref))

    def expected(z, acting, estimator, gradient):
        row, mask = jax.nn.log_softmax(z)[None], jnp.ones((1, 7), bool)
        old = jax.nn.log_softmax(acting)
        losses = kl_losses(row, old[None], ref[None], mask, estimator=estimator, gradient=gradient)
        return jnp.sum(jnp.exp(old) * losses[0])

    found = partial(jax.grad(expected), z)
    wanted = np.asarray(jax.grad(true)(z))
    for acting, estimator, gradient in ((z, "k1", "exact"), (z, "k3", "exact"), (z, "k2", "direct")):
        np.testing.assert_allclose(found(acting, estimator, gradient), wanted, atol=2e-6)
    for estimator in ("k1", "k3"):
        np.testing.assert_allclose(found(other, estimator, "exact"), wanted, atol=2e-6)
    np.testing.assert_allclose(found(z, "k1", "direct"), np.zeros(7), atol=2e-6)
    forward = jax.grad(lambda z: jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(z))))(z)
    np.testing.assert_allclose(found(z, "k3", "direct"), forward, atol=2e-6)
    assert np.abs(np.asarray(forward) - wanted).max() > 0.05


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sampler_weights(level):
    trainer, sampler = example(7)[:2]
    trainer[0] += 40  # of a whole sequence far beyond what float32's exp can hold
    weights, means = sampler_weights(*poisoned(trainer, sampler), jnp.asarray(MASK), level=level, cap=1.5)
    gap = np.where(MASK, trainer - sampler, 0.0)
    ratio = np.exp(gap if level == "token" else np.broadcast_to(gap.sum(1, keepdims=True), gap.shape))
    np.testing.assert_allclose(weights, np.where(MASK, np.minimum(ratio, 1.5), 0), rtol=1e-5)
    assert number(means["sampling/correction_mean"]) == pytest.approx(
        np.minimum(ratio, 1.5)[MASK].mean(), rel=1e-5
    )
    assert number(means["sampling/correction_capped"]) == pytest.approx((ratio > 1.5)[MASK].mean())
    assert 0 < (ratio > 1.5)[MASK].mean() < 1

    def total(trainer, sampler):
        return jnp.sum(sampler_weights(trainer, sampler, jnp.asarray(MASK), level=level, cap=1.5)[0])

    assert not any(np.any(x) for x in jax.grad(total, argnums=(0, 1))(*poisoned(trainer, sampler)))


def test_a_sampler_that_computes_as_the_trainer_does_has_weights_of_one():
    logprobs = poisoned(example(8)[0])[0]
    for level in ("token", "sequence"):
        weights, _ = sampler_weights(logprobs, logprobs, jnp.asarray(MASK), level=level, cap=2.0)
        np.testing.assert_array_equal(weights, MASK.astype(np.float32))


def test_corrected_samples_of_another_policy_give_the_gradient_of_this_one():
    """On a categorical: what REINFORCE expects of samples of an old policy, with weights and without."""
    rng = np.random.default_rng(9)
    now, old = (np.asarray(jax.nn.log_softmax(jnp.asarray(x))) for x in rng.normal(size=(2, 7)))
    rewards, mask = rng.normal(size=7), jnp.ones((7, 1), bool)
    columns = [jnp.asarray(x, jnp.float32)[:, None] for x in (now, old, rewards)]
    weights, _ = sampler_weights(*columns[:2], mask, level="sequence", cap=100.0)

    def expected(p, weights):
        return np.sum(p * weights * rewards)

    assert expected(np.exp(old), np.asarray(weights)[:, 0]) == pytest.approx(
        expected(np.exp(now), 1.0), rel=1e-5
    )
    assert abs(expected(np.exp(old), 1.0) - expected(np.exp(now), 1.0)) > 0.05


def test_ratios_of_gspo_and_gspo_token_differ_by_their_gradients_alone():
    new, old = poisoned(*example(10)[:2])
    values = [log_ratio(new, old, jnp.asarray(MASK), level=x) for x in ("sequence", "sequence_token")]
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-7)
    one = [
        jax.grad(lambda x, level=level: log_ratio(x, old, jnp.asarray(MASK), level=level)[0, 2])(new)[0]
        for level in ("sequence", "sequence_token")
    ]
    np.testing.assert_allclose(one[0], np.full(R, 1 / R), rtol=1e-6)
    np.testing.assert_allclose(one[1], np.eye(R)[2], rtol=1e-6)
