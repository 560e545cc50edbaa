"""What must not change a trainer's step: padding, the order of rows, micro-batches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_farm
import tiny_losses
from jaxtyping import PyTree
from tiny_losses import R, assert_same

from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer

CASES = tiny_losses.cases()
B1 = 0.9
# With a large eps the update is smooth in the gradient; Adam's usual first update is its sign.
ADAM = make_optimizer(learning_rate=0.1, total_steps=9, schedule="constant", b1=B1, eps=1e-2, max_grad_norm=0)


class Outcome(NamedTuple):
    """Of one update: every mean of the loss, the gradient, and the parameters after it."""

    metrics: dict[str, float]
    gradient: PyTree
    params: PyTree


def outcome(step, case, batch):
    state, metrics = step(create(jax.tree.map(jnp.array, case.params), ADAM, seed=0), batch)
    gradient = jax.tree.map(lambda mu: mu / (1 - B1), optax.tree.get(state.opt_state, "mu"))
    return Outcome({k: float(x) for k, x in metrics.items() if k != "nonfinite"}, gradient, state.params)


@pytest.fixture(scope="module", params=tiny_farm.TRAINERS)
def plain(request):
    """(a trainer's case, its step, the outcome of the plain batch)."""
    case = CASES[request.param]
    step = make_train_step(case.make(R), ADAM)
    return case, step, outcome(step, case, case.batch)


def test_the_order_of_rows_does_not_matter(plain):
    case, step, wanted = plain
    assert_same(outcome(step, case, tiny_losses.reordered(case.batch)), wanted)
    for before, after in zip(*map(jax.tree.leaves, (case.params, wanted.params)), strict=True):
        assert np.abs(before - after).max() > 1e-4  # every parameter takes part


def test_padding_on_the_right_does_not_matter(plain):
    case, _, wanted = plain
    extra = 9
    step = make_train_step(case.make(R + extra), ADAM)
    assert_same(outcome(step, case, tiny_losses.widened(case.batch, extra)), wanted)


def test_four_microbatches_are_as_good_as_one(plain):
    """They hold different numbers of tokens, and of rows that count."""
    case, _, wanted = plain
    step = make_train_step(case.make(R), ADAM, microbatches=4)
    assert_same(outcome(step, case, case.batch), wanted)
