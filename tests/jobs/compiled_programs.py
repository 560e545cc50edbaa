"""Run by test_compiled_programs.py on 8 devices: what the compiled programs of a (2, 2, 2) mesh hold and send.

The sizes below all differ, and so do their halves and quarters: a dimension says which axis it is.
"""

import dataclasses
import math

import flax.linen as nn
import hlo
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.methods import dpo, ppo, sft
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded, param_shardings, rollout_copier
from rlhf_jax.parallel.mesh import AXES, gather, make_mesh, to_global
from rlhf_jax.planning import hlo_costs, hlo_text
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.compaction import stages
from rlhf_jax.sampling.decode import generate
from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer, partitioned

CONFIG = ModelConfig(vocab_size=1088, width=80, layers=3, heads=8, kv_heads=4, head_dim=10, ff=176)
B, P, R = 16, 24, 96
T, CHUNK, WAYS = P + R, 12, 4  # rows are cut in 4


def weight_shapes(config):
    """Every shape a weight, a layer's weight or a device's part of it can have; vectors are no matter."""
    whole = nn.unbox(jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))))
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole):
        shape = leaf.shape[1:] if path[0].key == "layers" else leaf.shape
        for flat in (shape, (shape[0], math.prod(shape[1:])), (math.prod(shape[:-1]), shape[-1])):
            for a in (1, 2):
                for b in (1, 2):
                    cut = (flat[0] // a, *flat[1:-1], flat[-1] // b)
                    found |= {cut, cut[::-1]} if len(cut) > 1 else set()
    return found | {(1, *shape) for shape in found}


def decode_text(config, params, B=B):
    rng = np.random.default_rng(0)
    tokens_BP = rng.integers(3, config.vocab_size, (B, P)).astype(np.int32)
    rows = {"tokens": tokens_BP, "lengths": np.full(B, P, np.int32), "rows": np.arange(B, dtype=np.int32)}
    batch = to_global(rows)
    lowered = generate.lower(
        config,
        params,
        *(batch[name] for name in ("tokens", "lengths", "rows")),
        jax.random.key(0),
        Sampling(),
        jnp.array([2], jnp.int32),
        0,
        max_new_tokens=R,
    )
    return lowered.compile().as_text()


def gathered_weights(text, config):
    """Weights that are gathered in the loop over tokens: read once per token, they would be sent once per token."""
    lines = hlo.while_loops(text)["jit(generate)/while"]
    assert any("attention" in line for line in lines)  # it is the loop over tokens
    gathers = hlo.collectives(lines, "all-gather") + hlo.collectives(lines, "all-to-all")
    return sorted(set(gathers) & weight_shapes(config))


def decoding_gathers_no_weight(mesh):
    for tied in (False, True):
        config = dataclasses.replace(CONFIG, tie_embeddings=tied)
        params = init_sharded(config, mesh, 0)
        assert (
            gathered_weights(decode_text(config, rollout_copier(config, mesh, "float32")(params)), config)
            == []
        )
        # As they are trained they would have to be: the reading of the text finds what there is.
        text = decode_text(config, params)
        everywhere = hlo.collectives(text.splitlines(), "all-gather")
        assert set(everywhere) & weight_shapes(config), everywhere


def rows_that_have_ended_leave_without_moving_any(mesh):
    """Compaction picks rows on each device: neither a cache nor a response is sent to another."""
    groups, rows = mesh.shape["data"] * mesh.shape["fsdp"], 16 * WAYS
    assert len(stages(rows, R, groups, 1)) == 2
    config = dataclasses.replace(CONFIG, layers=1)
    params = rollout_copier(config, mesh, "float32")(init_sharded(config, mesh, 0))
    lines = decode_text(config, params, rows).splitlines()
    # The loop over tokens sends logits and single numbers, whose axes are none of these.
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        found = hlo.collectives(lines, kind)
        assert not [shape for shape in found if {P + R, R} & {*shape}], (kind, found)


def rows_of(rng):
    prompts = rng.integers(1, P + 1, B).astype(np.int32)
    tokens = rng.integers(0, CONFIG.vocab_size, (B, T)).astype(np.int32)
    return {"tokens": tokens, "lengths": prompts + R, "prompt_lengths": prompts}


def trainers(mesh):
    """Every loss that reads the language head: (loss, parameters, optimizer, batch, microbatches, rows at a time)."""
    rng = np.random.default_rng(0)
    adam = make_optimizer(learning_rate=1e-3, total_steps=10)
    pair = {f"{side}_{name}": x for side in ("chosen", "rejected") for name, x in rows_of(rng).items()}
    reference = {f"ref_{side}": np.zeros(B, np.float32) for side in ("chosen", "rejected")}
    language = init_sharded(CONFIG, mesh, 0)
    both = {"policy": init_sharded(CONFIG, mesh, 0), "value": init_sharded(CONFIG, mesh, 1, scalar=True)}
    numbers_BR = [np.zeros((B, R), np.float32)] * 4
    rows = rows_of(rng)
    experience = ppo.Experience(rows["tokens"], rows["prompt_lengths"], np.ones((B, R), bool), *numbers_BR)
    ppo_loss = ppo.ppo_loss_fn(
        CONFIG, CONFIG, clip=0.2, value_clip=0.2, value_coef=0.1, temperature=0.7, chunk=CHUNK
    )
    dpo_loss = dpo.dpo_loss_fn(CONFIG, R, CHUNK, beta=0.1, label_smoothing=0.0)
    yield "sft", sft.sft_loss_fn(CONFIG, R, CHUNK), language, adam, rows, 1, B
    yield "dpo", dpo_loss, language, adam, pair | reference, 2, B
    yield "ppo", ppo_loss, both, partitioned({"policy": adam, "value": adam}), experience, 1, B


def training_holds_no_logits_of_a_batch(mesh):
    vocabulary = (CONFIG.vocab_size, CONFIG.vocab_size // 2)
    for name, loss_fn, params, optimizer, batch, microbatches, rows in trainers(mesh):
        step = make_train_step(loss_fn, optimizer, microbatches=microbatches)
        made = state.create(params, optimizer, seed=0)
        text = step.trace(made, to_global(batch, mesh)).lower().compile().as_text()
        largest = hlo.largest_with(text, vocabulary)
        # Of a device: a chunk of its rows, or a weight. A response's logits would be R / CHUNK times that.
        here = rows // WAYS
        most = max(here * CHUNK * CONFIG.vocab_size, CONFIG.width * CONFIG.vocab_size)
        assert most < here * R * CONFIG.vocab_size // 2, "the sizes above tell nothing"
        assert math.prod(largest) <= most, (name, largest)
    # One chunk of all positions: the reading of the text finds what there is.
    step = make_train_step(sft.sft_loss_fn(CONFIG, R, R), make_optimizer(learning_rate=1e-3, total_steps=10))
    made = state.create(
        init_sharded(CONFIG, mesh, 0), make_optimizer(learning_rate=1e-3, total_steps=10), seed=0
    )
    text = step.trace(made, to_global(rows_of(np.random.default_rng(0)), mesh)).lower().compile().as_text()
    assert math.prod(hlo.largest_with(text, vocabulary)) >= B // WAYS * R * CONFIG.vocab_size // 2


def the_head_is_sent_once(*sizes):
    """SFT's gradient on a mesh: that of one device, and no loop sends what is as large as the head, or a part of it."""
    config = dataclasses.replace(CONFIG, layers=1, tie_embeddings=False)
    loss_fn, rows = sft.sft_loss_fn(config, R, CHUNK), rows_of(np.random.default_rng(1))

    def gradient_on(mesh):
        def loss(params, batch):
            mean = loss_fn(params, batch)["loss"]
            return mean.sum / mean.weight

        where = param_shardings(config, mesh)
        given = init_sharded(config, mesh, 0), to_global(rows, mesh)
        compiled = jax.jit(jax.grad(loss), out_shardings=where).lower(*given).compile()
        return gather(compiled(*given)), compiled.as_text()

    want, _ = gradient_on(make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    got, text = gradient_on(make_mesh(*sizes))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    parts = hlo_text.computations_of(text)
    sent = hlo_costs.collectives_of(parts, hlo_text.runs_of(parts), dict(zip(AXES, sizes, strict=True)))
    part_V = config.vocab_size // 2
    of_head = [x for x in sent if any(len(a) > 1 and not all(n % part_V for n in a) for a in x.arrays)]
    assert of_head and not any(x.runs.loops for x in of_head), (sizes, of_head)
    # The head and the table, each gathered once, and summed once: an all-reduce is two gathers.
    head_bytes = 4 * config.width * config.vocab_size / sizes[2]
    assert sum(x.total for x in of_head) <= 6.01 * head_bytes, (sizes, of_head)
    if sizes[1] > 1:
        assert any(x.kind == "reduce-scatter" for x in of_head), (sizes, of_head)


if __name__ == "__main__":
    assert jax.device_count() == 8
    for sizes in ((1, 8, 1), (2, 2, 2), (8, 1, 1)):
        the_head_is_sent_once(*sizes)
        print(sizes, "the head is sent once", flush=True)
    mesh = make_mesh(2, 2, 2)
    decoding_gathers_no_weight(mesh)
    print("decoding gathers no weight", flush=True)
    rows_that_have_ended_leave_without_moving_any(mesh)
    print("compaction moves no row", flush=True)
    training_holds_no_logits_of_a_batch(mesh)
    print("training holds no logits of a batch", flush=True)
