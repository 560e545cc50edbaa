import jax
import jax.numpy as jnp
import numpy as np
import toy_training as toy

from rlhf_jax.training.loop import state


def test_what_a_state_holds():
    tx = toy.optimizer()
    made = state.create(toy.params(), tx, seed=7, extra={"kl_coef": 0.2, "pool": np.arange(3)})
    assert int(made.step) == 0
    assert made.step.dtype == jnp.int32
    assert jnp.issubdtype(made.key.dtype, jax.dtypes.prng_key)
    assert toy.same(made.key, jax.random.key(7))
    assert made.extra["kl_coef"].dtype == jnp.float32
    assert made.extra["pool"].dtype == jnp.int32
    assert toy.same(made.opt_state, tx.init(toy.params()))
    assert state.create(toy.params(), tx, seed=7).extra == {}


def test_nothing_in_it_is_weakly_typed_or_uncommitted():
    # Either would make the second train step compile again.
    made = state.create(toy.params(), toy.optimizer(), seed=0, extra={"kl_coef": 0.2, "n": 3})
    for x in jax.tree.leaves(made):
        assert not getattr(x, "weak_type", False)
        assert x.committed


def test_moments_are_float32_whatever_the_parameters_are():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
    made = state.create(half, toy.optimizer(), seed=0)
    assert {x.dtype for x in jax.tree.leaves(made.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(made.opt_state) if x.ndim} == {jnp.dtype(jnp.float32)}


def test_bfloat16_parameters_train_without_a_second_compilation():
    from rlhf_jax.training.loop.step import make_train_step

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
    tx = toy.optimizer()
    for microbatches in (1, 4):
        now, step = (
            state.create(half, tx, seed=0),
            make_train_step(toy.loss_fn, tx, microbatches=microbatches),
        )
        half = jax.tree.map(jnp.copy, half)
        for i in range(3):
            now, metrics = step(now, toy.batch(i))
        assert step.cache_size() == 1
        assert metrics["grad_norm"].dtype == jnp.float32
        assert now.params["embed"].dtype == jnp.bfloat16


def test_abstract_has_shapes_and_places_but_no_data():
    made = state.create(toy.params(), toy.optimizer(), seed=0)
    for x, like in zip(jax.tree.leaves(made), jax.tree.leaves(state.abstract(made)), strict=True):
        assert isinstance(like, jax.ShapeDtypeStruct)
        assert (x.shape, x.dtype, x.sharding) == (like.shape, like.dtype, like.sharding)
    assert jax.tree.leaves(state.shardings_of(made)) == [x.sharding for x in jax.tree.leaves(made)]
