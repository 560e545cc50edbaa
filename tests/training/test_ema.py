"""The average of parameters: against NumPy, in two parts, exact when a run goes on, out of the way when off."""

import jax
import jax.numpy as jnp
import numpy as np
import toy_training as toy

from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import ema_params, learning_rates, partitioned


def test_the_average_is_that_of_the_parameters_after_each_step():
    tx = toy.optimizer(ema=0.7)
    now = state.create(toy.params(), tx, seed=0)
    step = make_train_step(toy.loss_fn, tx)
    wanted = [np.float64(x) for x in toy.leaves(toy.params())]
    for i in range(4):
        now, metrics = step(now, toy.batch(i))
        wanted = [0.7 * a + 0.3 * p for a, p in zip(wanted, toy.leaves(now.params), strict=True)]
    assert step.cache_size() == 1 and "learning_rate" in metrics
    for found, want in zip(toy.leaves(ema_params(now.params, now.opt_state)), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_it_does_not_change_the_training():
    def train(ema):
        tx = toy.optimizer(ema=ema)
        now = state.create(toy.params(), tx, seed=0)
        step = make_train_step(toy.loss_fn, tx)
        for i in range(3):
            now, _ = step(now, toy.batch(i))
        return now

    plain, with_average = train(0.0), train(0.9)
    for a, b in zip(toy.leaves(plain.params), toy.leaves(with_average.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # another program, which rounds elsewhere
    assert ema_params(plain.params, plain.opt_state) is plain.params
    assert not toy.same(ema_params(with_average.params, with_average.opt_state), plain.params)


def test_a_step_that_is_not_finite_does_not_count():
    tx = toy.optimizer(ema=0.5)
    now = state.create(toy.params(), tx, seed=0)
    step = make_train_step(toy.loss_fn, tx)
    now, _ = step(now, toy.batch(0))
    before = toy.leaves(now.opt_state)
    bad = toy.batch(1)
    bad["x"][0, 0, 0] = np.nan
    now, metrics = step(now, bad)
    assert metrics["nonfinite"] == 1
    assert [x.tobytes() for x in toy.leaves(now.opt_state)] == [x.tobytes() for x in before]


def test_each_part_may_have_one():
    tx = partitioned({"policy": toy.optimizer(ema=0.5), "value": toy.optimizer()})
    params = {"policy": toy.params(), "value": {"score": jnp.ones((3, 2))}}
    opt_state = tx.init(params)
    updates, opt_state = jax.jit(tx.update)(jax.tree.map(jnp.cos, params), opt_state, params)
    new = jax.tree.map(jnp.add, params, updates)
    found = ema_params(new, opt_state)
    assert toy.same(found["value"], new["value"])
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, params["policy"], new["policy"])
    for a, b in zip(toy.leaves(found["policy"]), toy.leaves(halfway), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert set(learning_rates(opt_state)) == {"learning_rate/policy", "learning_rate/value"}


def test_it_goes_through_a_checkpoint_bit_for_bit(tmp_path):
    tx = toy.optimizer(ema=0.9)
    now = state.create(toy.params(), tx, seed=0)
    step = make_train_step(toy.loss_fn, tx)
    for i in range(2):
        now, _ = step(now, toy.batch(i))
    with Checkpoints(tmp_path, config={}) as checkpoints:
        checkpoints.save(2, now)
        checkpoints.wait()
        restored = checkpoints.restore(state.abstract(now)).state
    assert toy.same(restored.opt_state, now.opt_state)
    one, _ = step(now, toy.batch(2))
    other, _ = step(restored, toy.batch(2))
    assert toy.same(ema_params(one.params, one.opt_state), ema_params(other.params, other.opt_state))


def test_bfloat16_parameters_have_a_float32_average_and_get_it_back_in_bfloat16():
    tx = toy.optimizer(ema=0.999)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
    now = state.create(low, tx, seed=0)
    assert {x.dtype for x in jax.tree.leaves(now.opt_state.average)} == {jnp.dtype(jnp.float32)}
    now, _ = make_train_step(toy.loss_fn, tx)(now, toy.batch(0))
    found = ema_params(now.params, now.opt_state)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
