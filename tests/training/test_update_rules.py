"""Every optimizer by name against float64 NumPy: clipping, direction, decay, rate, veto, and in two parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optimizer_oracles as oracles
import pytest
import toy_training as toy

from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers import update_rules
from rlhf_jax.training.optimizers.optimizer import learning_rates, make_optimizer, partitioned

NAMES = tuple(oracles.BY_NAME)
OTHERS = tuple(update_rules.UPDATE_RULES)
STEPS, CLIP, DECAY, RATE = 5, 3.0, 0.2, 0.05


def params():
    """Stacked and single matrices, large enough to be factored and not, and vectors."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "layers": {"w": draw(2, 128, 130), "small": draw(2, 3, 4), "scale": draw(2, 130)},
        "head": draw(140, 128),
        "score": draw(128),
    }


def gradient(i, like):
    """Of different size at every step and leaf; some steps are clipped and some are not."""
    rng = np.random.default_rng(10 + i)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 10.0 ** rng.uniform(-4, -1), jnp.float32), like
    )


def leaves(tree):
    """(values of each layer's own leaf, whether it decays) of a tree like `params`."""
    w, small, scale = tree["layers"]["w"], tree["layers"]["small"], tree["layers"]["scale"]
    matrices = [*w, *small, tree["head"]]
    vectors = [*scale, tree["score"]]
    return [np.float64(x) for x in [*matrices, *vectors]], [True] * len(matrices) + [False] * len(vectors)


def expected(name, b1, b2, eps):
    """The parameters after every step, in float64."""
    now, decays = leaves(params())
    move = [oracles.BY_NAME[name](b1, b2, eps) for _ in now]
    clipped = 0
    for i in range(STEPS):
        grads, _ = leaves(gradient(i, params()))
        norm = np.sqrt(sum((g * g).sum() for g in grads))
        clipped += norm > CLIP
        rate = RATE * min(1.0, (i + 1) / 2)
        now = [
            p - rate * (step(g * min(1.0, CLIP / norm)) + DECAY * decay * p)
            for p, g, step, decay in zip(now, grads, move, decays, strict=True)
        ]
        yield now
    assert 0 < clipped < STEPS


def make(name, **changes):
    settings = {"learning_rate": RATE, "schedule": "constant", "warmup_steps": 2, "total_steps": 9}
    return make_optimizer(
        name=name, **{**settings, "weight_decay": DECAY, "max_grad_norm": CLIP, "eps": 1e-6, **changes}
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.0, 0.6)])  # 0.6 caps Adafactor's decay
def test_the_same_parameters_as_in_float64(name, b1, b2):
    tx = make(name, b1=b1, b2=b2)
    now = params()
    opt_state = tx.init(now)
    update = jax.jit(tx.update)
    for i, wanted in enumerate(expected(name, b1, b2, 1e-6)):
        updates, opt_state = update(gradient(i, now), opt_state, now)
        now = jax.tree.map(jnp.add, now, updates)
        assert float(learning_rates(opt_state)["learning_rate"]) == pytest.approx(RATE * min(1, (i + 1) / 2))
        for found, want in zip(leaves(now)[0], wanted, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_a_veto_leaves_the_state_as_it_was(name):
    tx, now = make(name, ema=0.9), params()
    _, before = jax.jit(tx.update)(gradient(0, now), tx.init(now), now)
    bad = jax.tree.map(lambda x: x * jnp.nan, now)
    _, after = jax.jit(tx.update)(bad, before, now, ok=jnp.bool_(False))
    assert toy.same(after, before)
    assert not toy.same(jax.jit(tx.update)(gradient(1, now), before, now)[1], before)


@pytest.mark.parametrize("name", OTHERS)
def test_two_parts_move_as_each_alone(name):
    parts = {"policy": make(name, b1=0.5), "value": make(name, learning_rate=0.01, max_grad_norm=0.1)}
    both = {"policy": params(), "value": {"score": jnp.ones((3, 2))}}
    tx = partitioned(parts)
    opt_state = tx.init(both)
    for i in range(2):
        updates, opt_state = jax.jit(tx.update)(gradient(i, both), opt_state, both)
    for part, optimizer in parts.items():
        alone = optimizer.init(both[part])
        for i in range(2):
            wanted, alone = jax.jit(optimizer.update)(gradient(i, both)[part], alone, both[part])
        for a, b in zip(toy.leaves(updates[part]), toy.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    rates = {key: float(rate) for key, rate in learning_rates(opt_state).items()}
    assert rates == pytest.approx({"learning_rate/policy": RATE, "learning_rate/value": 0.01})


def test_adafactor_keeps_next_to_nothing_of_large_matrices():
    matrix = {"w": jnp.ones((256, 512))}
    kept = sum(x.size for x in jax.tree.leaves(make("adafactor", b1=0.0).init(matrix)))
    assert kept < 256 + 512 + 10


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_parameters_have_float32_moments(name):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
    tx = make(name)
    first = state.create(low, tx, seed=0)
    floats = [x for x in jax.tree.leaves(first.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    step = make_train_step(toy.loss_fn, tx)
    for i in range(2):
        first, metrics = step(first, toy.batch(i))
    assert step.cache_size() == 1 and not metrics["nonfinite"]
    assert {x.dtype for x in jax.tree.leaves(first.params)} == {jnp.dtype(jnp.bfloat16)}
