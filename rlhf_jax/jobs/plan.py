"""A trainer's step before any weight is read: what it computes, and on which shapes with which shardings.

`fits` compiles it and says what it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.jobs import adapters, losses
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import Model
from rlhf_jax.models.placement import planned as planned_params
from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.parallel.rules import ROLLOUT_RULES
from rlhf_jax.rollout.experience import Experience, Models, Settings, read_rollout
from rlhf_jax.rollout.rewards import token_program
from rlhf_jax.rollout.text_rewards import text_program
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import generate
from rlhf_jax.training.ahead import bytes_per_device
from rlhf_jax.training.optimizer import make_optimizer, partitioned
from rlhf_jax.training.state import TrainState, planned
from rlhf_jax.training.step import TrainStep, make_train_step

Shapes = Any  # a tree of ShapeDtypeStructs with shardings


class Phase(NamedTuple):
    """Another program of an iteration.

    Attributes:
      beside: bytes per device of what is alive meanwhile and not its argument.
      shared: bytes per device that two of its arguments have in common.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    beside: int
    shared: int = 0


class Plan(NamedTuple):
    """A trainer's step and what it is called with.

    Attributes:
      loss_fn, optimizer, step: what `make_train_step` was given, and gave.
      state, batch, frozen: as the step will see them.
      beside: bytes per device of other models, alive while the step runs.
      others: the other programs of an iteration.
      flops: of one step over all devices, as MFU counts them; `fits.prepare` fills it in.
    """

    loss_fn: losses.LossFn
    optimizer: optax.GradientTransformation
    step: TrainStep
    state: TrainState
    batch: Shapes
    frozen: Shapes
    beside: int = 0
    others: tuple[Phase, ...] = ()
    flops: float = 0.0


PlanOf = Callable[[ConfigDict, Mesh], Plan]


def rows(mesh: Mesh, B: int, arrays: Any) -> Shapes:
    """Some rows of a batch, as arrays or shapes -> the whole batch of B rows, cut over the mesh."""
    where = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((B, *x.shape[1:]), x.dtype, sharding=where), arrays)


def optimizer(settings: ConfigDict, total_steps: int, **changes: Any) -> optax.GradientTransformation:
    """The optimizer that a page's `optimizer` group describes."""
    return make_optimizer(**{**settings.to_dict(), "total_steps": total_steps, **changes})


def offline(
    model: ModelConfig,
    loss_of: Callable[[ModelConfig, ConfigDict], losses.LossFn],
    steps: int,
    arrays: Any,
    config: ConfigDict,
    mesh: Mesh,
    *,
    scalar: bool = False,
    frozen_copy: bool = False,
) -> Plan:
    """A trainer on fixed rows. arrays: some rows of a batch; loss_of(model, config) -> the loss.

    frozen_copy: whether a copy of what is trained, as it was, stays beside it.
    """
    loss_fn = loss_of(dataclasses.replace(model, remat=config.model.remat), config)
    tx = optimizer(config.optimizer, steps)
    start = adapters.planned(model, adapters.settings(config.lora), mesh, scalar=scalar)
    state = planned(start.trained, tx)
    step = make_train_step(loss_fn, tx, microbatches=config.microbatches)
    beside = bytes_per_device(state.params) if frozen_copy else 0
    return Plan(loss_fn, tx, step, state, rows(mesh, config.batch_size, arrays), start.frozen, beside)


def ppo_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Policy and value model each have their own."""
    updates = updates_per_iteration(config)
    rates = {"policy": config.optimizer.learning_rate, "value": config.value_learning_rate}
    return partitioned(
        {
            name: optimizer(config.optimizer, config.steps, updates_per_step=updates, learning_rate=rate)
            for name, rate in rates.items()
        }
    )


def updates_per_iteration(config: ConfigDict) -> int:
    """Optimizer updates on one rollout."""
    return config.epochs * (config.rollout.batch_size // config.minibatch_size)


def ppo_settings(config: ConfigDict) -> Settings:
    return Settings(
        temperature=config.rollout.temperature,
        kl_estimator=config.kl_estimator,
        missing_eos_penalty=config.missing_eos_penalty,
        gamma=config.gamma,
        lam=config.lam,
        whiten_rewards=config.whiten_rewards,
        logprob_chunk=config.logprob_chunk,
    )


class Networks(NamedTuple):
    """The models of PPO by their settings, before any weight is read.

    Attributes:
      value_from: whose trunk the value model starts from: "reward" or "policy".
      closing: what the reward model reads behind a response, see `rollout.rewards`.
      text_length: tokens of the rows that it reads, where these are not the policy's own tokens; else 0.
    """

    policy: ModelConfig
    value: ModelConfig
    reward: ModelConfig
    value_from: str = "reward"
    closing: tuple[int, ...] = (0,)
    text_length: int = 0


@lru_cache
def reading_program(settings: Settings, pad_id: int, *, values: bool = True) -> Any:
    """`read_rollout`, compiled once for the plan and the run."""
    return jax.jit(partial(read_rollout, settings=settings, pad_id=pad_id, values=values))


def ppo(networks: Networks, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """PPO on prompts of P columns: the update, and the rollout and its scoring."""
    model, value_config, reward_config = (
        dataclasses.replace(c, remat=config.model.remat) for c in networks[:3]
    )
    loss_fn = losses.ppo(
        model,
        value_config,
        clip=config.clip,
        value_clip=config.value_clip,
        value_coef=config.value_coef,
        temperature=config.rollout.temperature,
        chunk=config.logprob_chunk,
    )
    tx = ppo_optimizer(config)
    lora = adapters.settings(config.lora)
    policy = adapters.planned(model, lora, mesh)
    value = adapters.planned(value_config, lora, mesh, scalar=True)
    state = planned({"policy": policy.trained, "value": value.trained}, tx)
    frozen = {"policy": policy.frozen, "value": value.frozen}
    reward = Model(reward_config, stored(planned_params(reward_config, mesh, scalar=True), lora.base_dtype))
    # Reference and reward model. What is frozen of the policy is the reference's, and what is frozen of the value model
    # that model's whose trunk it is.
    kept = bytes_per_device(policy.trained)
    beside = max(0, kept + bytes_per_device(reward.params) - bytes_per_device(value.frozen))
    R, N = config.rollout.max_new_tokens, config.rollout.batch_size
    integers, numbers, flags = (
        partial(jax.ShapeDtypeStruct, dtype=t) for t in (jnp.int32, jnp.float32, bool)
    )
    one = Experience(integers((1, P + R)), integers((1,)), flags((1, R)), *[numbers((1, R))] * 4)
    prompts = rows(mesh, N, {"tokens": integers((1, P)), "lengths": integers((1,)), "rows": integers((1,))})
    # Where they are in a run: then what is compiled here is what the run finds in the compilation cache.
    everywhere = NamedSharding(mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)

    given = (prompts["tokens"], prompts["lengths"], prompts["rows"], key)
    sampler = Sampling(config.rollout.temperature)

    def sampling() -> jax.stages.Lowered:
        copy = planned_params(model, mesh, rules=ROLLOUT_RULES, dtype=config.rollout.dtype)
        return generate.lower(model, copy, *given, sampler, integers((1,)), 0, max_new_tokens=R)

    def sampled() -> Shapes:
        found = jax.eval_shape(
            lambda *x: generate(model, *x, sampler, jnp.zeros(1, jnp.int32), 0, max_new_tokens=R),
            policy.whole,
            *given,
        )
        cut = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut) if x.ndim else x, found
        )

    def reading() -> jax.stages.Lowered:
        whole = Model(model, policy.whole)
        return reading_program(ppo_settings(config), pad_id).lower(
            models=Models(whole, Model(value_config, value.whole), whole),
            prompts_BP=prompts["tokens"],
            prompt_lengths_B=prompts["lengths"],
            sampled=sampled(),
        )

    def scoring() -> jax.stages.Lowered:
        if T := networks.text_length:
            text = rows(mesh, N, {"tokens": integers((1, T)), "lengths": integers((1,))})
            return text_program.lower(reward, text["tokens"], text["lengths"], 0.0)
        return token_program(networks.closing, pad_id).lower(
            reward, prompts["tokens"], prompts["lengths"], sampled(), 0.0
        )

    own = bytes_per_device((state.params, state.opt_state))
    alive = own + bytes_per_device(frozen) + beside
    twice = policy.frozen if networks.value_from == "reward" else frozen
    others = (
        Phase("sampling", sampling, alive),
        Phase(
            "reading",
            reading,
            bytes_per_device(state.opt_state) + beside - kept,
            shared=bytes_per_device(twice),
        ),
        Phase("scoring", scoring, max(0, alive - bytes_per_device(reward.params))),
    )
    step = make_train_step(loss_fn, tx, microbatches=config.microbatches, divided=False)
    return Plan(loss_fn, tx, step, state, rows(mesh, config.minibatch_size, one), frozen, beside, others)


def example(make: Callable[[np.ndarray, Any], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One row of a batch as `make` makes it: what `offline` takes shapes and dtypes from."""
    return make(np.zeros(1, np.int64), slice(0, 1))
