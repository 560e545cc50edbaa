import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_training as toy
from jax.sharding import AxisType, Mesh

from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import check_microbatches, make_train_step
from rlhf_jax.training.optimizers.optimizer import partitioned


def run_once(microbatches, batch, loss_fn=toy.loss_fn, **changes):
    tx = toy.optimizer(**changes)
    step = make_train_step(loss_fn, tx, microbatches=microbatches)
    return step(state.create(toy.params(), tx, seed=0), batch)


def reference(params, batch):
    """Loss and gradient written out: one weighted mean over all tokens of all rows."""

    def mean(p):
        x = batch["x"] @ p["embed"]
        for w, scale in zip(p["layers"]["w"], p["layers"]["scale"], strict=True):
            x = x + jnp.tanh(x @ w) * scale
        return (((x @ p["score"] - batch["y"]) ** 2) * batch["weight"]).sum() / batch["weight"].sum()

    return jax.jit(jax.value_and_grad(mean))(params)


def test_loss_and_gradient_are_those_of_one_mean_over_all_tokens():
    loss, grads = reference(toy.params(), toy.batch(0))
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    for microbatches in (1, 2, 4, 16):
        after, metrics = run_once(microbatches, toy.batch(0))
        size = np.sqrt(sum(float((p**2).sum()) for p in jax.tree.leaves(after.params)))
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(metrics["param_norm"]) == pytest.approx(size, rel=1e-5)
        assert float(metrics["nonfinite"]) == 0


@pytest.mark.parametrize("microbatches", [2, 4, 16])
def test_microbatches_change_nothing(microbatches):
    # With plain SGD-like settings the parameters show the gradient itself, not its sign as Adam's first step.
    whole, expected = run_once(1, toy.batch(3), eps=1.0)
    parts, metrics = run_once(microbatches, toy.batch(3), eps=1.0)
    assert metrics.keys() == expected.keys()
    for name in expected:
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-5, abs=1e-6), name
    for a, b in zip(toy.leaves(whole.opt_state), toy.leaves(parts.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(toy.leaves(whole.params), toy.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_microbatch_takes_every_mth_row_and_whole_scalars():
    def rows_seen(p, batch):
        order = batch["row"].astype(jnp.float32)
        place = jnp.arange(order.shape[0], dtype=jnp.float32)
        assert batch["gain"].shape == ()
        return {
            "loss": Mean((p["w"] * 0).sum(), jnp.float32(1)),
            "probe": Mean((order * place).sum(), batch["gain"]),
        }

    tx = toy.optimizer()
    batch = {"row": np.arange(8), "gain": np.float32(2.0)}
    step = make_train_step(rows_seen, tx, microbatches=4)
    _, metrics = step(state.create({"w": jnp.ones((2, 2))}, tx, seed=0), batch)
    # Rows {j, j + 4}: the second place holds 4, 5, 6, 7. The weight 2 comes once per micro-batch.
    assert float(metrics["probe"]) == (4 + 5 + 6 + 7) / (4 * 2)


@pytest.mark.parametrize("gain", [8, 2**-10])  # With the smaller one they add up to less than 1.
def test_scaling_all_weights_changes_no_gradient(gain):
    batch = toy.batch(0)
    _, plain = run_once(4, batch)
    _, scaled = run_once(4, {**batch, "gain": np.float32(gain)})
    assert float(scaled["grad_norm"]) == pytest.approx(float(plain["grad_norm"]), rel=1e-6)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_no_weight_at_all_is_loss_zero_and_no_gradient(microbatches):
    batch = toy.batch(0)
    batch["weight"][:] = 0
    _, metrics = run_once(microbatches, batch)
    assert (float(metrics["loss"]), float(metrics["grad_norm"]), float(metrics["nonfinite"])) == (0, 0, 0)


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(microbatches, bad):
    tx = toy.optimizer()
    step = make_train_step(toy.loss_fn, tx, microbatches=microbatches)
    now = state.create(toy.params(), tx, seed=0)
    now, _ = step(now, toy.batch(0))
    before = jax.tree.map(jnp.copy, now)
    broken = toy.batch(1)
    broken["x"][2, 0, 0] = bad
    now, metrics = step(now, broken)
    assert float(metrics["nonfinite"]) == 1
    assert toy.same(now, before)  # step, params, moments, the schedule's count, key
    now, metrics = step(now, toy.batch(1))
    assert float(metrics["nonfinite"]) == 0
    assert int(now.step) == 2
    assert step.cache_size() == 1


def test_any_optax_transformation_is_vetoed_too():
    tx = optax.chain(optax.clip(1.0), optax.adam(0.1), optax.trace(0.9))
    step = make_train_step(toy.loss_fn, tx)
    now, _ = step(state.create(toy.params(), tx, seed=0), toy.batch(0))
    before = jax.tree.map(jnp.copy, now)
    broken = toy.batch(1)
    broken["x"][2, 0, 0] = np.nan
    now, metrics = step(now, broken)
    assert float(metrics["nonfinite"]) == 1
    assert toy.same(now, before)
    assert "learning_rate" not in metrics


def _root(p, batch):
    return jnp.sqrt(jnp.abs(p["w"] * batch)).sum()


def _sum(p, batch):
    return (p["w"] + batch).sum()


@pytest.mark.parametrize(
    ("function", "number", "loss", "grad_norm"), [(_root, 0, 0, np.nan), (_sum, np.inf, np.inf, 2)]
)
def test_a_loss_or_a_gradient_that_alone_is_not_finite_is_skipped(function, number, loss, grad_norm):
    tx = toy.optimizer()
    step = make_train_step(lambda p, batch: {"loss": Mean(function(p, batch), jnp.float32(1))}, tx)
    now, metrics = step(
        state.create({"w": jnp.ones((2, 2))}, tx, seed=0), jnp.full((2, 2), number, jnp.float32)
    )
    assert float(metrics["loss"]) == loss
    assert float(metrics["grad_norm"]) == pytest.approx(grad_norm, nan_ok=True)
    assert float(metrics["nonfinite"]) == 1
    assert int(now.step) == 0
    np.testing.assert_array_equal(now.params["w"], 1)


def test_one_program_for_the_whole_run_and_the_state_is_donated():
    tx = toy.optimizer()
    step = make_train_step(toy.loss_fn, tx, microbatches=2)
    first = now = state.create(toy.params(), tx, seed=0, extra={"kl_coef": 0.1, "n": 3})
    for i in range(4):
        now, _ = step(now, toy.batch(i))
    assert step.cache_size() == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(first.params))


def test_the_norm_is_computed_once():
    # The step reports the norm of the gradient and the optimizer clips by it: XLA must merge the two.

    def reductions(max_grad_norm):
        tx = toy.optimizer(max_grad_norm=max_grad_norm)
        now = state.create(toy.params(), tx, seed=0)
        text = make_train_step(toy.loss_fn, tx).trace(now, toy.batch(0)).lower().compile().as_text()
        return text.count(" reduce(")

    assert reductions(1.0) == reductions(0)


def test_microbatches_that_do_not_divide():
    with pytest.raises(UserError, match="microbatches: 3 does not divide a batch of 16 rows"):
        run_once(3, toy.batch(0))
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    check_microbatches(12, 4, mesh)
    with pytest.raises(
        UserError, match=r"train.microbatches: 5 .* 12 rows .*; use one of 1, 2, 3, 4, 6, 12$"
    ):
        check_microbatches(12, 5, mesh, field="train.microbatches")
    cut_both_ways = Mesh(np.tile(jax.devices()[:1], (2, 3, 2)), ("data", "fsdp", "tensor"))
    check_microbatches(12, 2, cut_both_ways)
    with pytest.raises(UserError, match=r"4 .* the 2 rows per device \(batch of 12 on 6\); use one of 1, 2$"):
        check_microbatches(12, 4, cut_both_ways)


def _networks(n=2):
    """Losses of networks that share nothing, by name, and the sum of all as one."""
    names = [f"net {i}" for i in range(n)]

    def loss_of(name, factor):
        def loss_fn(params, batch):
            found = toy.loss_fn(params[name], batch)
            return {
                "loss": Mean(factor * found["loss"].sum, found["loss"].weight),
                f"loss of {name}": found["loss"],
            }

        return loss_fn

    losses = {name: loss_of(name, i + 1.0) for i, name in enumerate(names)}

    def together(params, batch):
        found = [loss_fn(params, batch) for loss_fn in losses.values()]
        loss = Mean(sum(x["loss"].sum for x in found), found[0]["loss"].weight)
        return {name: mean for x in found for name, mean in x.items()} | {"loss": loss}

    optimizer = partitioned({name: toy.optimizer(eps=1.0, max_grad_norm=0.1) for name in names})
    params = {
        name: jax.tree.map(lambda x, i=i: x * (1 + i / 4), toy.params()) for i, name in enumerate(names)
    }
    return losses, together, optimizer, params


@pytest.mark.parametrize("microbatches", [1, 4])
def test_networks_one_after_the_other_are_as_good_as_all_at_once(microbatches):
    losses, together, tx, params = _networks()

    def after(loss_fn):
        step = make_train_step(loss_fn, tx, microbatches=microbatches)
        now, metrics = step(state.create(jax.tree.map(jnp.copy, params), tx, seed=0), toy.batch(0))
        return {"params": now.params, "opt_state": now.opt_state, "metrics": metrics}

    turns, once = after(losses), after(together)
    assert jax.tree.structure(turns) == jax.tree.structure(once)
    assert float(turns["metrics"]["nonfinite"]) == 0 and float(turns["metrics"]["grad_norm"]) > 0.1
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(turns), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=str(path))


def test_of_networks_one_after_the_other_one_that_is_not_finite_stays_and_the_rest_moves():
    losses, _, tx, params = _networks()
    broken = losses | {"net 0": lambda p, batch: {"loss": Mean(jnp.float32(np.nan), jnp.float32(1))}}
    before = state.create(params, tx, seed=0)
    kept = jax.tree.map(jnp.copy, before)
    now, metrics = make_train_step(broken, tx)(before, toy.batch(0))
    assert float(metrics["nonfinite"]) == 1 and int(now.step) == 0
    assert toy.same(now.params["net 0"], kept.params["net 0"])
    assert toy.same(now.opt_state["net 0"], kept.opt_state["net 0"])
    assert not toy.same(now.params["net 1"], kept.params["net 1"])


def test_of_networks_one_after_the_other_one_gradient_exists_at_a_time():
    """Sums, and the zeros that these start from; tests/planning/test_targets.py asks the compiler for TPUs."""
    L, D, B = 4, 256, 16

    def loss_of(name):
        def loss_fn(params, x_BD):
            for w_DD in params[name]:
                x_BD = jnp.tanh(x_BD @ w_DD)
            return {"loss": Mean((x_BD**2).sum(), jnp.float32(B))}

        return loss_fn

    def temporaries(count):
        losses = {f"net {i}": loss_of(f"net {i}") for i in range(count)}
        tx = partitioned({name: toy.optimizer() for name in losses})
        now = state.create({name: [jnp.ones((D, D))] * L for name in losses}, tx, seed=0)
        traced = make_train_step(losses, tx, microbatches=4).trace(now, jnp.ones((B, D)))
        return traced.lower().compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 1.1 * temporaries(2)
