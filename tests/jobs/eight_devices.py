"""Run by test_devices.py on 8 devices: every method's loss and gradient, and a rollout, on several meshes.

The methods are those whose test files have a `MethodSuite` with a case.
"""

import dataclasses
from functools import partial

import found_suites
import jax
import jax.numpy as jnp
import numpy as np
import tiny_farm
import tiny_losses
from tiny_losses import CONFIG, P, R, assert_same
from wide import WIDE

from rlhf_jax.data.batches import Pairs, Sequences, flattened, pack, pad_packs, row_indices
from rlhf_jax.data.shared_prompts import pad_shared, shared_rows
from rlhf_jax.data.tokens.scored_text import EOS, Closing
from rlhf_jax.methods import dpo, ppo, reward_model, sft
from rlhf_jax.models import lora
from rlhf_jax.models.lora import joined
from rlhf_jax.models.model import Model, RewardModel
from rlhf_jax.models.placement import place
from rlhf_jax.parallel.mesh import gather, make_mesh, to_global
from rlhf_jax.rollout.experience import RolloutSettings, read_rollout
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.loop.step import make_evaluator
from rlhf_jax.training.rows import shared_prompt_rows
from rlhf_jax.training.run import offline, reference_logprobs
from rlhf_jax.training.run.encoded_rows import Split

# Data-parallel alone comes with the others; with RLHF_JAX_WIDE=1 it is tried by itself, too.
EVERY_AXIS = (2, 2, 2)
MESHES = ((1, 8, 1), EVERY_AXIS, *([(8, 1, 1)] if WIDE else []))
TEMPERATURE = 0.7  # that of the PPO case
CASES = tiny_losses.cases()
FOUND = {name: case for name, case in found_suites.cases().items() if case}


def outcomes(mesh, *, losses=True):
    """What is compared: of a rollout its samples, metrics and experience, and with `losses` each method's gradient."""
    found = {}
    # The mesh that shards every way is enough for each; others see the losses of SFT and of the reward model below.
    for name, case in FOUND.items() if losses else ():
        loss = tiny_losses.compiled(case)
        found[name] = gather(loss(case.place(case.params, mesh), to_global(case.batch, mesh)))
    case = CASES["ppo"]
    found |= rollout(mesh, case, tiny_losses.compiled(case))
    others = {"lora": adapted, "packed": packed, "shared": shared, "by step": by_step}
    return found | {name: of(mesh) for name, of in others.items()}


def adapted(mesh):
    """SFT's loss with an adapter, which lies as its kernels do, and its gradient."""
    case, settings = CASES["sft"], lora.Lora(4, 8.0, ("all",))
    config = dataclasses.replace(CONFIG, adapter_scale=settings.scale)
    base = place(config, case.params, mesh)
    adapter = lora.init_adapter(config, settings, mesh, 3)
    kernels, leaves = base["layers"]["mlp"], adapter["layers"]["mlp"]
    for name in ("gate", "up", "down"):
        _, inputs, outputs = kernels[name].sharding.spec
        assert leaves[f"{name}_lora_a"].sharding.spec == jax.P(None, inputs, None)
        assert leaves[f"{name}_lora_b"].sharding.spec == jax.P(None, None, outputs)
    # Away from 0 by numbers that do not depend on the mesh.
    adapter = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), adapter
    )
    loss_fn = sft.sft_loss_fn(config, R, 16)
    loss = jax.jit(partial(tiny_losses.loss_and_gradient, lambda x, batch: loss_fn(joined(base, x), batch)))
    return gather(loss(adapter, to_global(case.batch, mesh)))


def packed(mesh):
    """The reward model's loss on packed pairs, and its gradient."""
    rng, n = np.random.default_rng(4), 64
    lengths = rng.integers(2, 16, (2, n))
    sides = [
        Sequences(
            rng.integers(0, CONFIG.vocab_size, x.sum()).astype(np.int32),
            np.concatenate([[0], np.cumsum(x)]).astype(np.int64),
            np.ones(n, np.int32),
        )
        for x in lengths
    ]
    packs = pack(Pairs(*sides), 40, seed=0)
    batch = pad_packs(packs, np.arange(16), packs.most_targets, packs.most_documents, 0)
    loss = jax.jit(partial(tiny_losses.loss_and_gradient, reward_model.reward_model_loss_fn(CONFIG)))
    return gather(loss(place(CONFIG, CASES["reward_model"].params, mesh), to_global(batch, mesh)))


def shared(mesh):
    """DPO's loss on pairs whose sides share their prompts, and its gradient."""
    rng, rows, prompts = np.random.default_rng(6), [], []
    for _ in range(16):
        prompt = rng.integers(0, CONFIG.vocab_size, rng.integers(1, P))
        rows += [np.int32([*prompt, *rng.integers(0, CONFIG.vocab_size, rng.integers(1, R))]) for _ in "12"]
        prompts.append(len(prompt))
    found = shared_rows(Sequences(*flattened(rows), np.repeat(np.int32(prompts), 2)), np.arange(0, 33, 2))
    batch = pad_shared(found, np.arange(16), (int(found.lengths.max()), found.most_targets, 2), 0)
    loss = jax.jit(partial(tiny_losses.loss_and_gradient, dpo.dpo_loss_fn(CONFIG, R, 16, beta=0.3)))
    return gather(loss(place(CONFIG, CASES["sft"].params, mesh), to_global(batch, mesh)))


def by_step(mesh):
    """The same of a step whose pairs share as few array rows as every device has as many of, and held-out pairs."""
    rng, sides = np.random.default_rng(7), ([], [])
    prompts = [rng.integers(0, CONFIG.vocab_size, rng.integers(1, P)) for _ in range(64)]
    for prompt in prompts:
        for side in sides:
            side.append(np.int32([*prompt, *rng.integers(0, CONFIG.vocab_size, rng.integers(1, 2 * R))]))
    found = Pairs(*(Sequences(*flattened(side), np.int32([len(x) for x in prompts])) for side in sides))
    page = tiny_farm.settings("dpo", "farm", batch_size=64, epochs=1.0)
    about = (Split(found, found, []), page.data, 0, 0, CONFIG)
    train, held, room = shared_prompt_rows.pair_rows(*about, auto=page)
    assert train.sizes(page, mesh)[-1] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    reference = {f"ref_{side}": np.float32(rng.normal(-30, 3, 64)) for side in ("chosen", "rejected")}
    batch = train.with_columns(reference).make(row_indices(0, 64, 64, 0), slice(None))
    loss_fn = dpo.dpo_loss_fn(CONFIG, room, 16, beta=0.3)
    loss = jax.jit(partial(tiny_losses.loss_and_gradient, loss_fn))
    params = place(CONFIG, CASES["sft"].params, mesh)
    zeros = reference_logprobs.zeros(held)
    measured = make_evaluator(loss_fn)(
        params, offline._eval_batches(held.with_columns(zeros), held.batch, mesh)
    )
    return gather(loss(params, to_global(batch, mesh))), jax.tree.map(np.float32, measured)


def rollout(mesh, case, loss):
    policy, value = (place(CONFIG, case.params[name], mesh) for name in ("policy", "value"))
    reference = place(CONFIG, CASES["sft"].params | {"embed": CASES["sft"].params["embed"] * 1.1}, mesh)
    reward = place(CONFIG, CASES["reward_model"].params, mesh)
    generator = DecodeGenerator(
        CONFIG,
        mesh,
        max_new_tokens=R,
        sampling=Sampling(TEMPERATURE),
        end_ids=(2,),
        pad_id=0,
        dtype="float32",
    )
    prompts = to_global(prompt_arrays(), mesh)
    generator.load(policy)
    sampled = generator.generate(prompts["tokens"], prompts["lengths"], prompts["rows"], jax.random.key(3))
    settings, advantage = (
        RolloutSettings(TEMPERATURE, "k1", -3.0, 16),
        ppo.AdvantageSettings(1.0, 0.95, False),
    )
    where = {"prompts_BP": prompts["tokens"], "prompt_lengths_B": prompts["lengths"], "sampled": sampled}
    language = {"policy": Model(CONFIG, policy), "reference": Model(CONFIG, reference)}
    read = jax.jit(partial(read_rollout, settings=settings, pad_id=0))
    readings = read(language, {"value": Model(CONFIG, value)}, **where)
    scored = TokenRewards(RewardModel(Model(CONFIG, reward), None, "", "", EOS, Closing(2), mean=0.25), 0)(
        [], **where
    )()
    make = jax.jit(partial(ppo.make_experience, settings=settings, advantage=advantage))
    experience, metrics = make(readings, sampled, scored, np.float32(0.1))
    first, _ = loss({"policy": policy, "value": value}, experience)
    assert abs(first["policy/ratio"] - 1) < 1e-5 and first["policy/approxkl"] < 1e-10, first
    assert first["policy/clipfrac"] == 0, first
    assert metrics.pop("sampling/logp_difference") < 1e-5  # all of it rounding, so not compared below
    samples = sampled._replace(logprobs_BR=None)
    return {"samples": gather(samples), "experience": gather((sampled.logprobs_BR, experience, metrics))}


def prompt_arrays():
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, P + 1, tiny_losses.B).astype(np.int32)
    tokens = rng.integers(3, CONFIG.vocab_size, (tiny_losses.B, P)).astype(np.int32)
    tokens[np.arange(P) < (P - lengths)[:, None]] = 0
    return {"tokens": tokens, "lengths": lengths, "rows": np.arange(tiny_losses.B, dtype=np.int32)}


if __name__ == "__main__":
    assert jax.device_count() == 8
    wanted = outcomes(make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    ended_B, lengths_B = wanted["samples"].ended_B, wanted["samples"].lengths_B
    assert 0 < ended_B.sum() < len(ended_B) and 1 in lengths_B, lengths_B  # ragged in every way
    for sizes in MESHES:
        losses = WIDE or sizes == EVERY_AXIS
        found = outcomes(make_mesh(*sizes), losses=losses)
        for a, b in zip(
            jax.tree.leaves(found.pop("samples")), jax.tree.leaves(wanted["samples"]), strict=True
        ):
            assert np.array_equal(a, b), sizes
        for name, x in found.items():
            assert_same(x, wanted[name])
            print(sizes, name, "agrees", flush=True)
        for name in found_suites.suites().keys() - FOUND.keys() if losses else ():
            print(sizes, name, "has no loss of its own", flush=True)
