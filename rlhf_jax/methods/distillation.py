"""Distillation from a teacher on the student's own samples, in place of feedback.

The policy samples a response to every prompt, and a stronger language model with the same tokenizer says which
distribution it would have had at each position (Agarwal et al. 2024, GKD, algorithm 1 with every sample on-policy;
Gu et al. 2024, MiniLLM). The loss is the divergence between both over the whole vocabulary, by default the reverse KL,

    sum over tokens v of pi(v) * (log pi(v) - log teacher(v))

so that its estimate has no noise but that of which responses were sampled. `credit` says what its gradient is: "token"
holds each distribution responsible for its own divergence (GKD), "sequence" each token for the divergences that follow
it, too, which for reverse_kl is an unbiased gradient of the KL of whole responses. See `objectives.divergences`.

A row of experience is a sampled response. Both distributions are at `rollout.temperature`. An evaluation scores a
response by the mean over its tokens of log teacher - log pi: minus the reverse KL per token, as sampled.
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
from rlhf_jax.data.tokens.same_tokens import same_tokens
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import feedback_needs
from rlhf_jax.feedback.judged_evaluation import judged_evaluation
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import Model
from rlhf_jax.models.responses import response_head, window
from rlhf_jax.objectives import divergences
from rlhf_jax.objectives.logprobs import head_logprobs
from rlhf_jax.objectives.policy_gradient import sequence_kl, token_kl
from rlhf_jax.objectives.reduce import Mean, value
from rlhf_jax.rollout.experience import Actor, Metrics, Readings, RolloutSettings, rollout_metrics
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import actor_networks, encoded_rows, load_models, online
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.missing_inputs import Needs, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.online_models import OnlineModels, kept_dtype, open_actor, plan_online
from rlhf_jax.training.run.session import Network, Session, export_model, open_session, write_model_folder

SHOW = ("divergence", "objective/teacher_kl", "completions/mean_length", "eval/scores")
TEACHER = "teacher"


NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("make_data", "data")),
        *model_reads("model.policy", made_by("sft")),
        *model_reads("model.teacher", made_by("ppo"), adapter="model.teacher_adapter"),
        *feedback_needs.WIN_RATE_READS,
    ),
    remote=True,
    also=feedback_needs.check_feedback,
    reads_too=feedback_needs.judges_read,
)
ranges.own_rows(
    "distillation",
    divergence=ranges.one_of(*divergences.DIVERGENCES),
    credit=ranges.one_of(*divergences.CREDITS),
    epochs=ranges.COUNT,
    **{"model.teacher": ranges.TEXT, "model.teacher_adapter": ranges.TEXT},
)


class Sampled(NamedTuple):
    """The experience: responses behind their prompts."""

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains `model.policy` towards `model.teacher`; writes WORKDIR/export, the policy of the best evaluation."""
    session = open_session(NEEDS, config, workdir, folder=config.model.policy, made_by=made_by("sft"))
    online.check_sizes(config, session.mesh)
    split = encoded_rows.prompts(config.data, session.tokenizer, config.seed, made_by("make_data", "data"))
    prompts, held = online.prompt_rows(split, fill_id(session.tokenizer))
    policy = actor_networks.policy_of(session)
    teacher = teacher_of(session, policy.config)
    models = OnlineModels(policy.config, read={TEACHER: teacher.config}, of_loss=(TEACHER,))
    write_model_folder(session, policy)
    judge_files = filter(None, (config.win_rate.judges, config.win_rate.baseline))
    method = online.Online(
        plan=partial(distillation_plan, models, prompts.P, prompts.pad_id),
        open=partial(_learner, session, prompts.pad_id, policy, teacher, models),
        after=lambda extra, metrics: extra,
        extra={},
        show=SHOW,
        reads=(*load_models.sources(config.model.teacher, config.model.teacher_adapter), *judge_files),
        judged=judged_evaluation(config, workdir, split.eval_rows),
    )
    trained = online.train_online(session, prompts, held, method)
    export_model(session, policy, trained["policy"], ends=session.ends)


def teacher_of(session: Session, policy: ModelConfig) -> Network:
    """Describes the teacher; UserError where it is no language model, or the student's tokens are not its own."""
    m, made = session.config.model, made_by("ppo")
    folder = load_models.resolve_folder(m.teacher, "model.teacher_adapter")
    about = {"tokens": 0, "adapter": m.teacher_adapter}
    found = load_models.describe_model(folder, m, made, **about)
    if found.is_scalar:
        raise UserError(f"model.teacher: {m.teacher} is a reward model; give a language model")
    tokenizer = load_tokenizer(load_models.tokenizer_folder(folder), made_by=made)
    if not same_tokens(session.tokenizer, tokenizer):
        raise UserError(
            f"model.teacher: {m.teacher} has another tokenizer than the policy, whose tokens it is asked about; give a "
            "teacher of the same family, or train the policy on what this one writes (generate, then sft)"
        )
    if found.config.vocab_size < policy.vocab_size:
        raise UserError(
            f"model.teacher: {m.teacher} has embeddings of {found.config.vocab_size} tokens, and the policy, which may "
            f"sample any of its own, of {policy.vocab_size}; give a teacher with as many"
        )

    def read() -> Params:
        about["base_dtype"] = session.lora.base_dtype
        params = load_models.load_model(folder, m, session.mesh, made, **about)[1]
        # Merged as it is, and rounded once, at the end.
        return stored(load_models.merged_params(found.config, params), kept_dtype(session.config))

    return Network(found.config, read)


def distillation_loss_fn(
    policy_config: ModelConfig,
    teacher_config: ModelConfig,
    *,
    divergence: str,
    credit: str,
    temperature: float,
    chunk: int,
) -> LossFn:
    """The divergence of the policy from the teacher. Params: {policy, teacher}, of which the latter is frozen."""

    def loss_fn(params: dict[str, Params], batch: Sampled) -> dict[str, Mean]:
        R, how = batch.mask_BR.shape[1], {"temperature": temperature, "chunk": chunk}
        where = (batch.tokens_BT, batch.prompt_lengths_B, R)
        student = response_head(policy_config, params["policy"], *where)
        teacher = response_head(teacher_config, jax.lax.stop_gradient(params[TEACHER]), *where)
        apart_BR = divergences.token_divergence(student, teacher, divergence=divergence, **how)
        targets_BR = window(batch.tokens_BT, batch.prompt_lengths_B, R, offset=0)
        logprobs_BR, _ = head_logprobs(student, targets_BR, **how)
        return divergences.distillation_loss(apart_BR, logprobs_BR, batch.mask_BR, credit=credit)

    return loss_fn


def make_experience(
    read: Readings, sampled: Generation, settings: RolloutSettings
) -> tuple[Sampled, Metrics]:
    """What was sampled, ready to learn from, and the metrics of the rollout."""
    _, metrics = measured(read, sampled, settings)
    tokens = jnp.sum(read.prompt_lengths_B + sampled.lengths_B).astype(jnp.float32)
    return Sampled(read.tokens_BT, read.prompt_lengths_B, read.mask_BR), metrics | {"num_tokens": tokens}


def measured(
    read: Readings, sampled: Generation, settings: RolloutSettings
) -> tuple[Float[Array, " B"], Metrics]:
    """(score of each response, metrics). `objective/teacher_kl` is KL(policy || teacher) of a response, as sampled."""
    logprobs = read.logprobs
    apart_BR = token_kl(logprobs["policy"], logprobs[TEACHER], read.mask_BR, estimator="k1")
    scores_B = -jnp.sum(apart_BR, axis=1) / jnp.maximum(sampled.lengths_B, 1)
    metrics = rollout_metrics(read, sampled, Scored(scores_B, jnp.ones_like(sampled.ended_B)), settings)
    # The teacher has an opinion of a response that did not end, too, and of every one.
    metrics["objective/scores"] = metrics.pop("objective/raw_scores")
    del metrics["completions/unscored"]
    return scores_B, metrics | {"objective/teacher_kl": value(sequence_kl(apart_BR, read.mask_BR))}


def _learner(
    session: Session, pad_id: int, policy: Network, teacher: Network, models: OnlineModels
) -> online.Learner:
    """Reads the weights of both models and says how the policy samples and what both say of a rollout."""
    params, teacher_params = policy.read(), teacher.read()
    read = {TEACHER: Model(teacher.config, teacher_params)}
    actor, starts = open_actor(session, models, params, _no_scores, pad_id, read=read)
    learn_from = jax.jit(partial(make_experience, settings=actor.settings))

    def experience(readings: Readings, _: dict, sampled: Any, scores: Any, extra: dict) -> tuple:
        return learn_from(readings, sampled)

    beside = {TEACHER: actor.frozen[TEACHER].params}
    return online.Learner(starts, actor.roll_out, actor.read, experience, _measure_of(actor), beside)


def _no_scores(*asked: Any, **more: Any) -> Callable[[], None]:
    """In the place of a source of scores: what the teacher says is read with the rollout."""
    return lambda: None


def _measure_of(actor: Actor) -> Callable[..., tuple[jax.Array, dict]]:
    @partial(jax.jit, static_argnums=2)
    def of_first(readings: Readings, sampled: Generation, count: int) -> tuple[jax.Array, Metrics]:
        first = jax.tree.map(lambda x: x[:count] if x.ndim else x, (readings, sampled))
        return measured(*first, actor.settings)

    def measure(
        networks: Mapping, batch: dict, sampled: Generation, score: Any, count: int
    ) -> tuple[jax.Array, dict]:
        scores_B, metrics = of_first(actor.read(networks, batch, sampled), sampled, count)
        return scores_B, {name.removeprefix("objective/"): x for name, x in metrics.items()}

    return measure


def distillation_plan(models: OnlineModels, P: int, pad_id: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans distillation on prompts of P columns, from shapes."""

    def loss(networks: Mapping[str, ModelConfig], page: ConfigDict) -> LossFn:
        how = {"divergence": page.divergence, "credit": page.credit}
        how |= {"temperature": page.rollout.temperature, "chunk": page.logprob_chunk}
        return distillation_loss_fn(networks["policy"], networks[TEACHER], **how)

    return plan_online(
        models, loss, response_shapes(P, config.rollout.max_new_tokens), P, pad_id, config, mesh
    )


def response_shapes(P: int, R: int) -> Sampled:
    """The shapes of one row of experience; the memory plan puts the minibatch size in place of the 1."""
    integers = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return Sampled(integers((1, P + R)), integers((1,)), jax.ShapeDtypeStruct((1, R), bool))
