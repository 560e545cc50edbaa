"""With model.dtype=bfloat16 a trainer computes in bfloat16 over float32 weights, gradients and optimizer state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import observed
import pytest
import tiny_farm
import tiny_losses
from safetensors.numpy import load_file

from rlhf_jax.methods import reward_model, sft
from rlhf_jax.training.loop.program_costs import programs_inside
from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer

CONFIG = dataclasses.replace(tiny_losses.CONFIG, dtype="bfloat16")


def products(jaxpr, found):
    """dtypes of the operands of every matrix product, inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(tuple(x.aval.dtype.name for x in equation.invars))
        for inner in programs_inside(equation):
            products(getattr(inner, "jaxpr", inner), found)
    return found


@pytest.mark.parametrize("job", ["sft", "reward_model"])
def test_products_are_bfloat16_and_all_that_is_kept_is_float32(job):
    case = tiny_losses.cases()[job]
    make = {
        "sft": lambda: sft.sft_loss_fn(CONFIG, tiny_losses.R, 16),
        "reward_model": lambda: reward_model.reward_model_loss_fn(CONFIG),
    }
    loss_fn = make[job]()
    seen = products(jax.make_jaxpr(lambda p, x: loss_fn(p, x)["loss"].sum)(case.params, case.batch).jaxpr, [])
    plain = [pair for pair in seen if "float32" in pair]
    assert len(seen) > 8 and len(plain) <= 2, (
        seen
    )  # the scores' head, and what attention makes of its softmax
    # A rate so small that bfloat16 weights (8 bits) would not move at all.
    tx = make_optimizer(learning_rate=1e-5, total_steps=100, schedule="constant", max_grad_norm=0)
    state = create(jax.tree.map(jnp.array, case.params), tx, seed=0)
    step = make_train_step(loss_fn, tx)
    for _ in range(3):
        state, metrics = step(state, case.batch)
    assert float(metrics["nonfinite"]) == 0
    kept = jax.tree.leaves((state.params, state.opt_state))
    assert {x.dtype.name for x in kept} == {"float32", "int32"}
    for before, after in zip(*map(jax.tree.leaves, (case.params, state.params)), strict=True):
        moved = np.abs(np.asarray(after) - before)
        assert moved.max() > 1e-5  # about three times the rate
    table, moved_table = case.params["layers"]["mlp"]["up"], state.params["layers"]["mlp"]["up"]
    same = jnp.asarray(table).astype(jnp.bfloat16) == moved_table.astype(jnp.bfloat16)
    assert same.mean() > 0.8  # in bfloat16 most of it would have been lost


def test_an_export_keeps_every_bit_of_the_master_weights(farm, tmp_path):
    config = tiny_farm.settings("dpo", farm, **{"model.dtype": "bfloat16", "epochs": 0.1})
    observed.run("dpo", config, tmp_path)
    weights = load_file(tmp_path / "export/model.safetensors")
    assert {x.dtype.name for x in weights.values()} == {"float32"}
    head = weights["lm_head.weight"]
    assert (head != np.asarray(jnp.asarray(head).astype(jnp.bfloat16).astype(jnp.float32))).mean() > 0.9
