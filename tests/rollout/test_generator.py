"""The generator's contract: a copy of the policy, sampled from, then freed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode_generator import DecodeGenerator

CONFIG = ModelConfig(vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
TOKENS = jnp.full((2, 3), 4, jnp.int32)
LENGTHS, ROWS = jnp.array([3, 2], jnp.int32), jnp.arange(2, dtype=jnp.int32)


@pytest.fixture(scope="module")
def generator():
    mesh = make_mesh(devices=jax.devices()[:1])
    return mesh, DecodeGenerator(
        CONFIG, mesh, max_new_tokens=5, sampling=Sampling(1.0), end_ids=(1,), pad_id=0
    )


def test_it_samples_from_a_copy_of_what_was_loaded(generator):
    mesh, engine = generator
    params = init_sharded(CONFIG, mesh, 0)
    engine.load(params)
    first = engine.generate(TOKENS, LENGTHS, ROWS, jax.random.key(0))
    jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p), donate_argnums=0)(params)  # as a train step does
    again = engine.generate(TOKENS, LENGTHS, ROWS, jax.random.key(0))
    assert np.array_equal(first.tokens_BR, again.tokens_BR)
    engine.load(init_sharded(CONFIG, mesh, 1))
    other = engine.generate(TOKENS, LENGTHS, ROWS, jax.random.key(0))
    assert not np.array_equal(first.tokens_BR, other.tokens_BR)


def test_nothing_is_left_after_close(generator):
    _, engine = generator
    engine.close()
    with pytest.raises(RuntimeError, match=r"generate\(\) before load\(\)"):
        engine.generate(TOKENS, LENGTHS, ROWS, jax.random.key(0))
