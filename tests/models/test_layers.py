"""What layers compute in float32 whatever the dtype of a model: the statistics of norms, and angles of positions."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.layers import Norm, rope

CONFIG = ModelConfig(vocab_size=61, width=64, layers=1, heads=4, kv_heads=2, head_dim=8, ff=48)
HALF_STEP = 2.0**-8  # of a bfloat16 number: what rounding the right result may change it by


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_of_bfloat16_is_the_exact_one_rounded(kind):
    drawn = np.random.default_rng(0).normal(size=(50, 64)) + (3.0 if kind == "layer" else 0.0)
    x_xD = jnp.asarray(drawn, jnp.bfloat16)
    config = dataclasses.replace(CONFIG, norm=kind)
    params = {"scale": jnp.ones(64)} | ({"bias": jnp.zeros(64)} if kind == "layer" else {})
    found = Norm(config).apply({"params": params}, x_xD)
    exact = np.asarray(x_xD, np.float64)
    if kind == "layer":
        exact = exact - exact.mean(-1, keepdims=True)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + config.norm_eps)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=HALF_STEP, atol=1e-6)


def test_positions_beyond_256_stay_apart_in_bfloat16():
    """bfloat16 holds whole numbers up to 256; the pair (1, 0) is turned to (cos, sin) of its position."""
    positions_BT = jnp.array([[0, 257, 258, 1001, 4095]], jnp.int32)
    x_BTHK = jnp.zeros((1, 5, 1, 4), jnp.bfloat16).at[..., :2].set(1)
    frequency = np.array([1.0, 0.01], np.float32)
    found = np.asarray(rope(x_BTHK, positions_BT, jnp.asarray(frequency)), np.float64)[0, :, 0]
    angle = np.array([0, 257, 258, 1001, 4095])[:, None] * np.array([1.0, 0.01])
    np.testing.assert_allclose(found, np.concatenate([np.cos(angle), np.sin(angle)], 1), atol=HALF_STEP)
