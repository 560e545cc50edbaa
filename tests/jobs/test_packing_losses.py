"""A pack equals its documents one by one: loss and gradient of every method that packs, on several kinds of models."""

import math

import jax
import numpy as np
import observed
import pytest
import tiny_farm
import tiny_losses

from rlhf_jax.data.batches import Pairs, Sequences, pack, pad, pad_packs
from rlhf_jax.methods import dpo, reward_model, sft
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.training.run import encoded_rows

V, T = 40, 48
_BASE = {"vocab_size": V, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "ff": 32}
MODELS = {
    "plain": ModelConfig(**_BASE),
    "windowed and capped": ModelConfig(
        **_BASE, window=5, local_layers=(True, False), attention_softcap=3.0, logit_softcap=4.0
    ),
    "learned positions": ModelConfig(**_BASE, positions="learned", max_positions=64, norm="layer"),
}
JOBS = ("sft", "reward_model", "dpo")


def documents(n, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 20, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(0, V, offsets[-1]).astype(np.int32)
    return Sequences(tokens, offsets, rng.integers(1, lengths).astype(np.int32))


def loss_of(job, config, R):
    if job == "sft":
        return sft.sft_loss_fn(config, R, 16)
    if job == "reward_model":
        return reward_model.reward_model_loss_fn(config)
    return dpo.dpo_loss_fn(config, R, 16, beta=0.3, label_smoothing=0.1)


def params_of(config, scalar):
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0), scalar=scalar))
    rng = np.random.default_rng(1)
    boxed = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)
    return jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "names"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("job", JOBS)
def test_a_pack_equals_its_documents_one_by_one(job, name):
    config, n = MODELS[name], 9
    params = params_of(config, job == "reward_model")
    if job == "sft":
        found = documents(n, 0)
        alone = pad(found, np.arange(n), T, 0)
    else:
        found = Pairs(documents(n, 0), documents(n, 1))
        alone = encoded_rows.pad_pairs(found, np.arange(n), T, 0, slice(None))
    packs = pack(found, T, seed=5)
    assert 1 < len(packs) < n
    R, S = packs.most_targets + 2, packs.most_documents + 2
    packed = pad_packs(packs, np.arange(len(packs)), R, S, 0)
    if job == "dpo":
        reference = np.float32(np.random.default_rng(2).normal(-30, 3, (n, 2)))
        alone |= {"ref_chosen": reference[:, 0], "ref_rejected": reference[:, 1]}
        there = np.full((len(packs), S // 2, 2), np.nan, np.float32)  # nobody reads what is not there
        for b in range(len(packs)):
            rows = packs.members[packs.offsets[b] : packs.offsets[b + 1] : 2] // 2
            there[b, : len(rows)] = reference[rows]
        packed |= {"ref_chosen": there[..., 0], "ref_rejected": there[..., 1]}
    one = jax.jit(jax.value_and_grad(lambda p, x: sums(loss_of(job, config, T)(p, x)), has_aux=True))
    total, gradient, means = 0.0, 0.0, 0.0
    for i in range(n):
        (loss, found_means), g = one(params, jax.tree.map(lambda x, i=i: x[i : i + 1], alone))
        total, means = total + loss, jax.tree.map(np.add, means or zeros(found_means), found_means)
        gradient = g if i == 0 else jax.tree.map(np.add, gradient, g)
    (loss, packed_means), packed_gradient = jax.jit(
        jax.value_and_grad(lambda p, x: sums(loss_of(job, config, R)(p, x)), has_aux=True)
    )(params, packed)
    found, wanted = (loss, packed_means, packed_gradient), (total, means, gradient)
    tiny_losses.assert_same(found, wanted, atol=2e-7)
    # A row of weight 0 counts nowhere, and the others as if it were not there.
    weight = np.float32(np.arange(len(packs)) > 0)
    loss_fn = jax.jit(loss_of(job, config, R))
    rest = loss_fn(params, jax.tree.map(lambda x: x[1:], packed))
    tiny_losses.assert_same(loss_fn(params, packed | {"weight": weight}), rest)


def sums(means):
    return means["loss"].sum, means


def zeros(means):
    return jax.tree.map(np.zeros_like, means)


@pytest.mark.parametrize("job", JOBS)
def test_trainers_pack(job, farm, tmp_path, capsys):
    """The same held-out loss as without packing, in fewer rows; and an interrupted run ends with the same bits."""
    still = {"optimizer.learning_rate": 0.0, "epochs": 0.01, "batch_size": 4, "center_on": ""}
    still = {k: v for k, v in still.items() if job == "reward_model" or k != "center_on"}
    for packing in ("off", "on"):
        config = tiny_farm.settings(job, farm, **still, **{"data.packing": packing})
        observed.run(job, config, tmp_path / packing)
    assert "% filled" in capsys.readouterr().out
    plain, packed = (eval_row(tmp_path / name) for name in ("off", "on"))
    assert plain.keys() == packed.keys()
    for name in plain:
        if name != "epoch":
            assert packed[name] == pytest.approx(plain[name], rel=2e-5, abs=1e-6), name
    if job == "dpo":
        assert tiny_farm.rows(tmp_path / "on")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def eval_row(workdir):
    rows = [row for row in tiny_farm.rows(workdir) if any(k.startswith("eval/") for k in row)]
    return {k: v for k, v in rows[-1].items() if k.startswith("eval/")}


def test_a_packed_run_that_was_interrupted_ends_with_the_same_bits(farm, tmp_path):
    config = tiny_farm.settings("dpo", farm, **{"data.packing": "on", "epochs": 1.0, "batch_size": 4})
    observed.run("dpo", config, tmp_path / "whole")
    _, part = observed.run("dpo", config, tmp_path / "parts", stop_before=6)
    assert max(part.at) == 6
    observed.run("dpo", config, tmp_path / "parts")
    weights = [(tmp_path / name / "export/model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert tiny_farm.rows(tmp_path / "whole") == tiny_farm.rows(tmp_path / "parts")
