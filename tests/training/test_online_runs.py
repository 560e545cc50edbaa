"""Whole runs of the driver of methods that sample, with a policy of paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
from held_arrays import live_arrays
from jax.sharding import NamedSharding, PartitionSpec
from paper_policy import (
    EPOCHS,
    MINIBATCH,
    B,
    Experience,
    N,
    Watched,
    after,
    prompts,
    session,
)

from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import masked_mean
from rlhf_jax.training.loop.state import planned_state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.run import online
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.memory_check import Plan, batch_shapes, optimizer_of


def whole_run(folder, reads=(), **changes):
    """A method whose policy is one weight that falls by the rate of every update: (watched, result, metrics)."""
    watched = Watched()
    opened = session(folder, **changes)
    where = NamedSharding(opened.mesh, PartitionSpec())
    weight = jax.device_put(jnp.float32(1.0), where)

    def loss_fn(params, batch):
        nothing = (0.0 * batch.row) @ jnp.ones(MINIBATCH)  # a matrix product, whose operations are counted
        return {"loss": masked_mean(params["policy"]["weight"] + nothing, jnp.ones(()))}

    def plan(config, mesh):
        tx = optimizer_of(
            config.optimizer, config.steps, updates_per_step=online.updates_per_iteration(config)
        )
        like = {"policy": {"weight": jax.ShapeDtypeStruct((), jnp.float32, sharding=where)}}
        batch = batch_shapes(
            mesh, config.minibatch_size, Experience(np.zeros(1, np.int32), np.zeros(1, np.int32))
        )
        step = make_train_step(loss_fn, tx, divided=False)
        return Plan(loss_fn, tx, step, planned_state(like, tx), batch, {"policy": {}})

    starts = {"policy": Start({}, {"weight": weight})}
    method = online.Online(plan, lambda: watched.learner(starts), after, {"price": 0.5}, ("loss",), reads)
    trained = online.train_online(opened, prompts(N), prompts(3), method)
    assert float(starts["policy"].trained["weight"]) == 1.0  # what training starts from outlives it
    return watched, float(trained["policy"]["weight"]), tiny_farm.rows(folder)


SGD = {
    "optimizer.name": "sgd",
    "optimizer.b1": 0.0,
    "optimizer.learning_rate": 0.01,
    "optimizer.max_grad_norm": 0.0,
}
SGD |= {"optimizer.schedule": "linear", "optimizer.warmup_steps": 0, "optimizer.ema": 0.5}


def test_a_whole_run(tmp_path):
    """Rollouts sample the newest policy and evaluations the average; both keys follow the seed."""
    watched, trained, rows = whole_run(tmp_path / "0", steps=2, **SGD)
    updates = EPOCHS * B // MINIBATCH
    weight, average, rates, wanted = 1.0, 1.0, [0.01, 0.005], [(1.0, 1.0)]
    for rate in rates:
        for _ in range(updates):
            weight -= rate
            average = (average + weight) / 2
        wanted.append((weight, average))
    # An evaluation of the start, two rollouts, an evaluation of the end.
    assert watched.seen == pytest.approx([wanted[0][1], wanted[0][0], wanted[1][0], wanted[2][1]])
    assert trained == pytest.approx(wanted[2][1])
    assert [row["learning_rate"] for row in rows if "loss" in row] == pytest.approx(rates)
    assert [row["step"] for row in rows if "eval/scores" in row] == [0, 2]
    assert watched.extras == pytest.approx([0.5, 1.0])
    first, *inside, last = watched.keys
    assert first == last and len({first, *inside}) == 3
    other, *_ = whole_run(tmp_path / "1", steps=1, seed=1, **SGD)
    assert not {*other.keys} & {*watched.keys}


def test_a_long_run_keeps_no_more_arrays_than_a_short_one(tmp_path, monkeypatch):
    """Of rollouts, experience and minibatches nothing stays."""
    held, roll_out = [], Watched.roll_out

    def counted(self, *asked):
        held.append(live_arrays(at_most=held[3] if len(held) > 3 else 0))
        return roll_out(self, *asked)

    monkeypatch.setattr(Watched, "roll_out", counted)
    whole_run(tmp_path, steps=9, **SGD)
    # The first and the last are evaluations', and the first rollout sees a run that has not trained yet.
    assert held[-2] <= held[3]


def test_a_run_goes_on_only_with_the_models_that_it_read(tmp_path):
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "weights").write_text("one")
    whole_run(tmp_path / "run", (str(reward),), steps=1, **SGD)
    (reward / "weights").write_text("another")
    with pytest.raises(UserError, match=rf"inputs\.{reward} was "):
        whole_run(tmp_path / "run", (str(reward),), steps=1, **SGD)


def test_the_loop_is_told_the_operations_of_all_updates_of_a_rollout(tmp_path, monkeypatch):
    told, fit = [], online.fit

    def watched(*args, flops, **options):
        told.append(flops)
        return fit(*args, flops=flops, **options)

    monkeypatch.setattr(online, "fit", watched)
    whole_run(tmp_path, steps=1, **SGD)
    # One product of as many numbers as a minibatch has rows, 2 operations each, in every update.
    assert told == [EPOCHS * (B // MINIBATCH) * 2 * MINIBATCH]
