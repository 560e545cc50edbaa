"""Adapters: their gradient against dense algebra; a fresh one changes nothing, and neither does merging one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
import tiny_families

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder, lora
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.lora import Lora, joined
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel.mesh import make_mesh

ALL = Lora(3, 6.0, ("all",))


def model(name, tmp_path, scalar=False):
    """(config with the adapter's scale, base parameters) of a tiny model."""
    folder = tiny_families.write_folder(tmp_path / name, name, scalar=scalar)
    checkpoint, params = import_folder.load(folder)
    return dataclasses.replace(checkpoint.config, adapter_scale=ALL.scale), params


def grown(config, settings=ALL, seed=0):
    """A host adapter that was trained: neither factor is 0."""
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    fresh = lora.init_adapter(config, settings, jax.sharding.get_mesh(), seed)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(np.asarray(x) + 0.2 * rng.normal(size=x.shape)), fresh)


def test_a_fresh_adapter_is_drawn_with_the_seed_and_no_two_factors_are_alike():
    """a ~ U(-1, 1) / sqrt(inputs), b = 0."""
    config = ModelConfig(vocab_size=8, width=64, layers=2, heads=4, kv_heads=4, head_dim=16, ff=64)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    settings = Lora(4, 8.0, ("q", "gate"))
    one, same, other = (jax.device_get(lora.init_adapter(config, settings, mesh, seed)) for seed in (0, 0, 1))
    q, gate = one["layers"]["attention"]["q_lora_a"], one["layers"]["mlp"]["gate_lora_a"]
    assert q.shape == gate.shape and not np.array_equal(q, gate) and not np.array_equal(q[0], q[1])
    assert np.abs(q).max() == pytest.approx(1 / 8, rel=0.05) and abs(q.mean()) < 0.02
    assert not one["layers"]["attention"]["q_lora_b"].any()
    assert np.array_equal(q, same["layers"]["attention"]["q_lora_a"])
    assert not np.array_equal(q, other["layers"]["attention"]["q_lora_a"])


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_neither(name, tmp_path):
    config, base = model(name, tmp_path)
    tokens, lengths = tiny_families.right_padded()
    plain = running.right_padded_logits(config, base, tokens)
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    fresh = lora.init_adapter(config, ALL, jax.sharding.get_mesh(), 0)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    found = running.right_padded_logits(config, joined(base, fresh), tokens)
    np.testing.assert_array_equal(found[real], plain[real])
    adapter = grown(config)
    adapted = running.right_padded_logits(config, joined(base, adapter), tokens)
    merged = lora.merged(config, joined(base, adapter))
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(
        running.right_padded_logits(config, merged, tokens)[real], adapted[real], rtol=2e-4, atol=2e-4
    )
    assert np.abs(adapted - plain)[real].max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "gptj", "mixtral"])
def test_gradient_is_that_of_the_dense_low_rank_sum(name, tmp_path):
    """With W' = W + s a b: da = s dW' b^T and db = s a^T dW', in float64, from the gradient of the merged model."""
    config, base = model(name, tmp_path)
    adapter = grown(config)
    tokens, _ = tiny_families.right_padded()
    weights = np.random.default_rng(1).normal(size=(*tokens.shape, config.width)).astype(np.float32)
    tokens, base = jax.tree.map(jnp.asarray, (tokens, base))

    def loss(params):
        return jnp.sum(decoder.hidden_states(config, params, tokens) * weights)

    found = jax.jit(jax.grad(lambda x: loss(joined(base, x))))(adapter)
    dense = jax.jit(jax.grad(loss))(lora.merged(config, joined(base, adapter)))
    checked = 0
    for site in lora.sites(config):
        leaves, gradients = (tree["layers"][site.group] for tree in (adapter, found))
        a_LIR = leaves[site.a].astype(np.float64).reshape(config.layers, -1, ALL.rank)
        wanted_a = 0.0
        for kernel in site.kernels:
            b_LRO = leaves[lora.b_of(kernel)].astype(np.float64).reshape(config.layers, ALL.rank, -1)
            dW_LIO = np.asarray(dense["layers"][site.group][kernel], np.float64)
            dW_LIO = dW_LIO.reshape(config.layers, a_LIR.shape[1], -1)
            wanted_a = wanted_a + 2.0 * np.einsum("lio,lro->lir", dW_LIO, b_LRO)
            close(gradients[lora.b_of(kernel)], 2.0 * np.einsum("lir,lio->lro", a_LIR, dW_LIO))
            checked += 1
        close(gradients[site.a], wanted_a)
    assert checked == {"mixtral": 4, "gpt2": 6, "gpt_neox": 6, "gptj": 6}.get(name, 7)


def close(found, wanted):
    found = np.asarray(found).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4 * np.abs(wanted).max())


def test_chosen_targets_and_no_others_have_adapters(tmp_path):
    config, _ = model("llama", tmp_path)
    adapter = grown(config, Lora(2, 4.0, ("v", "down")))
    assert set(adapter["layers"]["attention"]) == {"v_lora_a", "v_lora_b"}
    assert {k: x.shape for k, x in adapter["layers"]["mlp"].items()} == {
        "down_lora_a": (3, 40, 2),
        "down_lora_b": (3, 2, 32),
    }
    base, split = lora.split_adapter(joined(model("llama", tmp_path / "again")[1], adapter))
    tiny_families.assert_same_tree(split, adapter)
    assert not lora.split_adapter(base)[1]
    assert lora.settings_of(dataclasses.replace(config, adapter_scale=2.0), adapter) == Lora(
        2, 4.0, ("v", "down")
    )


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("gpt2", ("gate",), "'gate' of a gpt2 model; use all, or some of q,k,v,o,up,down"),
        ("gpt_neox", ("q", "o"), "q,o without k,v; gpt_neox keeps q, k, v in one tensor"),
        ("mixtral", ("up",), "'up' of a mixtral model; use all, or some of q,k,v,o"),
    ],
)
def test_targets_that_a_family_does_not_have(name, targets, said, tmp_path):
    config, _ = model(name, tmp_path)
    with pytest.raises(UserError, match=said):
        lora.chosen_sites(config, targets)


def test_every_family_has_sites(tmp_path):
    for name in FAMILIES:
        config, _ = model(name, tmp_path)
        kernels = {kernel for site in lora.sites(config) for kernel in site.kernels}
        assert {"q", "k", "v", "o"} <= kernels
        assert config.experts or {"up", "down"} <= kernels


def test_the_frozen_kernels_cost_no_gradient():
    """The products that would make it are not in the compiled program: two thirds of the work, and the adapter's."""
    config = ModelConfig(64, 128, layers=1, heads=2, kv_heads=2, head_dim=64, ff=256, adapter_scale=1.0)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    base, adapter = init_sharded(config, mesh, 0), lora.init_adapter(config, Lora(1, 1.0, ("all",)), mesh, 0)
    tokens = jnp.zeros((4, 32), jnp.int32)

    def flops(function, *args):
        return jax.jit(jax.grad(function)).lower(*args).compile().cost_analysis()["flops"]

    def loss(params):
        return jnp.sum(decoder.hidden_states(config, params, tokens) ** 2)

    frozen = flops(lambda x, base: loss(joined(base, x)), adapter, base)
    assert frozen < 0.75 * flops(loss, base)
