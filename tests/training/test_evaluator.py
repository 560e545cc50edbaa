import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy

from rlhf_jax.objectives.reduce import value
from rlhf_jax.training.loop.step import make_evaluator


def test_the_mean_over_batches_is_the_mean_over_all_rows():
    data = toy.batch(0, rows=24)
    cut = [{name: x[i : i + 8] for name, x in data.items()} for i in (0, 8, 16)]
    found = make_evaluator(toy.loss_fn)(toy.params(), cut)
    whole = toy.loss_fn(toy.params(), {name: jnp.asarray(x) for name, x in data.items()})
    assert found.keys() == {"loss", "bias"}
    for name, mean in whole.items():
        assert found[name] == pytest.approx(float(value(mean)), rel=1e-5)


def test_rows_of_weight_zero_fill_up_the_last_batch():
    data = toy.batch(0, rows=8)
    filler = {**data, "x": np.full_like(data["x"], np.nan), "weight": np.zeros_like(data["weight"])}
    measure = make_evaluator(toy.loss_fn)
    assert measure(toy.params(), [data, filler]) == measure(toy.params(), [data])


def test_no_batches():
    assert make_evaluator(toy.loss_fn)(toy.params(), []) == {}


def test_the_model_is_compiled_once():
    traced = []

    def loss_fn(params, batch):
        traced.append(batch)
        return toy.loss_fn(params, batch)

    measure = make_evaluator(loss_fn)
    assert measure(toy.params(), [toy.batch(i, rows=8) for i in range(3)]) == measure(
        toy.params(), [toy.batch(i, rows=8) for i in range(3)]
    )
    assert len(traced) == 1
