"""Online direct preference optimisation: pairs of the policy's own responses, told apart while it learns.

Guo et al. 2024 (OAIF, algorithm 1): for every prompt the policy samples `rollout.samples` responses, a source of scores
orders them, and DPO's loss (Rafailov et al. 2023, eq. 7; also IPO's and SLiC's, see `loss`) moves the policy from the
worst towards the best. The source is a reward model, or a judge that rates or compares responses (`reward.sources`).

A row of experience is a prompt with its best and its worst response. Where all scores are equal, or fewer than two
responses have one, there is no pair: such a row has weight 0 and is counted. A response that did not end has the score
`missing_eos_penalty`; one that ended and could not be scored is in no pair, since a judge that fails says nothing.

Log-probs are those at `rollout.temperature`, of policy and reference alike: the policy whose KL is reported, and that
is evaluated, is the distribution that acts. (DPO's paper is at 1, which is the default.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, ScalarLike
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokenization import SIDES
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.feedback import feedback_needs, reward_sources
from rlhf_jax.feedback.judged_evaluation import judged_evaluation
from rlhf_jax.feedback.reward_sources import RewardSources
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.response_pairs import pair_logprobs, pair_tokens, pair_weight
from rlhf_jax.models.responses import Batch
from rlhf_jax.objectives.preference import sequence_logprob
from rlhf_jax.objectives.preference_losses import LOSSES, PairLogprobs, pair_loss
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.experience import Metrics, Readings, RolloutSettings, final_scores, rollout_metrics
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import actor_networks, encoded_rows, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online_models import OnlineModels, open_actor, plan_online
from rlhf_jax.training.run.session import Network, Session, export_model, open_session, write_model_folder

SHOW = ("loss", "objective/scores", "objective/kl", "eval/scores")


NEEDS = feedback_needs.SCORED_POLICY
ranges.own_rows(
    "online_dpo",
    # The reference is part of what is learnt here: without it nothing holds the policy where scores mean something.
    loss=ranges.one_of(*(name for name, row in LOSSES.items() if row.reference)),
    epochs=ranges.COUNT,
    **{"rollout.samples": ranges.whole(2)},
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` on pairs of what it samples; writes WORKDIR/export, the policy of the best evaluation."""
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    online.check_sizes(config, session.mesh, config.rollout.batch_size)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy = actor_networks.policy_of(session)
    sources = reward_sources.describe_sources(session, list(split.train_rows), list(split.eval_rows))
    models = OnlineModels(policy.config, sources.scorers)
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(online_dpo_plan, models, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, sources, models),
        after=lambda extra, metrics: extra,
        extra={},
        show=SHOW,
        reads=sources.files,
        judged=judged_evaluation(config, workdir, split.eval_rows),
        unsaid=sources.unsaid,
        rows=config.rollout.batch_size,
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def online_dpo_loss_fn(
    config: ModelConfig, R: int, chunk: int, *, temperature: float, **settings: ScalarLike | str
) -> LossFn:
    """The loss of a minibatch of pairs. Params: {policy}; batch: pairs of `make_pairs`.

    R: response tokens there is room for. settings: those of `preference_losses.pair_loss`.
    """
    sequence_logprobs = pair_logprobs(config, R, chunk, temperature=temperature)

    def loss_fn(params: dict[str, Params], batch: Batch) -> dict[str, Mean]:
        now = sequence_logprobs(params["policy"], batch)
        reference = (batch[f"ref_{side}"] for side in SIDES)
        pair = PairLogprobs(*now, *pair_tokens(batch, R), *reference)
        return pair_loss(pair, pair_weight(batch), **settings)

    return loss_fn


def make_pairs(
    read: Readings, sampled: Generation, scored: Scored, settings: RolloutSettings, samples: int
) -> tuple[Batch, Metrics]:
    """Turns one rollout of `samples` responses to each prompt into one pair for each prompt, and its metrics.

    The reference's log-probs were read with the rollout, once for all epochs on it.
    """
    scores_B = final_scores(sampled, scored, settings)
    # What did not end is known to be bad, whether or not somebody could score it.
    usable_B = scored.readable_B | ~sampled.ended_B
    shape = (-1, samples)
    best_B, worst_B = best_and_worst(scores_B.reshape(shape), usable_B.reshape(shape))
    first_B = jnp.arange(best_B.shape[0]) * samples
    columns = {
        "tokens": read.tokens_BT,
        "lengths": read.prompt_lengths_B + sampled.lengths_B,
        "prompt_lengths": read.prompt_lengths_B,
    }
    reference_B = sequence_logprob(read.logprobs["reference"], read.mask_BR)
    pairs, of = {}, dict(zip(SIDES, (first_B + best_B, first_B + worst_B), strict=True))
    for side, chosen_B in of.items():
        pairs |= {f"{side}_{name}": x[chosen_B] for name, x in columns.items()}
        pairs[f"ref_{side}"] = reference_B[chosen_B]
    # Equal scores give one response twice; and the same text twice is no pair, whatever scores a judge gave it.
    unlike_B = jnp.any(pairs["chosen_tokens"] != pairs["rejected_tokens"], axis=1)
    pairs["weight"] = unlike_B.astype(jnp.float32)
    enough_B = jnp.sum(usable_B.reshape(shape), axis=1) >= 2
    return pairs, rollout_metrics(read, sampled, scored, settings) | {
        **{
            f"objective/scores_{side}": value(masked_mean(scores_B[of[side]], pairs["weight"]))
            for side in SIDES
        },
        "pairs/ties": jnp.mean(enough_B - pairs["weight"]),
        "pairs/unscored": jnp.mean(~enough_B),
        "num_tokens": jnp.sum(read.prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }


def best_and_worst(
    scores_BN: Float[Array, "B N"], usable_BN: Bool[Array, "B N"]
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """(number of the best usable response of each prompt, of the worst).

    Of equal ones the first is taken, so both are the same where no score differs, and where none or one is usable.
    """
    best_B = jnp.argmax(jnp.where(usable_BN, scores_BN, -jnp.inf), axis=1)
    worst_B = jnp.argmin(jnp.where(usable_BN, scores_BN, jnp.inf), axis=1)
    return best_B, worst_B


def _learner(
    session: Session, pad_id: int, policy: Network, sources: RewardSources, models: OnlineModels
) -> online.Learner:
    """Reads the weights of policy and reward models and says how they sample, score and read a rollout."""
    params = policy.read()
    rewards, _ = reward_sources.open_rewards(session, sources, pad_id)
    actor, starts = open_actor(session, models, params, rewards, pad_id)
    samples = session.config.rollout.samples
    paired = jax.jit(partial(make_pairs, settings=actor.settings, samples=samples))

    def experience(readings: Readings, _: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return paired(readings, sampled, scores)

    return online.Learner(starts, actor.roll_out, actor.read, experience, actor.measure)


def online_dpo_plan(models: OnlineModels, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans online DPO on prompts of P columns, from shapes."""
    R = config.rollout.max_new_tokens

    def loss(trained: Mapping[str, ModelConfig], page: ConfigDict) -> LossFn:
        names = ("loss", "beta", "label_smoothing")
        how = {"temperature": page.rollout.temperature, **{name: page[name] for name in names}}
        return online_dpo_loss_fn(trained["policy"], R, page.logprob_chunk, **how)

    row = pair_shapes(P + R)
    return plan_online(models, loss, row, P, pad_id, config, mesh, rows=config.rollout.batch_size)


def pair_shapes(T: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one row of `make_pairs`; the memory plan puts the minibatch size in place of the 1."""
    integers, numbers = (partial(jax.ShapeDtypeStruct, dtype=t) for t in (jnp.int32, jnp.float32))
    found = {"weight": numbers((1,))} | {f"ref_{side}": numbers((1,)) for side in SIDES}
    for side in SIDES:
        found |= {f"{side}_tokens": integers((1, T))}
        found |= {f"{side}_{name}": integers((1,)) for name in ("lengths", "prompt_lengths")}
    return found
