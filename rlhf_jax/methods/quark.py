"""Quark: sample, rank what was sampled by its score, and learn from it quantile by quantile, close to the reference.

Lu et al. 2022 ("Quark: Controllable text generation with reinforced unlearning"). Per response token (eq. 2),

    -log pi(y_t | q, x, y_<t)  +  kl_coef * KL(pi || pi_ref)  -  entropy_coef * H(pi)

with the exact KL of the next token's distribution over the whole vocabulary. q is a control token in front of the
prompt that names the quantile of the response's score; the reference is shown the prompt without it. Prompts are
sampled behind the token of the best quantile, and the exported tokenizer puts it there, too (see
`data.tokens.tokenizer_files`). AlpacaFarm (Dubois et al. 2023) found it best to learn from the best quantile alone,
without tokens: train_on=best.

One iteration: `rollout.batch_size` prompts are sampled and scored; the responses join a pool of the last
`pool_rollouts` rollouts, in the place of the oldest; the whole pool is cut into `quantiles` parts by score; `updates`
minibatches are drawn from the best one, or from all. A row is one response as token ids, its end token included, as the
sampler wrote it. The pool is part of the state, so it is in the checkpoint.

What is right here and was not in the reference code: the end token is a target (it was lost when text was encoded
again), the mean is over real tokens (not over pads), rows are right-padded, quantiles are of the whole pool (not of one
process's part), a response that could not be scored is left out and counted, and policy, reference and loss share one
vocabulary. New tokens start as the mean of the others, all alike; the first rollout stands behind one, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.data.tokens.tokenizer_files import heads, load_tokenizer, prefix_ids, prefix_text
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import feedback_needs, reward_sources
from rlhf_jax.feedback.judged_evaluation import judged_evaluation
from rlhf_jax.feedback.reward_sources import RewardSources
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import joined
from rlhf_jax.models.responses import response_head, window, without_column
from rlhf_jax.objectives.divergences import token_divergence
from rlhf_jax.objectives.logprobs import head_logprobs
from rlhf_jax.objectives.quantiles import quantile_loss
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.experience import Metrics, Readings, RolloutSettings, final_scores, rollout_metrics
from rlhf_jax.rollout.pool import (
    Drawing,
    Pool,
    PoolRows,
    Ranked,
    draw,
    pool_shapes,
    ranked_pool,
    with_rollout,
)
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.checkpoints.object_stores import is_remote
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.state import shardings_of
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import actor_networks, encoded_rows, load_models, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online_models import REFERENCE, OnlineModels, open_actor, plan_online
from rlhf_jax.training.run.session import (
    Network,
    Session,
    export_model,
    marked_tokenizer,
    open_session,
    write_model_folder,
)

SHOW = ("objective/scores", "pool/best_scores", "loss/kl", "eval/scores")

NEEDS = feedback_needs.SCORED_POLICY
_EVALUATED = (
    *("eval/scores", "eval/scores_std", "eval/raw_scores", "eval/kl", "eval/entropy"),
    "eval/sampling/logp_difference",
    *("eval/completions/mean_length", "eval/completions/ended", "eval/completions/unscored", "eval/win_rate"),
)
ranges.own_rows(
    "quark",
    pool_rollouts=ranges.whole(
        1, 1024, "a whole number of rollouts of at least 1; each keeps its tokens in memory"
    ),
    quantiles=ranges.whole(2, says="a whole number of at least 2"),
    train_on=ranges.one_of("best", "all"),
    updates=ranges.COUNT,
    entropy_coef=ranges.number(0),
    best_metric=ranges.one_of(*_EVALUATED, or_none=True),
    **{"data.too_long": ranges.one_of("drop", "cut_prompt")},
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` on its best responses by `model.reward`; writes WORKDIR/export, of the best evaluation."""
    markers = markers_of(config)
    about = {"folder": config.model.policy, "made_by": made_by("sft")}
    if markers:
        _check_markers(config, workdir)
        about["find_tokenizer"] = partial(marked_tokenizer, workdir, markers, markers[0], made_by("sft"))
    session = open_session(NEEDS, config, workdir, **about)
    _check(session)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy = actor_networks.policy_of(session)
    sources = reward_sources.describe_sources(session, list(split.train_rows), list(split.eval_rows))
    models = quark_models(policy.config, sources, prompts.P, session)
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(quark_plan, models, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, sources, models),
        after=lambda extra, _: extra,
        extra={"pool": models.carried},
        show=SHOW,
        reads=sources.files,
        rows=learned_rows(config),
        judged=judged_evaluation(config, workdir, split.eval_rows),
        unsaid=sources.unsaid,
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def quark_models(policy: ModelConfig, sources: RewardSources, P: int, session: Session) -> OnlineModels:
    """The settings of the models and the shapes of the pool, for prompts of P columns."""
    c = session.config
    pool = pool_shapes(
        c.pool_rollouts, online.rows_of_experience(c), P + c.rollout.max_new_tokens, session.mesh
    )
    # A prefix of one token; what stands beside it is the BOS token, where there is one.
    marker = heads(session.tokenizer).index(*prefix_ids(session.tokenizer)) if markers_of(c) else -1
    return OnlineModels(policy, sources.scorers, of_loss=(REFERENCE,), marker=marker, carried=pool)


def markers_of(config: ConfigDict) -> tuple[str, ...]:
    """The control tokens of the quantiles, the best first; none where only the best quantile is learned from."""
    return tuple(f"<|quantile_{q}|>" for q in range(config.quantiles)) if config.train_on == "all" else ()


def learned_rows(config: ConfigDict) -> int:
    """The rows of all updates of an iteration."""
    return config.updates * config.minibatch_size


def quark_loss_fn(
    config: ModelConfig,
    *,
    kl_coef: float,
    entropy_coef: float,
    temperature: float,
    chunk: int,
    marker: int = -1,
) -> LossFn:
    """NLL of the responses, with the KL to the reference and the entropy. Params: {policy, reference}; PoolRows.

    marker: the column of the quantiles' tokens; -1 where there are none.
    """

    def loss_fn(params: dict[str, Params], batch: PoolRows) -> dict[str, Mean]:
        R, where = batch.mask_BR.shape[1], (batch.tokens_BT, batch.prompt_lengths_B)
        # Of an adapted policy only the adapter is trained, and only its first state is kept for the reference. Stopped
        # here, so that no backward pass through its layers is even traced.
        reference = jax.lax.stop_gradient(joined(params["policy"], params[REFERENCE]))
        bare = without_column(*where, marker) if marker >= 0 else where
        own, other = (
            response_head(config, p, *rows, R) for p, rows in ((params["policy"], where), (reference, bare))
        )
        how = {"temperature": temperature, "chunk": chunk}
        targets_BR = window(*where, R, offset=0)
        read = head_logprobs(own, targets_BR, **how)
        kl_BR, coefs = token_divergence(own, other, **how), {"kl_coef": kl_coef, "entropy_coef": entropy_coef}
        return quantile_loss(read[0], kl_BR, read[1], batch.mask_BR, **coefs)

    return loss_fn


def learn_from(
    pool: Pool,
    read: Readings,
    sampled: Generation,
    scored: Scored,
    settings: RolloutSettings,
    quantiles: int,
    only_best: bool,
) -> tuple[Ranked, Metrics]:
    """Ranks the whole pool, which holds the rollout already; metrics of the rollout and of the pool."""
    found = ranked_pool(pool, quantiles, only_best=only_best)
    usable_N, best_N = pool.usable_SB.reshape(-1), found.quantile_N == 0
    scores_N = pool.scores_SB.reshape(-1)
    return found, rollout_metrics(read, sampled, scored, settings) | {
        "pool/rows": jnp.sum(usable_N).astype(jnp.float32),
        "pool/best_rows": jnp.sum(best_N).astype(jnp.float32),
        "pool/scores": value(masked_mean(scores_N, usable_N)),
        "pool/best_scores": value(masked_mean(scores_N, best_N)),
        "num_tokens": jnp.sum(read.prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }


def _learner(
    session: Session, pad_id: int, policy: Network, sources: RewardSources, models: OnlineModels
) -> online.Learner:
    """Reads the weights of policy and reward model and says how they sample, score, remember and draw."""
    c = session.config
    rewards, _ = reward_sources.open_rewards(session, sources, pad_id)
    actor, starts = open_actor(session, models, policy.read(), rewards, pad_id)
    only_best = c.train_on == "best"
    reference = starts["policy"].trained if c.lora.rank else actor.frozen[REFERENCE].params
    # The pool stays where it lies: copied to all devices by XLA, it would make the next step compile again.
    add = jax.jit(with_rollout, out_shardings=shardings_of(models.carried))
    final = jax.jit(partial(final_scores, settings=actor.settings))
    how = {"settings": actor.settings, "quantiles": c.quantiles, "only_best": only_best}
    learned = jax.jit(partial(learn_from, **how))
    ids = tuple(session.tokenizer.convert_tokens_to_ids(list(markers_of(c))))
    parts = c.quantiles if only_best else 1
    drawing = Drawing(c.updates, c.minibatch_size, c.rollout.max_new_tokens, parts, models.marker, ids)

    def remember(readings: Readings, sampled: Any, scores: Any, extra: dict) -> dict:
        return extra | {"pool": add(extra["pool"], readings, sampled, scores, final(sampled, scores))}

    def experience(readings: Readings, _: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return learned(extra["pool"], readings, sampled, scores)

    return online.Learner(
        starts,
        actor.roll_out,
        actor.read,
        experience,
        actor.measure,
        {REFERENCE: reference},
        remember,
        partial(draw, how=drawing),
    )


def _check_markers(config: ConfigDict, workdir: str) -> None:
    # An adapter leaves embeddings as they are: the new tokens would stay the same row, and nothing tell them apart.
    if config.lora.rank:
        raise UserError(
            f"train_on: all with lora.rank={config.lora.rank}, which does not train the embeddings of the quantiles' "
            "tokens; use train_on=best, or lora.rank=0"
        )
    if is_remote(workdir):
        raise UserError(
            f"workdir: {workdir} is in an object store, and train_on=all writes a tokenizer first; use a folder on a "
            "disk, or train_on=best"
        )
    folder = load_models.tokenizer_folder(load_models.resolve_folder(config.model.policy))
    if prefix := prefix_text(load_tokenizer(folder, made_by=made_by("sft"))):
        raise UserError(
            f"model.policy: {config.model.policy} is asked behind {prefix!r} already, and train_on=all would put "
            "another token there; use train_on=best, or the model that it was trained from"
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
            marker=models.marker,
        )

    integers, R = partial(jax.ShapeDtypeStruct, dtype=jnp.int32), config.rollout.max_new_tokens
    row = PoolRows(integers((1, P + R)), integers((1,)), jax.ShapeDtypeStruct((1, R), bool))
    return plan_online(models, loss, row, P, pad_id, config, mesh, rows=learned_rows(config))
