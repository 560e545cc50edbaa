from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_training as toy

from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import (
    decay_mask,
    learning_rate_at,
    learning_rates,
    make_optimizer,
    partitioned,
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0]),
    ],
)
def test_schedules(schedule, expected):
    found = [learning_rate_at(t, 1.0, schedule=schedule, warmup_steps=4, total_steps=8) for t in range(9)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    later = learning_rate_at(1000, 1.0, schedule=schedule, warmup_steps=4, total_steps=8)
    assert float(later) == pytest.approx(expected[-1], abs=1e-6)


def test_inverse_sqrt_falls_on_after_the_end():
    def at(t, warmup):
        return float(learning_rate_at(t, 0.3, schedule="inverse_sqrt", warmup_steps=warmup, total_steps=8))

    for t in range(40):
        assert at(t, 4) == pytest.approx(0.3 * ((t + 1) / 4 if t < 4 else (4 / t) ** 0.5), rel=1e-6)
        assert at(t, 0) == pytest.approx(0.3 / (t + 1) ** 0.5, rel=1e-6)


def test_without_warmup_the_first_step_has_the_peak():
    for schedule in ("constant", "linear", "cosine", "inverse_sqrt"):
        assert float(
            learning_rate_at(0, 3e-4, schedule=schedule, warmup_steps=0, total_steps=5)
        ) == pytest.approx(3e-4)


def test_the_schedule_advances_once_per_iteration():
    # Two epochs of two minibatches: four updates share one learning rate.
    tx = make_optimizer(learning_rate=1.0, schedule="linear", total_steps=4, updates_per_step=4)
    params = {"w": jnp.ones((2, 2))}
    opt_state = tx.init(params)
    used = []
    update = jax.jit(tx.update)
    for _ in range(12):
        _, opt_state = update(params, opt_state, params)
        used.append(float(learning_rates(opt_state)["learning_rate"]))
    assert used == [1.0] * 4 + [0.75] * 4 + [0.5] * 4


def test_adamw_is_optax_adamw():
    ours = make_optimizer(
        learning_rate=0.1,
        schedule="constant",
        total_steps=9,
        weight_decay=0.3,
        b1=0.8,
        b2=0.95,
        eps=1e-5,
        max_grad_norm=0,
    )
    theirs = optax.adamw(0.1, b1=0.8, b2=0.95, eps=1e-5, weight_decay=0.3, mask=decay_mask)
    ours_p = theirs_p = toy.params()
    ours_s, theirs_s = ours.init(ours_p), theirs.init(theirs_p)

    @partial(jax.jit, static_argnums=0)
    def move(tx, params, opt_state, i):
        grads = jax.tree.map(lambda x: jnp.sin(x * (i + 1)), toy.params())
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i in range(3):
        ours_p, ours_s = move(ours, ours_p, ours_s, i)
        theirs_p, theirs_s = move(theirs, theirs_p, theirs_s, i)
    for a, b in zip(toy.leaves(ours_p), toy.leaves(theirs_p), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=5e-7)


def test_adamw_tf_puts_epsilon_on_the_uncorrected_moment():
    g, lr, b1, b2, eps = 0.3, 1.0, 0.9, 0.999, 1e-2
    settings = {"schedule": "constant", "total_steps": 9, "b1": b1, "b2": b2, "eps": eps, "max_grad_norm": 0}
    settings["learning_rate"] = lr
    params = {"w": jnp.zeros((1, 1))}
    tx = make_optimizer(name="adamw_tf", **settings)
    opt_state = tx.init(params)
    first, opt_state = tx.update({"w": jnp.full((1, 1), g)}, opt_state)
    second, _ = tx.update({"w": jnp.full((1, 1), -2 * g)}, opt_state)
    # t = 1: lr * g / (|g| + eps / sqrt(1 - b2))
    assert float(first["w"][0, 0]) == pytest.approx(-lr * g / (g + eps / np.sqrt(1 - b2)), rel=1e-5)
    m = b1 * (1 - b1) * g - (1 - b1) * 2 * g
    v = b2 * (1 - b2) * g**2 + (1 - b2) * 4 * g**2
    expected = -lr * np.sqrt(1 - b2**2) / (1 - b1**2) * m / (np.sqrt(v) + eps)
    assert float(second["w"][0, 0]) == pytest.approx(expected, rel=1e-5)
    plain, _ = (tx := make_optimizer(**settings)).update({"w": jnp.full((1, 1), g)}, tx.init(params))
    assert float(plain["w"][0, 0]) == pytest.approx(-lr * g / (g + eps), rel=1e-5)


def test_only_matrices_decay_also_when_stacked():
    mask = decay_mask({**toy.params(), "bias": jnp.zeros(3), "temperature": jnp.zeros(())})
    assert mask == {
        "layers": {"w": True, "scale": False},
        "embed": True,
        "score": False,
        "bias": False,
        "temperature": False,
    }


def test_clipping_is_by_the_global_norm():
    grads = {"a": jnp.full((2, 2), 3.0), "b": jnp.full((2, 2), 4.0)}  # norm 10
    tx = make_optimizer(
        learning_rate=1.0, schedule="constant", total_steps=1, b1=0.0, b2=0.0, eps=1e3, max_grad_norm=1.0
    )
    updates, _ = tx.update(grads, tx.init(grads))
    # With eps far above every gradient the update -g / (|g| + eps) shows the clipped gradient itself.
    np.testing.assert_allclose(updates["a"], -0.3 / 1000.3, rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.4 / 1000.4, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_gradients_within_the_limit_stay_as_they_are(name):
    grads = {"a": jnp.full((2, 2), 0.03), "b": jnp.full((2, 2), 0.04)}  # norm 0.1
    flat = {"learning_rate": 1.0, "schedule": "constant", "total_steps": 1, "b1": 0.0, "b2": 0.0, "eps": 1e3}
    tx = make_optimizer(name=name, **flat, max_grad_norm=1.0)
    updates, _ = tx.update(grads, tx.init(grads))
    for leaf, g in (("a", 0.03), ("b", 0.04)):
        np.testing.assert_allclose(updates[leaf], -g / (g + 1e3) if name == "adamw" else -g, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_rate_that_is_logged_is_the_one_that_was_used(name):
    """Also of the first step. With gradients of 1 both optimizers move every weight by the rate itself."""
    flat = {"b1": 0.0, "b2": 0.0, "eps": 0.0, "max_grad_norm": 0, "total_steps": 4, "warmup_steps": 2}
    tx = make_optimizer(name=name, learning_rate=0.5, schedule="linear", **flat)
    ones = {"w": jnp.ones((2, 2))}
    opt_state = tx.init(ones)
    for wanted in (0.25, 0.5, 0.5, 0.25):
        updates, opt_state = tx.update(ones, opt_state, ones)
        assert float(learning_rates(opt_state)["learning_rate"]) == pytest.approx(wanted)
        np.testing.assert_allclose(updates["w"], -wanted, rtol=1e-5)


def test_partitioned_gives_each_tree_its_own_rate_clip_and_moments():
    def make(lr, clip):
        return make_optimizer(
            learning_rate=lr, schedule="constant", total_steps=9, weight_decay=0.1, max_grad_norm=clip
        )

    parts = {"policy": make(0.1, 1.0), "value": make(0.02, 0.5)}
    params = {"policy": toy.params(), "value": {"score": jnp.ones((3, 2))}}
    grads = jax.tree.map(lambda x: 10 * jnp.cos(x), params)
    tx = partitioned(parts)
    opt_state = tx.init(params)
    for _ in range(2):
        updates, opt_state = jax.jit(tx.update)(grads, opt_state, params)
    for name, part in parts.items():
        alone = part.init(params[name])
        for _ in range(2):
            expected, alone = jax.jit(part.update)(grads[name], alone, params[name])
        for a, b in zip(toy.leaves(updates[name]), toy.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    rates = {name: float(rate) for name, rate in learning_rates(opt_state).items()}
    assert rates == pytest.approx({"learning_rate/policy": 0.1, "learning_rate/value": 0.02})


def test_a_veto_leaves_every_part_as_it_was():
    tx = partitioned({"policy": toy.optimizer(), "value": optax.adam(0.1)})
    params = {"policy": toy.params(), "value": {"score": jnp.ones((3, 2))}}
    before = tx.init(params)
    bad = jax.tree.map(lambda x: x * jnp.nan, params)
    _, after = jax.jit(tx.update)(bad, before, params, ok=jnp.bool_(False))
    assert toy.same(after, before)
    _, after = jax.jit(tx.update)(params, before, params, ok=jnp.bool_(True))
    assert not toy.same(after, before)


def test_two_trees_train_in_one_step():
    def loss_fn(p, batch):
        both = {"policy": p["policy"], "value": p["value"]}
        return {"loss": jax.tree.map(jnp.add, *(toy.loss_fn(tree, batch)["loss"] for tree in both.values()))}

    tx = partitioned({"policy": toy.optimizer(), "value": toy.optimizer(learning_rate=0.5)})
    now = state.create({"policy": toy.params(), "value": toy.params()}, tx, seed=0)
    step = make_train_step(loss_fn, tx)
    for i in range(2):
        now, metrics = step(now, toy.batch(i))
    assert step.cache_size() == 1
    assert {"learning_rate/policy", "learning_rate/value"} <= metrics.keys()
    assert not np.allclose(now.params["policy"]["embed"], now.params["value"]["embed"])
