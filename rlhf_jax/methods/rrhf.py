"""Rank responses to align with human feedback (Yuan et al. 2023, RRHF and its chat model Wombat).

Several responses to a prompt have scores, from a reward model, a judge or people. The policy should find a better
response likelier than a worse one, and imitate the best: with p the log-prob of a response divided by its tokens,

    L = sum over r_i < r_j of max(0, p_i - p_j)  -  log pi(the response with the highest score)      (section 3.1)

A row is one prompt with all of its responses, which stay together in every minibatch and, read from files, share the
prompt (`data.share_prompts`). Ranking pairs, `rank/accuracy`
measures the policy as a reward model. Where the responses come from is the page's (the paper's section 3.2):

    configs/rrhf.py           from files, of provided responses, of sampled ones, or of both; sampled by `generate`,
                              also with beams in diverse groups. One model is held, as in fine-tuning.
    configs/rrhf_iterated.py  the same in rounds, each from the model of the round before
    configs/rrhf_online.py    online: every iteration samples `rollout.samples` responses, scores them beside those of
                              `data.provided`, and takes its steps on them; the policy that samples is refreshed then

Of files, responses that are too long or have no score are left out and counted. Online, a response that did not end has
the score `missing_eos_penalty`, one that ended and could not be scored is no candidate, a text that a prompt has twice
is one, and a prompt none of whose responses ended with a score has weight 0. A prompt whose scores do not differ keeps
only the second term. Online scores may be less kl_coef times the log-ratio to the policy as it started (OP-32 with KL).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import feedback_needs, reward_sources
from rlhf_jax.feedback.judged_evaluation import judged_evaluation
from rlhf_jax.feedback.reward_sources import RewardSources
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import Batch, by_document, packed_row_logprobs, plain_row_logprobs
from rlhf_jax.objectives import ranking
from rlhf_jax.objectives.preference import sequence_logprob
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.rollout.experience import Readings
from rlhf_jax.rollout.response_groups import make_candidates, with_provided
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.rows import labelled_rows, shared_prompt_rows
from rlhf_jax.training.run import actor_networks, encoded_rows, offline, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import (
    SAMPLED_READS,
    TABLE,
    TABLES,
    Needs,
    Read,
    either,
    made_by,
    model_reads,
)
from rlhf_jax.training.run.online_models import OnlineModels, open_actor, plan_online
from rlhf_jax.training.run.session import (
    Network,
    Session,
    export_model,
    network_of,
    open_session,
    write_model_folder,
)

SHOW = ("loss", "rank/accuracy", "eval/rank/accuracy")
SHOW_ONLINE = ("loss", "objective/scores", "objective/kl", "eval/scores")
SCORES, DATA = made_by("score", "candidates/scores"), made_by("make_data", "data")


def is_online(page: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether a page's responses are sampled while it trains."""
    return "rollout" in page


_OF_FILES = Needs(
    reads=(
        Read("data.train", TABLES, SCORES),
        Read("data.eval", TABLES, SCORES),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
    ),
    remote=True,
)
_SAMPLED = feedback_needs.SCORED_POLICY
_SAMPLED = _SAMPLED._replace(reads=(*_SAMPLED.reads, Read("data.provided", TABLE, DATA)))
NEEDS = either(is_online, _SAMPLED, _OF_FILES)
LOSS = ("rank_weight", "sft_weight", "length_penalty", "normalisation")
ranges.own_rows(
    "rrhf",
    rank_weight=ranges.number(0),
    sft_weight=ranges.number(0),
    length_penalty=ranges.number(0),
    normalisation=ranges.one_of(*ranking.NORMALISATIONS),
    **shared_prompt_rows.SHARE_PROMPTS,
    **{"data.query": ranges.one_of("instruction", "prompt"), "data.provided": ranges.TEXT},
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on scored responses, of files or sampled ones; writes WORKDIR/export."""
    if not config.rank_weight and not config.sft_weight:
        raise UserError("rank_weight, sft_weight: both are 0, so nothing is trained; set one of them")
    (_train_online if is_online(config) else _train_on_files)(config, workdir)


def _train_on_files(config: ConfigDict, workdir: str) -> None:
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    split = labelled_rows.candidates(config.data, session.tokenizer, config.seed, SCORES)
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; RRHF starts from a language model"
        )
    write_model_folder(session, network)
    about = (split, config.data, fill_id(session.tokenizer))
    train, held, R = shared_prompt_rows.candidate_rows(*about, network.config)

    def loss_of(model: ModelConfig, page: ConfigDict) -> LossFn:
        return rrhf_loss_fn(model, R, page.logprob_chunk, **{name: page[name] for name in LOSS})

    method = offline.Offline(loss_of, train, held, SHOW)
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def rrhf_loss_fn(
    config: ModelConfig,
    R: int,
    chunk: int,
    *,
    rank_weight: float = 1.0,
    sft_weight: float = 1.0,
    length_penalty: float = 1.0,
    normalisation: str = "paper",
    temperature: float = 1.0,
) -> LossFn:
    """RRHF on a batch of B prompts with N responses each, a mean over prompts (see `objectives.ranking`).

    Batch: tokens [B, N, T], lengths, prompt_lengths, scores, candidates (whether there is such a response) [B, N]
    [, trained [B, N, T]][, weight [B]]; or rows whose responses share the prompt, with lengths, scores, candidates.
    R: response tokens there is room for.
    """

    def sums(params: decoder.Params, batch: Batch) -> tuple[Array, Array]:
        """(log-prob, tokens) of every response [B, N]."""
        B, N = batch["scores"].shape
        if "segments" in batch:
            logprobs_BR, _, mask_BR = packed_row_logprobs(config, params, batch, R, chunk)
            tokens_BR = mask_BR.astype(jnp.float32)
            return tuple(by_document(x, batch["owners"], N) for x in (logprobs_BR, tokens_BR))
        # One row a response. Prompts are the first axis, so those of one prompt stay on its device.
        names = [name for name in ("tokens", "lengths", "prompt_lengths", "trained") if name in batch]
        flat = {name: batch[name].reshape(B * N, *batch[name].shape[2:]) for name in names}
        logprobs_MR, _, mask_MR = plain_row_logprobs(config, params, flat, R, chunk, temperature=temperature)
        return sequence_logprob(logprobs_MR, mask_MR).reshape(B, N), mask_MR.sum(axis=1).reshape(B, N)

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        about = (batch["lengths"], batch["scores"], batch["candidates"])
        found = ranking.Ranked(*sums(params, batch), *about)
        weight_B = batch.get("weight", jnp.ones(len(batch["scores"])))
        return ranking.rrhf(
            found,
            weight_B,
            rank_weight=rank_weight,
            sft_weight=sft_weight,
            length_penalty=length_penalty,
            normalisation=normalisation,
        )

    return loss_fn


def _train_online(config: ConfigDict, workdir: str) -> None:
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    _check(session)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, DATA)
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    beside = 0
    if config.data.provided:
        about = (split.train_rows, session.ends, config.rollout.max_new_tokens, DATA)
        found = labelled_rows.provided(config.data, session.tokenizer, *about)
        arrays = partial(found.arrays, R=config.rollout.max_new_tokens, pad_id=prompts.pad_id)
        prompts, beside = prompts._replace(beside=arrays), found.places_nM.shape[1]
    policy = actor_networks.policy_of(session)
    records = (list(split.train_rows), list(split.eval_rows))
    sources = reward_sources.describe_sources(session, *records, beside=beside)
    models = OnlineModels(policy.config, sources.scorers)
    write_model_folder(session, policy)
    method = online.Online(
        plan=partial(rrhf_plan, models, prompts.P, prompts.pad_id, beside),
        open=partial(_learner, session, prompts.pad_id, policy, sources, models),
        after=lambda extra, metrics: extra,
        extra={},
        show=SHOW_ONLINE,
        reads=(*sources.files, *filter(None, [config.data.provided])),
        judged=judged_evaluation(config, workdir, split.eval_rows),
        unsaid=sources.unsaid,
        rows=config.rollout.batch_size,
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def _check(session: Session) -> None:
    c = session.config
    online.check_sizes(c, session.mesh, c.rollout.batch_size)
    if c.rollout.samples < 2 and not c.data.provided:
        raise UserError("rollout.samples: 1 without data.provided leaves nothing to rank; use 2 or more")
    if c.epochs != int(c.epochs):
        raise UserError(f"epochs: {c.epochs:g} passes over a rollout; use a whole number")
    if c.data.too_long == "cut_response":
        raise UserError("data.too_long: cut_response, but only prompts are cut here; use drop or cut_prompt")


def _learner(
    session: Session, pad_id: int, policy: Network, sources: RewardSources, models: OnlineModels
) -> online.Learner:
    """Reads the weights of policy and reward models and says how they sample, score and read a rollout."""
    c, params = session.config, policy.read()
    rewards, _ = reward_sources.open_rewards(session, sources, pad_id)
    actor, starts = open_actor(session, models, params, rewards, pad_id)
    about = {"samples": c.rollout.samples, "prompts": c.rollout.batch_size, "kl_coef": c.kl_coef}
    ranked = jax.jit(partial(make_candidates, settings=actor.settings, **about))

    def roll_out(
        networks: Mapping, records: list[dict], batch: dict, key: jax.Array, samples: int
    ) -> tuple[Generation, Callable[[], Scored]]:
        responses = actor.sample(networks, batch, key, samples)
        if "provided_tokens" in batch:
            responses = with_provided(responses, batch)
        return responses, actor.score(records, batch, responses)

    def experience(readings: Readings, _: dict, responses: Any, scores: Any, extra: dict) -> tuple:
        return ranked(readings, responses, scores)

    measure = partial(actor.measure_at_price, c.kl_coef)
    return online.Learner(starts, roll_out, actor.read, experience, measure)


def rrhf_plan(models: OnlineModels, P: int, pad_id: int, beside: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans online RRHF on prompts of P columns with `beside` provided responses, from shapes."""
    R, N = config.rollout.max_new_tokens, config.rollout.samples + beside

    def loss(trained: Mapping[str, ModelConfig], page: ConfigDict) -> LossFn:
        how = {name: page[name] for name in LOSS} | {"temperature": page.rollout.temperature}
        of_policy = rrhf_loss_fn(trained["policy"], R, page.logprob_chunk, **how)
        return lambda params, batch: of_policy(params["policy"], batch)

    row = {
        "tokens": jax.ShapeDtypeStruct((1, N, P + R), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((1, N), jnp.int32),
        "prompt_lengths": jax.ShapeDtypeStruct((1, N), jnp.int32),
        "scores": jax.ShapeDtypeStruct((1, N), jnp.float32),
        "candidates": jax.ShapeDtypeStruct((1, N), bool),
        "weight": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    about = {"rows": config.rollout.batch_size, "provided": beside}
    return plan_online(models, loss, row, P, pad_id, config, mesh, **about)
