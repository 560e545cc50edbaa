"""Sampler and trainer in bfloat16: logits are float32, and the ratios of the first update are 1."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.methods import ppo
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model
from rlhf_jax.objectives.reduce import value
from rlhf_jax.rollout.experience import RolloutSettings, read_rollout
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import generate

CONFIG = ModelConfig(
    vocab_size=256,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ff=128,
    dtype="bfloat16",
    remat="full",
)
B, P, R, TEMPERATURE = 8, 6, 12, 0.7


def test_logits_are_products_in_float32():
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((5, 64), (64, 256)))
    for softcap in (0.0, 30.0):
        found = decoder.logits(dataclasses.replace(CONFIG, logit_softcap=softcap), head, hidden)
        wanted = np.float64(hidden) @ np.float64(head)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(
            found, softcap * np.tanh(wanted / softcap) if softcap else wanted, rtol=1e-5, atol=1e-5
        )


def test_the_ratios_of_the_first_update_are_one():
    """Of the policy's log-probs in the update, in the readings and in the sampler, whose weights are bfloat16."""
    init = jax.jit(lambda key, scalar: nn.unbox(decoder.init(CONFIG, key, scalar=scalar)), static_argnums=1)
    policy, critic = init(jax.random.key(0), False), init(jax.random.key(1), True)
    prompts = np.random.default_rng(0).integers(1, CONFIG.vocab_size, (B, P)).astype(np.int32)
    lengths, rows = jnp.full(B, P, jnp.int32), jnp.arange(B, dtype=jnp.int32)
    copy = jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy)
    how = {"max_new_tokens": R}
    end = jnp.array([0], jnp.int32)
    sampled = generate(
        CONFIG, copy, prompts, lengths, rows, jax.random.key(2), Sampling(TEMPERATURE), end, 0, **how
    )
    models, settings = {"policy": Model(CONFIG, policy)}, RolloutSettings(TEMPERATURE, "k1", 0.0, B)
    values = {"value": Model(CONFIG, critic)}
    read = jax.jit(read_rollout, static_argnums=(5, 6))(
        models, values, prompts, lengths, sampled, settings, 0
    )
    old, mask = read.logprobs["policy"], np.asarray(read.mask_BR)
    apart = np.abs(np.asarray(old - sampled.logprobs_BR))[mask]
    assert apart.mean() < 0.01 and apart.max() < 0.1, (apart.mean(), apart.max())
    advantages = jnp.where(mask, 1.0, 0.0)
    experience = ppo.Experience(
        read.tokens_BT, read.prompt_lengths_B, read.mask_BR, old, read.values["value"], advantages, advantages
    )
    how = {"clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "temperature": TEMPERATURE, "chunk": 4}
    loss_fn = ppo.ppo_loss_fn(CONFIG, CONFIG, **how)

    def loss(params):
        means = loss_fn(params, experience)
        return means["loss"].sum / means["loss"].weight, means

    _, means = jax.jit(jax.grad(loss, has_aux=True))({"policy": policy, "value": critic})
    assert abs(float(value(means["policy/ratio"])) - 1) < 1e-3
    assert float(value(means["policy/approxkl"])) < 1e-5 and float(value(means["policy/clipfrac"])) == 0
