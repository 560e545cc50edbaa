"""Proximal policy optimisation against a reward model, with a KL penalty to the model it starts from.

Schulman et al. 2017 (eq. 7) as Ziegler et al. 2019 use it for language: an action is a token, the reward of a token
is -kl_coef * (log pi - log pi_ref), and the last token also gets the score of the whole response. Advantages are
generalised advantage estimates (Schulman et al. 2015, eq. 16), whitened over the rollout. The value model is separate
and starts from the reward model's trunk where that reads the policy's tokens, else from the policy's (AlpacaFarm).

One iteration: `rollout.batch_size` prompts are sampled and scored, then trained on for `epochs` passes in
minibatches. Where one minibatch is all of them, its update reads them itself (`rollout.on_policy`). Log-probs and
entropy come from one forward pass of the policy. Reference and value model share none with it, adapters or not: what an
adapter adds to the first layer changes what all layers behind it read, so that only weights are common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.feedback import feedback_needs, reward_sources
from rlhf_jax.feedback.judged_evaluation import judged_evaluation
from rlhf_jax.feedback.reward_sources import RewardSources
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.responses import response_logprobs, response_values
from rlhf_jax.objectives.policy_gradient import (
    explained_variance,
    gae,
    policy_loss,
    sequence_kl,
    shaped_rewards,
    value_loss,
    whiten,
)
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.experience import (
    Metrics,
    Readings,
    RolloutSettings,
    final_scores,
    kl_of,
    rollout_metrics,
    sampler_correction,
)
from rlhf_jax.rollout.on_policy import Unread, read_by_update, unread, unread_shapes
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import Losses, LossFn
from rlhf_jax.training.run import actor_networks, encoded_rows, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online_models import OnlineModels, open_actor, plan_online, rollout_settings
from rlhf_jax.training.run.session import Network, Session, export_model, open_session, write_model_folder

SHOW = ("objective/scores", "objective/kl", "completions/mean_length", "eval/scores")
NEEDS = feedback_needs.SCORED_POLICY
NETWORKS = ("policy", "value")


class Experience(NamedTuple):
    """One rollout, ready to learn from. Every field has the batch first, so a minibatch is a choice of rows."""

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]
    old_logprobs_BR: Float[Array, "B R"]
    old_values_BR: Float[Array, "B R"]
    advantages_BR: Float[Array, "B R"]
    returns_BR: Float[Array, "B R"]
    weights_BR: Float[Array, "B R"] | None = None  # of the sampler correction


class AdvantageSettings(NamedTuple):
    """The plain numbers between rewards and advantages; see configs/ppo.py for what each means."""

    gamma: float
    lam: float
    whiten_rewards: bool


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` against `model.reward`; writes WORKDIR/export, the policy of the best evaluation."""
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    online.check_sizes(config, session.mesh)
    online.check_kl_horizon(config)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy, sources, models = models_of(session, list(split.train_rows), list(split.eval_rows))
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(ppo_plan, models, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, sources, models),
        after=partial(online.next_kl_coef, config),
        extra={"kl_coef": float(config.kl_coef)},
        show=SHOW,
        # A run does not go on with another reward model: its folders are hashed as the policy's are.
        reads=sources.files,
        judged=judged_evaluation(config, workdir, split.eval_rows),
        unsaid=sources.unsaid,
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def models_of(
    session: Session, rows: list[dict], held: list[dict]
) -> tuple[Network, RewardSources, OnlineModels]:
    """Describes policy and reward sources, and the settings of all models, before any weight is read.

    rows, held: the prompts' records, for training and for evaluation.
    """
    policy = actor_networks.policy_of(session)
    sources = reward_sources.describe_sources(session, rows, held)
    value_config, value_from = actor_networks.value_of(session, policy.config, sources.first_model)
    of_reward = ("value",) if value_from == "reward" else ()
    return policy, sources, OnlineModels(policy.config, sources.scorers, {"value": value_config}, of_reward)


def ppo_loss_fn(
    policy_config: ModelConfig,
    value_config: ModelConfig,
    *,
    clip: float,
    value_clip: float,
    value_coef: float,
    temperature: float,
    chunk: int,
    experience_of: Callable | None = None,
    networks: tuple[str, ...] = NETWORKS,
) -> LossFn:
    """Clipped policy loss + value_coef * clipped value loss. Params: {policy, value}; batch: an Experience.

    Both terms are sums over the same response tokens, so they share one weight.
    experience_of: `make_experience`, for batches that are an Unread rollout.
    networks: whose terms it has, of a batch that is not Unread: they share nothing, so either has a gradient by itself.
    """

    def loss_fn(params: dict[str, Params], batch: Experience | Unread) -> dict[str, Mean]:
        # A window of R positions in each row: neither head ever runs on prompt tokens.
        where = (batch.tokens_BT, batch.prompt_lengths_B, batch.mask_BR.shape[1])
        logprobs_BR = entropy_BR = values_BR = None
        if "policy" in networks:
            logprobs_BR, entropy_BR = response_logprobs(
                policy_config, params["policy"], *where, temperature=temperature, chunk=chunk
            )
        if "value" in networks:
            values_BR = response_values(value_config, params["value"], *where)
        told: dict[str, Any] = {}
        if experience_of is not None:
            batch, told = read_by_update(experience_of, batch, logprobs_BR, entropy_BR, {"value": values_BR})
        # Sums and not means: the train step divides once, by the response tokens of all micro-batches.
        losses: list[Mean] = []
        if logprobs_BR is not None:
            before = (batch.old_logprobs_BR, batch.advantages_BR, batch.mask_BR, batch.weights_BR)
            policy = policy_loss(logprobs_BR, *before, clip=clip)
            losses.append(policy.pop("loss"))
            told |= {
                "loss/policy": losses[-1],
                "policy/entropy": masked_mean(entropy_BR, batch.mask_BR),
                **policy,
            }
        if values_BR is not None:
            before = (batch.old_values_BR, batch.returns_BR, batch.mask_BR)
            value = value_loss(values_BR, *before, clip=value_clip)
            vf = value.pop("loss")
            losses.append(Mean(value_coef * vf.sum, vf.weight))
            told |= {"loss/value": vf, **value}
        return {"loss": Mean(sum(x.sum for x in losses), losses[0].weight), **told}

    return loss_fn


def make_experience(
    read: Readings,
    sampled: Generation,
    scored: Scored,
    kl_coef: Float[Array, ""],
    settings: RolloutSettings,
    advantage: AdvantageSettings,
) -> tuple[Experience, Metrics]:
    """Turns one rollout into experience to learn from, and its metrics (TRL's names).

    Old log-probs come from the training graph and not from the sampler, so the first ratio is exactly 1; what the
    sampler computed differs by `sampling/logp_difference`. Advantages are whitened once, over all real tokens of the
    global rollout: over one device's rows they would depend on the mesh.
    """
    mask_BR, values_BR = read.mask_BR, read.values["value"]
    scores_B = final_scores(sampled, scored, settings)
    kl_BR = kl_of(read, settings)
    # The KL is part of the reward and not of the loss, as in Ziegler et al. (2019): earlier tokens are then
    # held responsible for where they lead, too.
    rewards_BR = shaped_rewards(scores_B, kl_BR, mask_BR, kl_coef)
    if advantage.whiten_rewards:
        # Scaled and not shifted: a shift would turn bad rewards into good ones.
        rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, advantage.gamma, advantage.lam)
    weights_BR, told = sampler_correction(read, sampled, settings)
    experience = Experience(
        tokens_BT=read.tokens_BT,
        prompt_lengths_B=read.prompt_lengths_B,
        mask_BR=mask_BR,
        old_logprobs_BR=read.logprobs["policy"],
        old_values_BR=values_BR,
        advantages_BR=whiten(advantages_BR, mask_BR),
        # Of the advantages before whitening: values are learnt in the unit of the rewards.
        returns_BR=returns_BR,
        weights_BR=weights_BR,
    )
    metrics = rollout_metrics(read, sampled, scored, settings) | {
        "objective/kl_coef": kl_coef,
        "objective/non_score_reward": -kl_coef * value(sequence_kl(kl_BR, mask_BR)),
        "objective/rlhf_reward": jnp.mean(scores_B) - kl_coef * value(sequence_kl(kl_BR, mask_BR)),
        "val/explained_variance": explained_variance(values_BR, returns_BR, mask_BR),
        "val/mean": value(masked_mean(values_BR, mask_BR)),
        "val/returns": value(masked_mean(returns_BR, mask_BR)),
        "num_tokens": jnp.sum(read.prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }
    return experience, metrics | told


def _learner(
    session: Session, pad_id: int, policy: Network, sources: RewardSources, models: OnlineModels
) -> online.Learner:
    """Reads the weights of all models and says how they sample, score and read a rollout."""
    c, params = session.config, policy.read()
    rewards, reward_params = reward_sources.open_rewards(session, sources, pad_id)
    value_from = "reward" if models.of_reward else "policy"
    values = actor_networks.value_params(value_from, policy.config, reward_params, params, session.lora)
    actor, starts = open_actor(session, models, params, rewards, pad_id, scalar={"value": values})
    # kl_coef is an argument: as a constant it would compile a new program whenever it has moved.
    learn_from = jax.jit(_experience_of(c))

    def experience(readings: Readings, _: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return learn_from(readings, sampled, scores, extra["kl_coef"])

    measure, whole = partial(actor.measure_at_price, c.kl_coef), online.one_minibatch(c)
    read, own = partial(actor.read, trained=not whole), partial(unread, scalar=("value",)) if whole else None
    return online.Learner(starts, actor.roll_out, read, experience, measure, unread=own)


def ppo_plan(models: OnlineModels, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans PPO on prompts of P columns, from shapes."""
    whole, R = online.one_minibatch(config), config.rollout.max_new_tokens

    def loss(trained: Mapping[str, ModelConfig], page: ConfigDict) -> Losses:
        of = partial(
            ppo_loss_fn,
            trained["policy"],
            trained["value"],
            clip=page.clip,
            value_clip=page.value_clip,
            value_coef=page.value_coef,
            temperature=page.rollout.temperature,
            chunk=page.logprob_chunk,
        )
        if whole:
            return of(experience_of=_experience_of(page))
        return {name: of(networks=(name,)) for name in NETWORKS}

    row = experience_shapes(P, R, corrected=config.rollout.correction != "none")
    if whole:
        row = unread_shapes(P, R, ("value",))
    rates = {"value": config.value_learning_rate}
    return plan_online(models, loss, row, P, pad_id, config, mesh, rates=rates, unread=whole)


def _experience_of(page: ConfigDict) -> Callable:
    numbers = AdvantageSettings(page.gamma, page.lam, page.whiten_rewards)
    return partial(make_experience, settings=rollout_settings(page), advantage=numbers)


def experience_shapes(P: int, R: int, *, corrected: bool = False) -> Experience:
    """The shapes of one row of experience; the memory plan puts the minibatch size in place of the 1."""
    integers, numbers, flags = (
        partial(jax.ShapeDtypeStruct, dtype=t) for t in (jnp.int32, jnp.float32, bool)
    )
    weights = numbers((1, R)) if corrected else None
    return Experience(integers((1, P + R)), integers((1,)), flags((1, R)), *[numbers((1, R))] * 4, weights)
