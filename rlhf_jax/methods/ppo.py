"""Proximal policy optimisation against a reward model, with a KL penalty to the model it starts from.

Schulman et al. 2017 (eq. 7) as Ziegler et al. 2019 use it for language: an action is a token, the reward of a token
is -kl_coef * (log pi - log pi_ref), and the last token also gets the score of the whole response. Advantages are
generalised advantage estimates (Schulman et al. 2015, eq. 16), whitened over the rollout. The value model is separate
and starts from the reward model's trunk where that reads the policy's tokens, else from the policy's (AlpacaFarm).

One iteration: `rollout.batch_size` prompts are sampled and scored, then trained on for `epochs` passes in
minibatches.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import Model
from rlhf_jax.models.placement import planned_params
from rlhf_jax.models.responses import response_logprobs, response_values
from rlhf_jax.objectives.policy_gradient import adaptive_kl_coef, policy_loss, value_loss
from rlhf_jax.objectives.reduce import Mean, masked_mean
from rlhf_jax.rollout.experience import (
    Actor,
    Experience,
    Models,
    Readings,
    RolloutSettings,
    experience_shapes,
    make_experience,
    reading_program,
)
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.rollout.rollout_shapes import RolloutShapes
from rlhf_jax.rollout.text_rewards import TextRewards
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.state import planned_state
from rlhf_jax.training.loop.step import LossFn, bytes_per_device, make_train_step
from rlhf_jax.training.run import actor_networks, encoded_rows, load_models, online
from rlhf_jax.training.run.memory_check import Phase, Plan, batch_shapes
from rlhf_jax.training.run.missing_inputs import Needs, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.session import Network, Session, export_model, open_session, write_model_folder

SHOW = ("objective/scores", "objective/kl", "completions/mean_length", "eval/scores")


class Networks(NamedTuple):
    """The settings of PPO's models, before any weight is read.

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


NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("make_data", "data")),
        *model_reads("model.policy", made_by("sft")),
        *model_reads("model.reward", made_by("reward_model"), adapter="model.reward_adapter"),
    ),
    remote=True,
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` against `model.reward`; writes WORKDIR/export, the policy of the best evaluation."""
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    _check(session)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy, source, networks = networks_of(session, [*split.train_rows, *split.eval_rows])
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(ppo_plan, networks, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, source, networks),
        after=partial(_after, config),
        extra={"kl_coef": float(config.kl_coef)},
        show=SHOW,
        # A run does not go on with another reward model: its folders are hashed as the policy's are.
        reads=load_models.sources(source.reward.folder, config.model.reward_adapter),
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def networks_of(session: Session, rows: list[dict]) -> tuple[Network, actor_networks.RewardSource, Networks]:
    """Describes the models, before any weight is read: (policy, reward model, Networks). rows: all prompts' records."""
    policy = actor_networks.policy_of(session)
    source = actor_networks.reward_source_of(session, rows)
    value, value_from = actor_networks.value_of(session, policy.config, source)
    reward = source.reward.model.config
    return (
        policy,
        source,
        Networks(policy.config, value, reward, value_from, source.closing, source.text_length),
    )


def ppo_loss_fn(
    policy_config: ModelConfig,
    value_config: ModelConfig,
    *,
    clip: float,
    value_clip: float,
    value_coef: float,
    temperature: float,
    chunk: int,
) -> LossFn:
    """Clipped policy loss + value_coef * clipped value loss. Params: {policy, value}; batch: an Experience.

    Both terms are sums over the same response tokens, so they share one weight.
    """

    def loss_fn(params: dict[str, Params], batch: Experience) -> dict[str, Mean]:
        # A window of R positions in each row: neither head ever runs on prompt tokens.
        where = (batch.tokens_BT, batch.prompt_lengths_B, batch.mask_BR.shape[1])
        logprobs_BR, entropy_BR = response_logprobs(
            policy_config, params["policy"], *where, temperature=temperature, chunk=chunk
        )
        values_BR = response_values(value_config, params["value"], *where)
        policy = policy_loss(
            logprobs_BR, batch.old_logprobs_BR, batch.advantages_BR, batch.mask_BR, clip=clip
        )
        value = value_loss(values_BR, batch.old_values_BR, batch.returns_BR, batch.mask_BR, clip=value_clip)
        # Sums and not means: the train step divides once, by the response tokens of all micro-batches.
        pg, vf = policy.pop("loss"), value.pop("loss")
        return {
            "loss": Mean(pg.sum + value_coef * vf.sum, pg.weight),
            "loss/policy": pg,
            "loss/value": vf,
            "policy/entropy": masked_mean(entropy_BR, batch.mask_BR),
            **policy,
            **value,
        }

    return loss_fn


def rollout_settings(config: ConfigDict) -> RolloutSettings:
    """Returns the numbers of a page that a rollout needs."""
    named = {name: config[name] for name in RolloutSettings._fields if name in config}
    return RolloutSettings(temperature=config.rollout.temperature, **named)


def _learner(
    session: Session, pad_id: int, policy: Network, source: actor_networks.RewardSource, networks: Networks
) -> online.Learner:
    """Reads the weights of the four models and says how they sample, score and read a rollout."""
    c, mesh, settings = session.config, session.mesh, rollout_settings(session.config)
    params = policy.read()
    reward = actor_networks.read_reward(session, source)
    values = actor_networks.value_params(
        networks.value_from, policy.config, reward.model.params, params, session.lora
    )
    # The value model's adapter is drawn with a seed of its own, so that it is not a copy of the policy's.
    starts = {
        "policy": load_models.start_network(policy.config, params, session.lora, mesh, c.seed),
        "value": load_models.start_network(networks.value, values, session.lora, mesh, c.seed + 1),
    }
    # No copy here: the driver copies what is trained, and these arrays stay the policy's first ones.
    reference = Model(policy.config, starts["policy"].whole)
    # text_length is 0 where the reward model scores the very tokens that were sampled.
    rewards = (
        TextRewards(reward, session.tokenizer, mesh, source.text_length)
        if source.text_length
        else TokenRewards(reward, pad_id)
    )
    generator = DecodeGenerator(
        policy.config,
        mesh,
        max_new_tokens=c.rollout.max_new_tokens,
        sampling=Sampling(c.rollout.temperature),
        end_ids=session.ends,
        pad_id=pad_id,
        dtype=c.rollout.dtype,
    )
    actor = Actor(policy.config, networks.value, reference, generator, rewards, settings, pad_id)
    # kl_coef is an argument: as a constant it would compile a new program whenever it has moved.
    learn_from = jax.jit(partial(make_experience, settings=settings))

    def experience(readings: Readings, batch: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return learn_from(readings, batch["lengths"], sampled, scores, extra["kl_coef"])

    def measure(*asked: Any) -> tuple[jax.Array, dict]:
        scores_B, metrics = actor.measure(*asked)
        # At one price for all checkpoints, also where an adaptive kl_coef has moved since: else the
        # checkpoint at which the coefficient was lowest would be the best one.
        scores, kl = float(metrics["scores"]), float(metrics["kl"])
        return scores_B, metrics | {"rlhf_reward": scores - c.kl_coef * kl}

    return online.Learner(starts, actor.roll_out, actor.read, experience, measure)


def _after(config: ConfigDict, extra: dict, metrics: dict) -> dict:
    """Returns the KL coefficient of the next rollout, by the KL per response of this one (Ziegler et al. 2019)."""
    if not config.adaptive_kl:
        return extra
    kl_coef = adaptive_kl_coef(
        extra["kl_coef"],
        metrics["objective/kl"],
        target=config.target_kl,
        responses=config.rollout.batch_size,
        horizon=config.kl_horizon,
    )
    return {"kl_coef": kl_coef}


def _check(session: Session) -> None:
    config = session.config
    online.check_sizes(config, session.mesh)
    rollout = config.rollout.batch_size
    if config.adaptive_kl and config.kl_horizon < rollout:
        raise UserError(
            f"kl_horizon: {config.kl_horizon:g} responses are fewer than the {rollout} of one rollout, so that kl_coef "
            f"would swing; use ten rollouts ({10 * rollout}) or more"
        )


def ppo_plan(networks: Networks, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans PPO on prompts of P columns from shapes: the update, and the programs of sampling, reading and scoring."""
    model, value_config, reward_config = (
        dataclasses.replace(c, remat=config.model.remat) for c in networks[:3]
    )
    loss_fn = ppo_loss_fn(
        model,
        value_config,
        clip=config.clip,
        value_clip=config.value_clip,
        value_coef=config.value_coef,
        temperature=config.rollout.temperature,
        chunk=config.logprob_chunk,
    )
    rates = {"policy": config.optimizer.learning_rate, "value": config.value_learning_rate}
    tx = online.optimizer_by_network(config, rates)
    lora = load_models.lora_settings(config.lora)
    policy = load_models.planned_start(model, lora, mesh)
    value = load_models.planned_start(value_config, lora, mesh, scalar=True)
    state = planned_state({"policy": policy.trained, "value": value.trained}, tx)
    frozen = {"policy": policy.frozen, "value": value.frozen}
    reward = Model(reward_config, stored(planned_params(reward_config, mesh, scalar=True), lora.base_dtype))
    # Reference and reward model. What is frozen of the policy is the reference's, and what is frozen of the
    # value model that model's whose trunk it is.
    kept = bytes_per_device(policy.trained)
    beside = max(0, kept + bytes_per_device(reward.params) - bytes_per_device(value.frozen))
    R, N, settings = config.rollout.max_new_tokens, config.rollout.batch_size, rollout_settings(config)
    rollout = RolloutShapes(mesh, N, P, R, settings.temperature, pad_id)

    def reading() -> jax.stages.Lowered:
        whole, prompts = Model(model, policy.whole), rollout.prompts()
        return reading_program(settings, pad_id).lower(
            models=Models(whole, Model(value_config, value.whole), whole),
            prompts_BP=prompts["tokens"],
            prompt_lengths_B=prompts["lengths"],
            sampled=rollout.sampled(model),
        )

    sampling = partial(rollout.lower_sampling, model, config.rollout.dtype)
    scoring = partial(rollout.lower_scoring, reward, model, networks.closing, networks.text_length)
    own = bytes_per_device((state.params, state.opt_state))
    alive = own + bytes_per_device(frozen) + beside
    twice = policy.frozen if networks.value_from == "reward" else frozen
    # Bytes alive beside a program's arguments. Reading gets policy, value model and reference as arguments:
    # so `beside` counts no copy for the reference there, and what two of them share counts once.
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
    # Minibatches hold unequal numbers of tokens, so their sums are added up before anything is divided.
    step = make_train_step(loss_fn, tx, microbatches=config.microbatches, divided=False)
    batch = batch_shapes(mesh, config.minibatch_size, experience_shapes(P, R))
    return Plan(loss_fn, tx, step, state, batch, frozen, beside, others)
