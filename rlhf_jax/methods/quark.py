"""Quark: sample, rank what was sampled by its score, and learn from the best quantile, close to the reference.

Lu et al. 2022 ("Quark: Controllable text generation with reinforced unlearning"), in the form that AlpacaFarm found best
(Dubois et al. 2023): the best quantile alone, without quantile tokens, and no entropy bonus. Per response token (eq. 2),

    -log pi(y_t | x, y_<t)  +  kl_coef * KL(pi || pi_ref)  -  entropy_coef * H(pi)

with the exact KL of the next token's distribution over the whole vocabulary.

One iteration: `rollout.batch_size` prompts are sampled and scored; the responses join a pool of the last `pool_rollouts`
rollouts, in the place of the oldest; the whole pool is cut into `quantiles` parts by score; `updates` minibatches are
drawn from the best one. A row is one response as token ids, its end token included, as the sampler wrote it. The pool is
part of the state, so it is in the checkpoint.

What is right here and was not in the reference code: the end token is a target (it was lost when text was encoded
again), the mean is over real tokens (and not over pads), rows are right-padded, the quantiles are of the whole pool (and
not of one process's part), and a response that could not be scored is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import joined
from rlhf_jax.models.responses import logprobs_beside
from rlhf_jax.objectives.quantiles import quantile_loss, ranked
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.experience import Metrics, Readings, RolloutSettings, final_scores, rollout_metrics
from rlhf_jax.rollout.pool import Pool, pool_shapes, with_rollout
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.state import shardings_of
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import actor_networks, encoded_rows, load_models, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import Needs, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.online_models import REFERENCE, OnlineModels, Scorer, open_actor, plan_online
from rlhf_jax.training.run.session import Network, Session, export_model, open_session, write_model_folder

SHOW = ("objective/scores", "pool/best_scores", "loss/kl", "eval/scores")

NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("make_data", "data")),
        *model_reads("model.policy", made_by("sft")),
        *model_reads("model.reward", made_by("reward_model"), adapter="model.reward_adapter"),
    ),
    remote=True,
)
_EVALUATED = (
    *("eval/scores", "eval/raw_scores", "eval/kl", "eval/entropy", "eval/sampling/logp_difference"),
    *("eval/completions/mean_length", "eval/completions/ended", "eval/completions/unscored"),
)
ranges.own_rows(
    "quark",
    pool_rollouts=ranges.whole(1, 1024, "a whole number of rollouts of at least 1; each keeps its tokens in memory"),
    quantiles=ranges.whole(2, says="a whole number of at least 2"),
    train_on=ranges.one_of("best"),
    updates=ranges.COUNT,
    entropy_coef=ranges.number(0),
    best_metric=ranges.one_of(*_EVALUATED, or_none=True),
    **{"data.too_long": ranges.one_of("drop", "cut_prompt")},
)


class Experience(NamedTuple):
    """Responses to learn from."""

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]


class Ranked(NamedTuple):
    """A pool of N responses, with their numbers from best to worst, and how many of the best are learned from."""

    pool: Pool
    order_N: Int[Array, " N"]
    kept: Int[Array, ""]


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` on its best responses by `model.reward`; writes WORKDIR/export, of the best evaluation."""
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    _check(session)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy = actor_networks.policy_of(session)
    source = actor_networks.reward_source_of(session, [*split.train_rows, *split.eval_rows])
    models = models_of(policy.config, source, prompts.P, config, session.mesh)
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(quark_plan, models, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, source, models),
        after=lambda extra, _: extra,
        extra={"pool": models.carried},
        show=SHOW,
        reads=load_models.sources(source.reward.folder, config.model.reward_adapter),
        rows=learned_rows(config),
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def models_of(
    policy: ModelConfig, source: actor_networks.RewardSource, P: int, config: ConfigDict, mesh: Mesh
) -> OnlineModels:
    """The settings of the models and the shapes of the pool, for prompts of P columns."""
    scorer = Scorer(source.reward.model.config, source.closing, source.text_length)
    T, rows = P + config.rollout.max_new_tokens, online.rows_of_experience(config)
    pool = pool_shapes(config.pool_rollouts, rows, T, mesh)
    return OnlineModels(policy, (scorer,), in_loss=True, carried=pool)


def learned_rows(config: ConfigDict) -> int:
    """The rows of all updates of an iteration."""
    return config.updates * config.minibatch_size


def quark_loss_fn(
    config: ModelConfig, *, kl_coef: float, entropy_coef: float, temperature: float, chunk: int
) -> LossFn:
    """NLL of the responses, with the KL to the reference and the entropy. Params: {policy, reference}; an Experience."""

    def loss_fn(params: dict[str, Params], batch: Experience) -> dict[str, Mean]:
        R, where = batch.mask_BR.shape[1], (batch.tokens_BT, batch.prompt_lengths_B)
        # Of an adapted policy only the adapter is trained, and only its first state is kept for the reference.
        reference = joined(params["policy"], params[REFERENCE])
        logprobs_BR, entropy_BR, kl_BR = logprobs_beside(
            config,
            params["policy"],
            *where,
            R,
            (config, reference, *where),
            temperature=temperature,
            chunk=chunk,
        )
        return quantile_loss(
            logprobs_BR, kl_BR, entropy_BR, batch.mask_BR, kl_coef=kl_coef, entropy_coef=entropy_coef
        )

    return loss_fn


def remembered(
    pool: Pool, read: Readings, sampled: Generation, scored: Scored, settings: RolloutSettings
) -> Pool:
    """The pool with this rollout."""
    return with_rollout(pool, read, sampled, scored, final_scores(sampled, scored, settings))


def make_experience(
    pool: Pool,
    read: Readings,
    sampled: Generation,
    scored: Scored,
    settings: RolloutSettings,
    quantiles: int,
) -> tuple[Ranked, Metrics]:
    """Ranks the whole pool, which holds the rollout already; metrics of the rollout and of the pool."""
    scores_N, usable_N = pool.scores_SB.reshape(-1), pool.usable_SB.reshape(-1)
    order_N, quantile_N = ranked(scores_N, usable_N, quantiles)
    best_N = quantile_N == 0
    metrics = rollout_metrics(read, sampled, scored, settings) | {
        "pool/rows": jnp.sum(usable_N).astype(jnp.float32),
        "pool/best_rows": jnp.sum(best_N).astype(jnp.float32),
        "pool/scores": value(masked_mean(scores_N, usable_N)),
        "pool/best_scores": value(masked_mean(scores_N, best_N)),
        "num_tokens": jnp.sum(read.prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }
    return Ranked(pool, order_N, jnp.sum(best_N)), metrics


def draw(key: jax.Array, found: Ranked, *, updates: int, size: int, quantiles: int, R: int) -> list[Experience]:
    """Draws `updates` minibatches of `size` rows of those that are learned from.

    Each comes once before any comes twice, in a fresh order every time. Shapes do not depend on how many there are, so a
    pool that is still filling compiles nothing new.
    """
    S, B = found.pool.scores_SB.shape
    most, fewest = -(-S * B // quantiles), max(1, B // quantiles)
    passes = -(-updates * size // fewest)
    # Entries beyond those that are learned from are sorted behind them.
    noise = jnp.where(jnp.arange(most) < found.kept, jax.random.uniform(key, (passes, most)), jnp.inf)
    orders = jnp.argsort(noise, axis=1)
    place, kept = jnp.arange(updates * size), jnp.maximum(found.kept, 1)
    chosen = found.order_N[orders[place // kept % passes, place % kept]]
    return [_rows(found, chosen[u * size : (u + 1) * size], R) for u in range(updates)]


def _rows(found: Ranked, chosen_B: Int[Array, " B"], R: int) -> Experience:
    pool, at = found.pool, jnp.divmod(chosen_B, found.pool.scores_SB.shape[1])
    # Where no response at all could be scored there is nothing to learn: weights of 0, and a gradient of 0.
    real_BR = jnp.arange(R) < pool.response_lengths_SB[at][:, None]
    return Experience(pool.tokens_SBT[at], pool.prompt_lengths_SB[at], real_BR & (found.kept > 0))


def _learner(
    session: Session, pad_id: int, policy: Network, source: actor_networks.RewardSource, models: OnlineModels
) -> online.Learner:
    """Reads the weights of policy and reward model and says how they sample, score, remember and draw."""
    c = session.config
    rewards = actor_networks.rewards_of(session, source, actor_networks.read_reward(session, source), pad_id)
    actor, starts = open_actor(session, models, policy.read(), rewards, pad_id)
    numbers = {"settings": actor.settings}
    # The pool stays where it lies; left to itself XLA may copy it to all devices, and the next step would compile again.
    add = jax.jit(partial(remembered, **numbers), out_shardings=shardings_of(models.carried))
    learn_from = jax.jit(partial(make_experience, **numbers, quantiles=c.quantiles))

    def remember(readings: Readings, sampled: Any, scores: Any, extra: dict) -> dict:
        return extra | {"pool": add(extra["pool"], readings, sampled, scores)}

    def experience(readings: Readings, _: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return learn_from(extra["pool"], readings, sampled, scores)

    return online.Learner(
        starts,
        actor.roll_out,
        actor.read,
        experience,
        actor.measure,
        remember,
        partial(
            draw,
            updates=c.updates,
            size=c.minibatch_size,
            quantiles=c.quantiles,
            R=c.rollout.max_new_tokens,
        ),
        {REFERENCE: starts["policy"].trained},
    )


def _check(session: Session) -> None:
    config = session.config
    online.check_sizes(config, session.mesh, learned_rows(config))
    rows = online.rows_of_experience(config)
    if config.quantiles > rows:
        raise UserError(
            f"quantiles: {config.quantiles} of the {rows} responses of a rollout; use at most {rows}, or a larger "
            "rollout.batch_size"
        )


def quark_plan(models: OnlineModels, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans Quark on prompts of P columns, from shapes."""

    def loss(trained: Mapping[str, ModelConfig], page: ConfigDict) -> LossFn:
        return quark_loss_fn(
            trained["policy"],
            kl_coef=page.kl_coef,
            entropy_coef=page.entropy_coef,
            temperature=page.rollout.temperature,
            chunk=page.logprob_chunk,
        )

    integers, R = partial(jax.ShapeDtypeStruct, dtype=jnp.int32), config.rollout.max_new_tokens
    row = Experience(integers((1, P + R)), integers((1,)), jax.ShapeDtypeStruct((1, R), bool))
    return plan_online(models, loss, row, P, pad_id, config, mesh, rows=learned_rows(config))
