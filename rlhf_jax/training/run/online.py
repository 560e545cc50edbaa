"""The driver of every online method, which learns from what its policy has just sampled. Knows no method by name.

An iteration is a rollout on the next prompts, its scores, and several passes over the experience in minibatches. The
method brings the networks, the scores and the loss; the order of things, the randomness and the timing are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, row_indices
from rlhf_jax.data.tokenization import decode
from rlhf_jax.data.tokens.special_ids import without_end
from rlhf_jax.errors import UserError
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import joined
from rlhf_jax.objectives.policy_gradient import adaptive_kl_coef
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.host_memory import to_devices, waits
from rlhf_jax.parallel.mesh import BATCH_AXES, check_batch, gather
from rlhf_jax.parallel.sampling_mesh import check_sampled_rows, sampling_mesh
from rlhf_jax.rollout.experience import tell_alike
from rlhf_jax.rollout.on_policy import READ, for_later
from rlhf_jax.rollout.prompt_rows import PromptRows
from rlhf_jax.sampling.decode import check_finite
from rlhf_jax.training.checkpoints.workdir import write_samples
from rlhf_jax.training.loop.loop import fit, tell_warmup
from rlhf_jax.training.loop.recorder import done_at, overall_metrics
from rlhf_jax.training.loop.state import TrainState, at_rest, at_work, create, placed
from rlhf_jax.training.loop.step import TrainStep, check_microbatches
from rlhf_jax.training.optimizers.optimizer import ema_params
from rlhf_jax.training.run import memory_check
from rlhf_jax.training.run.encoded_rows import Split
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.memory_check import Plan
from rlhf_jax.training.run.session import Session

# The run's key is folded with one of these first: rollouts, minibatch orders and evaluations share no noise.
ROLLOUT, ORDER, EVALUATION = 0, 1, 2
# Nats per token between the sampler's log-probs and the trainer's; rounding alone stays far below.
_FAR = 0.05
# Where `TrainState.extra` keeps the policies of the last iterations, for rollouts that are behind.
PAST = "past_policies"

Networks = Mapping[str, Any]


def prompt_rows(split: Split, pad_id: int) -> tuple[PromptRows, PromptRows]:
    """Makes batches' rows of encoded prompts: (for training, for evaluation)."""
    # One width for both files, so that their programs differ in the number of rows alone.
    P = bucket(max(int(split.train.lengths.max()), int(split.eval.lengths.max())), 8)
    return (
        PromptRows(split.train, split.train_rows, P, pad_id),
        PromptRows(split.eval, tuple(split.eval_rows), P, pad_id),
    )


class Learner(NamedTuple):
    """An online method whose weights have been read.

    Attributes:
      starts: how each network that is trained starts, by name.
      roll_out: (all networks, records, batch of prompts, key, responses of each) -> (what was sampled, a call for its
        scores).
      read: (all networks, batch, sampled) -> what the networks say of it. The devices are given this before the scores
        are asked for, so that a host which prepares text for a reward model works meanwhile.
      experience: (readings, batch, sampled, scores, extra) -> (what to learn from, metrics).
      measure: (all networks, batch, sampled, call for its scores, how many rows count) -> (final scores, metrics).
      beside: parameters by name of networks that the loss reads and nobody trains.
      remember: (readings, sampled, scores, extra) -> extra, before `experience` is given that: for a method that learns
        from more than its last rollout.
      draw: (key, what to learn from) -> minibatches; None cuts all of it into minibatches, in an order of its own.
      unread: (readings, sampled, scores, extra) -> the rollout for updates that read it themselves (`one_minibatch`);
        `read` then runs only what is not trained. None where it runs all networks.
    """

    starts: dict[str, Start]
    roll_out: Callable[[Networks, list[dict], dict, jax.Array, int], tuple[Any, Callable[[], Any]]]
    read: Callable[[Networks, dict, Any], Any]
    experience: Callable[[Any, dict, Any, Any, dict], tuple[Any, dict]]
    measure: Callable[[Networks, dict, Any, Callable[[], Any], int], tuple[jax.Array, dict]]
    beside: Networks = MappingProxyType({})
    remember: Callable[[Any, Any, Any, dict], dict] | None = None
    draw: Callable[[jax.Array, Any], list[Any]] | None = None
    unread: Callable[[Any, Any, Any, dict], Any] | None = None


# (responses of an evaluation on process 0, step) -> metrics, on every process.
Judged = Callable[[list[str], int], dict[str, float]]


class Online(NamedTuple):
    """An online method before any weight is read.

    Attributes:
      plan: page and mesh -> the update and the other programs of an iteration, as shapes.
      open: reads the weights.
      after: (extra, metrics) -> extra: what a method carries from one iteration to the next.
      extra: what it carries, before the first iteration.
      show: the metrics on the progress line.
      reads: folders that the run reads, beside the policy's.
      judged: (responses of the evaluation on process 0, step) -> further metrics of it.
      unsaid: metrics of an evaluation that are left out, since one response of a prompt has no such number.
      rows: what one rollout gives to learn from, in rows of experience; 0 means one for every response.
    """

    plan: Callable[[ConfigDict, Mesh], Plan]
    open: Callable[[], Learner]
    after: Callable[[dict, dict], dict]
    extra: dict[str, Any]
    show: tuple[str, ...]
    reads: tuple[str, ...] = ()
    judged: Judged | None = None
    unsaid: tuple[str, ...] = ()
    rows: int = 0


def train_online(
    session: Session, prompts: PromptRows, held: PromptRows, method: Online
) -> dict[str, Params]:
    """Trains for the page's `steps`; returns all networks of the last or best state, the average where one is kept."""
    config, mesh = session.config, session.mesh
    plan = memory_check.prepare_step(method.plan, config, mesh)
    # Weights are read only now: a run that does not fit into memory ends in the line above.
    learner = method.open()
    frozen = {name: start.frozen for name, start in learner.starts.items()} | dict(learner.beside)
    frozen = placed(frozen, plan.frozen)
    # The train step donates its buffers, but a reference model is the policy as it starts and must outlive
    # the first step. So training gets the copy, and the arrays that were read stay the reference's, or go.
    trained = {name: jax.tree.map(jnp.copy, start.trained) for name, start in learner.starts.items()}
    trained, learner = placed(trained, plan.state.params), learner._replace(starts={})
    # The first rollouts come from the policy as it starts, as there is none yet that is further behind.
    past = tuple(jax.tree.map(jnp.copy, trained["policy"]) for _ in range(config.rollout.staleness))
    extra = method.extra | ({PAST: past} if past else {})
    state = create(trained, plan.optimizer, config.seed, extra=extra)
    if moments_wait(config):
        state = at_rest(state)

    evaluate = make_evaluation(session, held, learner, method.judged, method.unsaid)
    best = fit(
        config,
        session.workdir,
        state,
        make_iteration(session, prompts, learner, method.after, plan.step, frozen),
        lambda state, step: evaluate(joined(frozen, ema_params(state.params, state.opt_state)), step),
        steps=config.steps,
        inputs=session.inputs(*method.reads),
        show=method.show,
        # Curves start at the policy that training began with, and it competes for the best checkpoint.
        eval_first=True,
        flops=float(plan.flops) * updates_per_iteration(config, method.rows),
    )
    return joined(frozen, ema_params(best.params, best.opt_state))


def make_iteration(
    session: Session,
    prompts: PromptRows,
    learner: Learner,
    after: Callable[[dict, dict], dict],
    step: TrainStep,
    frozen: dict[str, Params],
) -> Callable[[TrainState, int], tuple[TrainState, dict, Any]]:
    """Returns `iterate(state, i)`, which does rollout i, its scores, and `epochs` passes over it in minibatches."""
    c, mesh = session.config, session.mesh
    # Minibatches are split as the step was compiled for; left to itself XLA may copy them to all devices.
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    shuffled = jax.jit(partial(_shuffled, size=c.minibatch_size), out_shardings=rows)
    minibatches = shuffled if learner.draw is None else jax.jit(learner.draw, out_shardings=rows)
    samples, staleness, epochs = c.rollout.samples, c.rollout.staleness, epochs_of(c)
    overall, later = jax.jit(overall_metrics), jax.jit(for_later, out_shardings=rows)
    unread = None if learner.unread is None else jax.jit(learner.unread, out_shardings=rows)
    last: dict[str, Any] = {}  # Metrics of the iteration before, which the devices are done with.

    rests = moments_wait(c)

    def update(state: TrainState, i: int, experience: Any) -> tuple[TrainState, Any, dict]:
        found, there = [], frozen
        if rests or waits(frozen):
            # Not before: what the rollout has on the devices may be all that they have room for.
            jax.block_until_ready(experience)
            state, there = at_work(state), to_devices(frozen)
        for epoch in range(epochs):
            # A fresh order in every pass, by the pass's number, so that a resumed run draws the same.
            key = key_of(state.key, ORDER, i * epochs + epoch)
            for minibatch in minibatches(key, experience) if unread is None else (experience,):
                state, metrics = step(state, minibatch, there)
                if unread is not None:
                    experience = later(experience, metrics.pop(READ))
                found.append(metrics)
        if rests:
            state = at_rest(state)
        # The clock waits for metrics and not for the state, whose buffers the next step overwrites.
        return state, experience, overall(found) | {"timing_s/update": done_at(found[-1])}

    def iterate(state: TrainState, i: int) -> tuple[TrainState, dict, Any]:
        # The state's key is never consumed: what iteration i samples depends on the seed and on i alone.
        index_B = row_indices(i, c.rollout.batch_size, len(prompts.prompts), c.seed)
        batch, networks = prompts.batch(index_B, mesh), joined(frozen, state.params)
        key = key_of(state.key, ROLLOUT, i)
        extra, records = dict(state.extra), [prompts.records[i] for i in index_B]
        past = extra.pop(PAST, ())
        # As a fleet of samplers that is `staleness` updates behind would do it, but the same on every run.
        acting = {"policy": joined(frozen["policy"], past[0])} if past else {}
        sampled, score = learner.roll_out({**networks, **acting}, records, batch, key, samples)
        # `done_at` waits for nothing: the recorder learns from it when the devices have come this far.
        metrics = {"timing_s/rollout": done_at(sampled.lengths_B)}
        # The devices get this work before `score()`, which may keep the host busy with text for a while.
        readings = learner.read(networks, batch, sampled)
        scores = score()
        if learner.remember is not None:
            extra = learner.remember(readings, sampled, scores, extra)
        if staleness:
            # A copy, since the updates that follow write over the policy's buffers.
            past = (*past[1:], jax.tree.map(jnp.copy, state.params["policy"]))
        if unread is None:
            experience, found = learner.experience(readings, batch, sampled, scores, extra)
        else:
            experience, found = unread(readings, sampled, scores, extra), {}
        metrics |= found | {"timing_s/score": done_at(found or scores)}
        state, experience, found = update(state, i, experience)
        metrics |= found
        if unread is not None:
            # For its metrics: those of the rollout, too, are known only now.
            experience, found = learner.experience(experience.read, batch, sampled, scores, extra)
            metrics |= found
        # What a method carries (PPO's KL coefficient) changes between rollouts, not between updates on one.
        carried = after(extra, metrics) | ({PAST: past} if staleness else {})
        tell_alike(last, c.rollout.max_new_tokens, penalised="missing_eos_penalty" in c)
        last.update(metrics)
        return state.replace(extra=carried), metrics, experience

    return iterate


def make_evaluation(
    session: Session,
    prompts: PromptRows,
    learner: Learner,
    judged: Judged | None = None,
    unsaid: tuple[str, ...] = (),
) -> Callable[[Networks, int], dict[str, float]]:
    """Returns `evaluate(networks, step)`: it samples the same prompts with the same noise each time, measures the
    responses, and writes them to samples/<step>.jsonl."""
    config, mesh, tokenizer = session.config, session.mesh, session.tokenizer
    cut = [x.shape["data"] * x.shape["fsdp"] for x in (mesh, sampling_mesh(mesh, config.rollout.tensor))]
    count, ways = len(prompts.prompts), math.lcm(*cut) * config.rollout.microbatches
    # The last row is repeated until mesh and parts divide the batch; `measure` leaves the repetitions out.
    index_B = np.minimum(np.arange(-(-count // ways) * ways), count - 1)
    batch, asked = prompts.batch(index_B, mesh), [prompts.records[i] for i in index_B]
    # Of the seed and not of the state: evaluations then differ by the policy and not by their noise.
    key, told = key_of(jax.random.key(config.seed), EVALUATION, 0), False

    def evaluate(networks: Networks, step: int) -> dict[str, float]:
        sampled, score = learner.roll_out(networks, asked, batch, key, 1)
        scores_B, metrics = learner.measure(networks, batch, sampled, score, count)
        tokens_BR, lengths_B, ended_B, scores_B, logprobs_BR = gather(
            (sampled.tokens_BR, sampled.lengths_B, sampled.ended_B, scores_B, sampled.logprobs_BR)
        )
        check_finite(logprobs_BR, "the policy")
        # Only the process that writes the table decodes text.
        said = [
            decode(tokenizer, without_end(tokens_BR[b, : lengths_B[b]], ended_B[b]))
            for b in range(count if startup.is_main() else 0)
        ]
        scores = scores_B.tolist() if "scores" not in unsaid else [None] * count
        table = (
            {**row, "output": output, "ended": bool(ended_B[b]), "score": scores[b]}
            for b, (row, output) in enumerate(zip(prompts.records, said, strict=True))
        )
        write_samples(session.workdir, step, table)
        found = {name: float(x) for name, x in metrics.items() if name not in unsaid}
        tell_alike(found, config.rollout.max_new_tokens, penalised="missing_eos_penalty" in config)
        if judged is not None:
            found |= judged(said, step)
        nonlocal told
        told = told or _tell_difference(config, found["sampling/logp_difference"])
        return found

    return evaluate


def key_of(key: jax.Array, stream: int, number: int) -> jax.Array:
    """Returns the key with this number of one of the streams ROLLOUT, ORDER and EVALUATION."""
    return jax.random.fold_in(jax.random.fold_in(key, stream), number)


def rows_of_experience(config: ConfigDict) -> int:
    """The responses of one rollout."""
    return config.rollout.batch_size * config.rollout.samples


def updates_per_iteration(config: ConfigDict, rows: int = 0) -> int:
    """The number of optimizer updates on one rollout. rows: of experience; 0 means one for every response."""
    return epochs_of(config) * ((rows or rows_of_experience(config)) // config.minibatch_size)


def moments_wait(config: ConfigDict) -> bool:
    """Whether the optimizer's moments are on the devices during updates alone."""
    return config.rollout.offload in ("optimizer", "all")


def models_wait(config: ConfigDict) -> bool:
    """Whether models that nobody trains are on the devices only while they are read."""
    return config.rollout.offload in ("models", "all")


def one_minibatch(config: ConfigDict) -> bool:
    """Whether an update is of a whole rollout at once, so that it may read that by itself (`rollout.on_policy`)."""
    # Advantages are whitened over all rows, or compare those of a group: a part of them would not do.
    return config.minibatch_size == rows_of_experience(config) and config.microbatches == 1


def epochs_of(config: ConfigDict) -> int:
    """The passes over one rollout: the page's `epochs`, or 1 for a method that draws its minibatches otherwise."""
    return config.epochs if "epochs" in config else 1


def check_sizes(config: ConfigDict, mesh: Mesh, rows: int = 0) -> None:
    """Raises UserError unless minibatches divide the rollout, micro-batches divide those, and the mesh divides all."""
    check_batch(config.rollout.batch_size, mesh, field="rollout.batch_size")
    check_batch(config.minibatch_size, mesh, field="minibatch_size")
    check_microbatches(config.minibatch_size, config.microbatches, mesh)
    check_microbatches(
        config.rollout.batch_size, config.rollout.microbatches, mesh, field="rollout.microbatches"
    )
    check_sampled_rows(mesh, config.rollout.tensor, config.rollout.batch_size, config.rollout.microbatches)
    if (rows or rows_of_experience(config)) % config.minibatch_size:
        said = f"rollout.batch_size={config.rollout.batch_size}"
        if config.rollout.samples > 1:
            said = f"the {rows or rows_of_experience(config)} rows of {said} with {config.rollout.samples} samples"
        raise UserError(f"minibatch_size: {config.minibatch_size} does not divide {said}")
    tell_warmup(config, config.steps)


def next_kl_coef(config: ConfigDict, extra: dict, metrics: dict) -> dict:
    """Returns the KL coefficient of the next rollout, by the KL per response of this one (Ziegler et al. 2019)."""
    if not config.adaptive_kl:
        return extra
    kl_coef = adaptive_kl_coef(
        extra["kl_coef"],
        metrics["objective/kl"],
        target=config.target_kl,
        responses=rows_of_experience(config),
        horizon=config.kl_horizon,
    )
    return {"kl_coef": kl_coef}


def check_kl_horizon(config: ConfigDict) -> None:
    """Raises UserError where one rollout could move the KL coefficient by more than a fifth."""
    responses = rows_of_experience(config)
    if config.adaptive_kl and config.kl_horizon < responses:
        raise UserError(
            f"kl_horizon: {config.kl_horizon:g} responses are fewer than the {responses} of one rollout, so that "
            f"kl_coef would swing; use ten rollouts ({10 * responses}) or more"
        )


def _shuffled(key: jax.Array, experience: Any, size: int) -> list[Any]:
    """Cuts the experience into minibatches of `size` rows, its rows in an order drawn with the key."""
    rows = jax.tree.leaves(experience)[0].shape[0]
    order = jax.random.permutation(key, rows).reshape(-1, size)
    return [jax.tree.map(lambda x, chosen=chosen: x[chosen], experience) for chosen in order]


def _tell_difference(config: ConfigDict, difference: float) -> bool:
    """Prints how far the sampler's log-probs are from the trainer's where that is much, or where they compute in
    different dtypes; returns whether it did. difference: the mean over tokens, in nats.
    """
    unlike = config.rollout.dtype != config.model.dtype
    if not unlike and difference <= _FAR:
        return False
    dtypes = f"rollout.dtype={config.rollout.dtype} is not model.dtype={config.model.dtype}"
    why = dtypes if unlike else "rounding"
    if startup.is_main():
        print(
            f"notice: sampling/logp_difference is {difference:.3g} nats a token ({why}): responses come from a policy "
            f"that far from the one that is trained{'; set both alike if that is much' if unlike else ''}",
            flush=True,
        )
    return True
