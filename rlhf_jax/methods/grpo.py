"""Policy gradients without a value model: GRPO, RLOO, REINFORCE++ and what was made of them, as settings of one method.

An advantage is the reward of a whole response less what others of the same prompt got (Shao et al. 2024, section 4.1;
Ahmadian et al. 2024, eq. 7) or the batch (Hu et al. 2025, eq. 10). The loss is put together from a ratio, a clipping,
an aggregation and sampler weights (`objectives/policy_losses`). The KL to the model it starts from is in the loss or in
the reward. Which settings are which paper stands in configs/grpo.py.

One iteration: `rollout.samples` responses of each of `rollout.batch_size` prompts are sampled and scored, then trained
on for `epochs` passes in minibatches. A row is a response. Where one minibatch is all of them, its update reads them
itself (`rollout.on_policy`).
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

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import feedback_needs, reward_sources
from rlhf_jax.feedback.judged_evaluation import judged_evaluation
from rlhf_jax.feedback.reward_sources import RewardSources
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.responses import response_logprobs
from rlhf_jax.objectives import group_advantages, policy_losses
from rlhf_jax.objectives.group_advantages import advantages_of_groups, varied_groups
from rlhf_jax.objectives.policy_gradient import sequence_kl
from rlhf_jax.objectives.policy_losses import PolicyLoss, composed_policy_loss
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
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import actor_networks, encoded_rows, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online_models import OnlineModels, open_actor, plan_online, rollout_settings
from rlhf_jax.training.run.session import Network, Session, export_model, open_session, write_model_folder

SHOW = ("objective/scores", "objective/kl", "completions/mean_length", "eval/scores")

NEEDS = feedback_needs.SCORED_POLICY

ranges.own_rows(
    "grpo",
    epochs=ranges.COUNT,
    baseline=ranges.one_of(*group_advantages.BASELINES),
    scale=ranges.one_of(*group_advantages.SCALES),
    filter_groups=ranges.FLAG,
    kl_in=ranges.one_of(*group_advantages.KL_PLACES),
    kl_gradient=ranges.one_of(*policy_losses.KL_GRADIENTS),
    ratio=ranges.one_of(*policy_losses.RATIOS),
    clipping=ranges.one_of(*policy_losses.CLIPPINGS),
    clip_low=ranges.number(0, 1, above=True),
    clip_high=ranges.number(0, above=True),
    dual_clip=ranges.number(0, says="a number above 1 + clip_high, such as 3, or 0 for none"),
    aggregation=ranges.one_of(*policy_losses.AGGREGATIONS),
    **{name: ranges.RANGES[f"ppo.{name}"] for name in ("best_metric", "data.too_long")},
)


class GroupExperience(NamedTuple):
    """One rollout, ready to learn from; rows whose mask is False everywhere do not count.

    Attributes:
      kl_coef_B: the weight of the KL in the loss, the same in all rows; None where the KL is in the reward.
      ref_logprobs_BR: None there, too.
      weights_BR: of the sampler correction; None without one.
    """

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]
    old_logprobs_BR: Float[Array, "B R"]
    advantages_BR: Float[Array, "B R"]
    ref_logprobs_BR: Float[Array, "B R"] | None = None
    kl_coef_B: Float[Array, " B"] | None = None
    weights_BR: Float[Array, "B R"] | None = None


class GroupSettings(NamedTuple):
    """The choices between scores and advantages; see configs/grpo.py for what each means."""

    samples: int
    baseline: str
    scale: str
    filter_groups: bool
    kl_in: str


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` against the page's reward sources; writes WORKDIR/export, that of the best evaluation."""
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    _check(session)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy = actor_networks.policy_of(session)
    sources = reward_sources.describe_sources(session, list(split.train_rows), list(split.eval_rows))
    models = OnlineModels(policy.config, sources.scorers)
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(grpo_plan, models, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, sources, models),
        after=partial(online.next_kl_coef, config),
        extra={"kl_coef": float(config.kl_coef)},
        show=SHOW,
        reads=sources.files,
        judged=judged_evaluation(config, workdir, split.eval_rows),
        unsaid=sources.unsaid,
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def grpo_loss_fn(
    config: ModelConfig, how: PolicyLoss, *, temperature: float, chunk: int, experience_of: Any = None
) -> LossFn:
    """Policy loss, and kl_coef * KL where that is in the loss. Params: {policy}; batch: a GroupExperience.

    experience_of: `make_group_experience`, for batches that are an Unread rollout.
    """

    def loss_fn(params: dict[str, Params], batch: GroupExperience | Unread) -> dict[str, Mean]:
        where = (batch.tokens_BT, batch.prompt_lengths_B, batch.mask_BR.shape[1])
        logprobs_BR, entropy_BR = response_logprobs(
            config, params["policy"], *where, temperature=temperature, chunk=chunk
        )
        batch, told = read_by_update(experience_of, batch, logprobs_BR, entropy_BR, {})
        found = composed_policy_loss(
            logprobs_BR,
            batch.old_logprobs_BR,
            batch.advantages_BR,
            batch.mask_BR,
            batch.weights_BR,
            batch.ref_logprobs_BR,
            batch.kl_coef_B,
            how=how,
        )
        return found | {"policy/entropy": masked_mean(entropy_BR, batch.mask_BR), **told}

    return loss_fn


def make_group_experience(
    read: Readings,
    sampled: Generation,
    scored: Scored,
    kl_coef: Float[Array, ""],
    settings: RolloutSettings,
    groups: GroupSettings,
) -> tuple[GroupExperience, Metrics]:
    """Turns one rollout into experience to learn from, and its metrics (TRL's names)."""
    scores_B, kl_BR, mask_BR = final_scores(sampled, scored, settings), kl_of(read, settings), read.mask_BR
    varied_B = varied_groups(scores_B, groups.samples)
    if groups.filter_groups:
        # DAPO samples until a batch is full; here shapes are fixed, and what says nothing counts nowhere instead.
        mask_BR = mask_BR & varied_B[:, None]
    advantages_BR = advantages_of_groups(
        scores_B,
        kl_BR,
        mask_BR,
        kl_coef,
        samples=groups.samples,
        baseline=groups.baseline,
        scale=groups.scale,
        kl_in=groups.kl_in,
    )
    # Over the responses that were sampled, those of a group that is left out included.
    weights_BR, told = sampler_correction(read, sampled, settings)
    in_loss = groups.kl_in == "loss"
    experience = GroupExperience(
        tokens_BT=read.tokens_BT,
        prompt_lengths_B=read.prompt_lengths_B,
        mask_BR=mask_BR,
        # Of the training graph and not of the sampler, so that the first ratio is exactly 1.
        old_logprobs_BR=read.logprobs["policy"],
        advantages_BR=advantages_BR,
        ref_logprobs_BR=read.logprobs["reference"] if in_loss else None,
        kl_coef_B=jnp.broadcast_to(kl_coef, scores_B.shape).astype(jnp.float32) if in_loss else None,
        weights_BR=weights_BR,
    )
    penalty = kl_coef * value(sequence_kl(kl_BR, read.mask_BR))
    metrics = rollout_metrics(read, sampled, scored, settings) | {
        "objective/kl_coef": kl_coef,
        "objective/non_score_reward": -penalty,
        "objective/rlhf_reward": jnp.mean(scores_B) - penalty,
        "groups/equal": 1.0 - jnp.mean(varied_B.astype(jnp.float32)),
        "groups/filtered": 1.0 - jnp.mean(jnp.any(mask_BR, axis=1).astype(jnp.float32)),
        "num_tokens": jnp.sum(read.prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }
    return experience, metrics | told


def _learner(
    session: Session, pad_id: int, policy: Network, sources: RewardSources, models: OnlineModels
) -> online.Learner:
    """Reads the weights of policy and reward models and says how they sample, score and read a rollout."""
    c, params = session.config, policy.read()
    rewards, _ = reward_sources.open_rewards(session, sources, pad_id)
    actor, starts = open_actor(session, models, params, rewards, pad_id)
    # kl_coef is an argument: as a constant it would compile a new program whenever it has moved.
    learn_from = jax.jit(_experience_of(c))

    def experience(readings: Readings, _: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return learn_from(readings, sampled, scores, extra["kl_coef"])

    measure, whole = partial(actor.measure_at_price, c.kl_coef), online.one_minibatch(c)
    read = partial(actor.read, trained=not whole)
    return online.Learner(starts, actor.roll_out, read, experience, measure, unread=unread if whole else None)


def _check(session: Session) -> None:
    c = session.config
    online.check_sizes(c, session.mesh)
    online.check_kl_horizon(c)
    if c.rollout.samples < 2:
        alone = {
            "baseline": "none",
            "scale": c.scale if c.scale != "group" else "batch",
            "filter_groups": False,
        }
        for field, value_alone in alone.items():
            if c[field] != value_alone:
                said = f"{field}={c[field]} compares responses of one prompt"
                raise UserError(f"rollout.samples: 1, but {said}; use 2 or more")
    if c.baseline == "none" and c.scale == "group":
        raise UserError(
            "scale: group, but baseline=none leaves a reward in it whose groups may have no deviation; use batch"
        )
    if c.clipping == "cispo" and c.dual_clip:
        raise UserError(f"dual_clip: {c.dual_clip:g}, but clipping=cispo holds every weight already; use 0")
    if c.dual_clip and c.dual_clip <= 1 + c.clip_high:
        raise UserError(
            f"dual_clip: {c.dual_clip:g} is not above 1 + clip_high = {1 + c.clip_high:g}; use 3, or 0 for none"
        )
    if c.kl_in == "loss" and (c.kl_estimator, c.kl_gradient) in (("k1", "direct"), ("k2", "exact")):
        wrong, right = {"k1": ("0 in expectation", "exact"), "k2": ("not a KL's", "direct")}[c.kl_estimator]
        said = f"the gradient of kl_estimator={c.kl_estimator} is then {wrong}"
        raise UserError(f"kl_gradient: {c.kl_gradient}; {said}; use {right}")


def grpo_plan(models: OnlineModels, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans the method on prompts of P columns, from shapes."""
    whole, R = online.one_minibatch(config), config.rollout.max_new_tokens

    def loss(trained: Mapping[str, ModelConfig], page: ConfigDict) -> LossFn:
        return grpo_loss_fn(
            trained["policy"],
            policy_loss_of(page),
            temperature=page.rollout.temperature,
            chunk=page.logprob_chunk,
            experience_of=_experience_of(page) if whole else None,
        )

    numbers = jax.ShapeDtypeStruct((1, R), jnp.float32)
    row = GroupExperience(
        tokens_BT=jax.ShapeDtypeStruct((1, P + R), jnp.int32),
        prompt_lengths_B=jax.ShapeDtypeStruct((1,), jnp.int32),
        mask_BR=jax.ShapeDtypeStruct((1, R), bool),
        old_logprobs_BR=numbers,
        advantages_BR=numbers,
        ref_logprobs_BR=numbers if config.kl_in == "loss" else None,
        kl_coef_B=jax.ShapeDtypeStruct((1,), jnp.float32) if config.kl_in == "loss" else None,
        weights_BR=numbers if config.rollout.correction != "none" else None,
    )
    if whole:
        row = unread_shapes(P, R)
    return plan_online(models, loss, row, P, pad_id, config, mesh, unread=whole)


def _experience_of(page: ConfigDict) -> Callable:
    groups = GroupSettings(page.rollout.samples, page.baseline, page.scale, page.filter_groups, page.kl_in)
    return partial(make_group_experience, settings=rollout_settings(page), groups=groups)


def policy_loss_of(page: ConfigDict) -> PolicyLoss:
    """Which policy loss a page asks for."""
    own = {name: page[name] for name in PolicyLoss._fields if name != "max_tokens"}
    return PolicyLoss(**own, max_tokens=page.rollout.max_new_tokens)
