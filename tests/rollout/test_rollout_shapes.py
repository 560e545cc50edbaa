"""The programs that the memory plan lowers from shapes are those that the run compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model
from rlhf_jax.models.placement import init_sharded, planned_copy, planned_params, rollout_copier
from rlhf_jax.parallel.mesh import make_mesh, to_global
from rlhf_jax.rollout.rewards import token_program
from rlhf_jax.rollout.rollout_shapes import RolloutShapes
from rlhf_jax.rollout.text_rewards import text_program
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import generate
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.loop.program_costs import bytes_per_device

CONFIG = ModelConfig(vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
B, P, R, PAD, TEMPERATURE = 4, 3, 6, 2, 0.7


@pytest.fixture(scope="module")
def run():
    """(mesh, shapes, prompts as the run has them)."""
    mesh = make_mesh(1, 1, 1)
    rows = {"tokens": jnp.ones((B, P), jnp.int32), "lengths": jnp.full(B, P), "rows": jnp.arange(B)}
    prompts = to_global({name: jnp.int32(x) for name, x in rows.items()}, mesh)
    return mesh, RolloutShapes(mesh, B, P, R, TEMPERATURE, PAD), prompts


def form(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling_is_planned_to_the_letter(run, dtype):
    """So that the run finds it compiled: for the copy that is sampled from, all tokens and all shardings."""
    mesh, shapes, prompts = run
    copy = rollout_copier(CONFIG, mesh, dtype)(init_sharded(CONFIG, mesh, 0))
    assert form(shapes.prompts()) == form(prompts)
    given = (*(prompts[name] for name in ("tokens", "lengths", "rows")), jax.random.key(0))
    ends = jnp.array([1], jnp.int32)
    wanted = generate.lower(CONFIG, copy, *given, Sampling(TEMPERATURE), ends, PAD, max_new_tokens=R)
    assert shapes.trace_sampling(CONFIG, dtype).lower().as_text() == wanted.as_text()


def test_decoding_holds_its_weights_once():
    """Where layers come apart: slices of a stack would be there beside it, and beside the cache, which is larger."""
    mesh, long = make_mesh(1, 1, 1), 1500
    shapes = RolloutShapes(mesh, 4, P, long, TEMPERATURE, PAD)
    config = dataclasses.replace(CONFIG, ff=1024, layers=2)
    stack, apart = planned_params(config, mesh), planned_copy(config, mesh, "float32")
    assert bytes_per_device(stack) == bytes_per_device(apart)
    ends = jax.ShapeDtypeStruct((1,), jnp.int32)

    def temporaries(params):
        given = (*shapes.prompts().values(), jax.eval_shape(lambda: jax.random.key(0)), Sampling(TEMPERATURE))
        lowered = generate.lower(config, params, *given, ends, PAD, max_new_tokens=long)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    saved = temporaries(stack) - temporaries(apart)
    assert saved > 0.8 * bytes_per_device(stack["layers"]), saved / bytes_per_device(stack["layers"])


def test_scoring_is_planned_for_what_was_sampled(run):
    """With its shardings: those that XLA would choose for it have other names."""
    mesh, shapes, prompts = run
    how = {"max_new_tokens": R, "sampling": Sampling(TEMPERATURE), "end_ids": (1,), "pad_id": PAD}
    generator = DecodeGenerator(CONFIG, mesh, **how)
    generator.load(init_sharded(CONFIG, mesh, 0))
    found = generator.generate(*(prompts[name] for name in ("tokens", "lengths", "rows")), jax.random.key(0))
    assert form(shapes.sampled(CONFIG)) == form(found)
    reward = Model(CONFIG, init_sharded(CONFIG, mesh, 1, scalar=True))
    planned = dataclasses.replace(reward, params=planned_params(CONFIG, mesh, scalar=True))
    tokens = shapes.trace_scoring(planned, CONFIG, (1, 5), 0).lower()
    wanted = token_program((1, 5), PAD).lower(reward, prompts["tokens"], prompts["lengths"], found, 0.0)
    in_parts = RolloutShapes(mesh, B, P, R, TEMPERATURE, PAD, microbatches=2)
    halves = in_parts.trace_scoring(planned, CONFIG, (1, 5), 0).lower().compile()
    scored = token_program((1, 5), PAD, 2)(reward, prompts["tokens"], prompts["lengths"], found, 0.0)
    whole = token_program((1, 5), PAD)(reward, prompts["tokens"], prompts["lengths"], found, 0.0)
    assert "while" in halves.as_text() and np.allclose(scored.scores_B, whole.scores_B, atol=1e-6)
    assert tokens.as_text() == wanted.as_text() and tokens.out_info.scores_B.shape == (B,)
    text = shapes.trace_scoring(planned, CONFIG, (1, 5), 9).lower()
    tokens_BT = to_global({"tokens": jnp.ones((B, 9), jnp.int32)}, mesh)["tokens"]
    assert text.as_text() == text_program().lower(reward, tokens_BT, prompts["lengths"], 0.0).as_text()
