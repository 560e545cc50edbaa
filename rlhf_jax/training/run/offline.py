"""The driver of every method that trains on fixed rows. Knows no method by name.

It checks that the step fits into memory, reads the weights, runs the loop and returns the parameters to export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.batches import batches_by_length, row_indices
from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import joined
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel.mesh import check_batch, host_rows, to_global
from rlhf_jax.training.loop.loop import fit, tell_warmup
from rlhf_jax.training.loop.program_costs import bytes_per_device
from rlhf_jax.training.loop.state import TrainState, create, placed, planned_state
from rlhf_jax.training.loop.step import (
    LossFn,
    StepFunction,
    check_microbatches,
    make_evaluator,
    make_train_step,
)
from rlhf_jax.training.optimizers.optimizer import ema_params
from rlhf_jax.training.run import load_models, memory_check
from rlhf_jax.training.run.encoded_rows import Rows
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.memory_check import Phase, Plan, batch_shapes, optimizer_of
from rlhf_jax.training.run.session import Network, Session

# Evaluations go by length: every width of arrays is a program to compile, one for so many batches, three at most.
_EVERY, _WIDTHS = 4, 3
# What arrays are called whose last axis is a row's tokens, or columns of those that are trained.
_ALONG_ROWS = ("tokens", "trained", "segments", "positions", "roots", "targets", "before", "owners")


class Completed(NamedTuple):
    """The rows of a method once the weights have been read.

    enrich: (batch, parameters before the step) -> the batch with what the devices add to it: log-probs of a reference
      that is in memory, or a number of the whole batch that a loss, which sees micro-batches, cannot find.
    """

    train: Rows
    held: Rows
    enrich: Callable[[dict, Params], dict] = lambda batch, params: batch


class Members(NamedTuple):
    """Several models that are trained side by side in one program, see `training.run.ensembles`.

    Attributes:
      count: how many.
      own_order: whether each goes through the rows in an order of its own; else all see the same batches.
      start: (parameters as they were read, seed) -> those that a member of this seed starts with.
      stack, plan_stack: parameters of all members, or their shapes, as one tree.
      pick: (parameters of all, number) -> those of one.
      around: a train step of one model -> that of all members.
      evaluate: a loss -> that of all members, of (what is frozen, what is trained of all).
    """

    count: int
    own_order: bool
    start: Callable[[Params, int], Params]
    stack: Callable[[Sequence[Any]], Any]
    plan_stack: Callable[[Any, int], Any]
    pick: Callable[[Params, int], Params]
    around: Callable[[StepFunction], StepFunction]
    evaluate: Callable[[LossFn], Callable[[Any, Any], dict[str, Mean]]]


class SampledEvaluation(NamedTuple):
    """What an evaluation measures beside the loss on held-out rows, by sampling from the policy.

    Attributes:
      files: what it reads, which must be the same when a run goes on.
      phase: (page, mesh, bytes per device of what is there beside it) -> its program for the memory plan.
      measure: (parameters of the policy, step) -> metrics, on every process.
    """

    files: tuple[str, ...]
    phase: Callable[[ConfigDict, Mesh, int], Phase]
    measure: Callable[[Params, int], dict[str, float]]


# What opens the evaluation that win_rate asks for. `feedback.sampled_win_rate` puts itself here where it is loaded: a
# judge needs rooms that training does not know, and a run that asks nobody should not load them.
open_win_rate: list[Callable[[Session, Network], SampledEvaluation]] = []


class Offline(NamedTuple):
    """What a method on fixed rows is, beside the model that it trains.

    Attributes:
      loss: (settings of the model, page) -> the loss of a batch. Advice about memory asks for it on changed pages, too.
      train, held: the rows that are trained on and evaluated on. All batches have the shapes of theirs; evaluations may
        be narrower.
      show: the metrics on the progress line.
      complete: what the rows still lack and only the weights can tell, such as the log-probs of a reference model.
      keeps_start: whether `complete` keeps a copy of the trained arrays as they start, which takes memory.
      before: (page, mesh, shapes of all parameters, of a batch, bytes per device of what is there beside them) -> the
        programs, for the memory plan, by which `enrich` adds to a batch before its step.
      members: several models that are trained side by side; None for one.
      judged: what evaluations measure of samples; the driver opens it where the page asks for a win rate.
      rivals: what rules without a model reach on the held-out rows, by name; written with every evaluation, beside what
        the model reaches.
    """

    loss: Callable[[ModelConfig, ConfigDict], LossFn]
    train: Rows
    held: Rows
    show: tuple[str, ...]
    complete: Callable[[Start], Completed] | None = None
    keeps_start: bool = False
    before: Callable[[ConfigDict, Mesh, Any, Any, int], tuple[Phase, ...]] | None = None
    members: Members | None = None
    judged: SampledEvaluation | None = None
    rivals: Mapping[str, float] = MappingProxyType({})


def train_offline(session: Session, network: Network, method: Offline) -> Params:
    """Trains for the page's `epochs`; returns the parameters of the last or best state, to be exported.

    They are the average where the optimizer keeps one, which is also what is evaluated. What is frozen is part of them,
    but neither of the loop's state nor of its checkpoints.
    """
    return joined(*_train(session, network, method))


def train_members(session: Session, network: Network, method: Offline) -> Callable[[int], Params]:
    """Trains `method.members` side by side; returns a function from a member's number to its parameters."""
    (frozen, trained), members = _train(session, network, method), method.members
    # One at a time: all of them, unstacked, would take their memory twice.
    return lambda number: joined(frozen, members.pick(trained, number))


def _train(session: Session, network: Network, method: Offline) -> tuple[Params, Params]:
    """Runs the loop: (what is frozen, what was trained, of members stacked)."""
    config, workdir, mesh, *_ = session
    check_batch(config.batch_size, mesh)
    check_microbatches(config.batch_size, config.microbatches, mesh)
    steps = steps_of(config, method.train.count)
    method = method._replace(judged=_win_rate(session, network) or method.judged)
    # Compiled from shapes before any weight is read: a run that does not fit into memory should end here.
    plan = memory_check.prepare_step(partial(offline_plan, network, method, steps), config, mesh)
    start = _start(session, network, method.members)
    # Before the first step, which donates the weights that `complete` may score with or copy.
    rows, held, enrich = method.complete(start) if method.complete else Completed(method.train, method.held)
    frozen = placed(start.frozen, plan.frozen)
    members = method.members
    evaluator = make_evaluator(members.evaluate(plan.loss_fn) if members else plan.loss_fn)
    mine = host_rows(rows_of_a_step(config, members), mesh)

    def iterate(state: TrainState, i: int) -> tuple[TrainState, dict, dict]:
        # Which rows come is a function of the step number, so a resumed run goes on with the very next ones.
        index_B = _indices(i, config, rows.count, members)
        batch = to_global(rows.make(index_B, mine), mesh)
        batch = enrich(batch, joined(frozen, state.params))
        state, metrics = plan.step(state, batch, frozen)
        epoch = (i + 1) * config.batch_size / rows.count
        # The host knows all lengths, so the tokens of the global batch are counted without the devices.
        return state, {**metrics, "num_tokens": float(rows.tokens[index_B].sum()), "epoch": epoch}, batch

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        # Evaluated is what would be exported: the average where the optimizer keeps one.
        params = ema_params(state.params, state.opt_state)
        params = (frozen, params) if members else joined(frozen, params)
        batches = _eval_batches(held, held.batch or config.batch_size, mesh)
        found = evaluator(params, (enrich(batch, params) for batch in batches))
        return found | method.rivals | (method.judged.measure(params, step) if method.judged else {})

    state = fit(
        config,
        workdir,
        create(
            placed(start.trained, plan.state.params),
            _stacked_optimizer(plan.optimizer, members),
            config.seed,
        ),
        iterate,
        evaluate,
        steps=steps,
        inputs=session.inputs(*(method.judged.files if method.judged else ())),
        show=method.show,
        # A win rate may be against what the policy answered before its first step.
        eval_first=method.judged is not None,
        # Those of the largest step; they are in proportion to its rows.
        flops=plan.flops * rows.share,
    )
    return frozen, ema_params(state.params, state.opt_state)


def offline_plan(network: Network, method: Offline, steps: int, config: ConfigDict, mesh: Mesh) -> Plan:
    """Plans the train step of a method from shapes: no weight is read and nothing is computed."""
    # `config` may be a changed page, of which the advice about memory wants to know what it would take.
    loss_fn = method.loss(load_models.computed_as(network.config, config.model), config)
    tx = optimizer_of(config.optimizer, steps)
    start = load_models.planned_start(
        network.config,
        load_models.lora_settings(config.lora),
        mesh,
        scalar=network.scalar,
        thresholds=network.thresholds,
    )
    several = method.members
    trained = several.plan_stack(start.trained, several.count) if several else start.trained
    state = planned_state(trained, _stacked_optimizer(tx, several))
    around = several.around if several else None
    step = make_train_step(loss_fn, tx, microbatches=config.microbatches, around=around)
    # The arrays of a real row tell names, shapes and dtypes, packed or not; only the first axis is another.
    one_row = method.train.make(np.zeros(1, np.int64), slice(0, 1))
    sizes = method.train.sizes(config, mesh) if method.train.sizes else (rows_of_a_step(config, several),)
    *smaller, batch = (batch_shapes(mesh, size, one_row) for size in sizes)
    beside = bytes_per_device(state.params) if method.keeps_start else 0
    alive, others = bytes_per_device((state.params, state.opt_state, start.frozen)) + beside, ()
    if method.before:
        # They take whole batches, where the step may take micro-batches: one of them can need more than it.
        idle = bytes_per_device(state.opt_state) + beside
        others += method.before(config, mesh, joined(start.frozen, state.params), batch, idle)
    if method.judged:
        others += (method.judged.phase(config, mesh, alive),)
    held_row = method.held.make(np.zeros(1, np.int64), slice(0, 1)) | {"weight": np.ones(1, np.float32)}
    held = batch_shapes(mesh, method.held.batch or config.batch_size, held_row)
    evaluate = partial(_trace_evaluation, loss_fn, several, start.frozen, state.params, held)
    evaluation = Phase("evaluation", evaluate, beside + bytes_per_device(state.opt_state))
    about = {"beside": beside, "others": others, "smaller": tuple(smaller), "evaluation": evaluation}
    return Plan(loss_fn, tx, step, state, batch, start.frozen, **about)


def _trace_evaluation(
    loss_fn: LossFn, members: Members | None, frozen: Params, trained: Params, batch: Any
) -> jax.stages.Traced:
    if members:
        return jax.jit(members.evaluate(loss_fn)).trace((frozen, trained), batch)
    return jax.jit(loss_fn).trace(joined(frozen, trained), batch)


def _win_rate(session: Session, network: Network) -> SampledEvaluation | None:
    """Opens what the page's win_rate asks for; None where it has none, or names no judge."""
    config = session.config
    if "win_rate" not in config:
        return None
    if not config.win_rate.to_dict()["judges"]:
        if config.best_metric == "eval/win_rate":
            raise UserError("best_metric: eval/win_rate, but win_rate.judges names no judge; give its file")
        return None
    if not open_win_rate:
        raise UserError(
            "win_rate.judges: nothing here asks judges; import rlhf_jax.feedback.sampled_win_rate before run()"
        )
    return open_win_rate[0](session, network)


def _start(session: Session, network: Network, members: Members | None) -> Start:
    """Reads the weights and divides them into what is frozen and what is trained; of members stacked."""
    config, mesh, lora = session.config, session.mesh, session.lora
    params = network.read()
    if members is None:
        return load_models.start_network(network.config, params, lora, mesh, config.seed)
    plan = load_models.planned_start(
        network.config, lora, mesh, scalar=network.scalar, thresholds=network.thresholds
    )
    starts = [
        load_models.start_network(network.config, members.start(params, seed), lora, mesh, seed)
        for seed in member_seeds(config.seed, members.count)
    ]
    there = [placed(x.trained, plan.trained) for x in starts]
    return Start(starts[0].frozen, members.stack(there))


def rows_of_a_step(config: ConfigDict, members: Members | None) -> int:
    """The rows of a step's batch: batch_size, and that for every member which has an order of its own."""
    return config.batch_size * (members.count if members and members.own_order else 1)


def member_seeds(seed: int, count: int) -> range:
    """The seeds of an ensemble's members: the page's, and those that follow it."""
    return range(seed, seed + count)


def _indices(step: int, config: ConfigDict, count: int, members: Members | None) -> np.ndarray:
    """The rows of batch number `step`; where members have an order of their own theirs alternate."""
    if members is None or not members.own_order:
        return row_indices(step, config.batch_size, count, config.seed)
    seeds = member_seeds(config.seed, members.count)
    return np.stack([row_indices(step, config.batch_size, count, s) for s in seeds], axis=1).reshape(-1)


def _stacked_optimizer(
    optimizer: optax.GradientTransformation, members: Members | None
) -> optax.GradientTransformation:
    """The optimizer as far as its state is made: with members every number of it, a step count too, is per member."""
    if members is None:
        return optimizer
    return optax.GradientTransformation(jax.vmap(optimizer.init), optimizer.update)


def steps_of(config: ConfigDict, rows: int) -> int:
    """The number of steps in `epochs` passes over the rows, at batch_size rows a step; at least one."""
    # Rounded up: the order of rows has no gaps, so the last batch is filled from the order of the next epoch.
    steps = max(1, math.ceil(config.epochs * rows / config.batch_size))
    ranges.check_warmup(config.optimizer, steps)
    tell_warmup(config, steps)
    return steps


def _eval_batches(rows: Rows, batch_size: int, mesh: Mesh) -> Iterator[dict]:
    """Goes once over held-out rows, by length where they say it: in arrays about as wide as their longest row."""
    mine = host_rows(batch_size, mesh)
    # Of one length they stay in their order.
    lengths = np.zeros(rows.count, np.int64) if rows.lengths is None else rows.lengths
    for index_B, count, T in batches_by_length(lengths, batch_size, every=_EVERY, most=_WIDTHS):
        arrays = rows.make(index_B, mine)
        if rows.lengths is not None:
            arrays = _narrowed(arrays, T)
        # The rows that fill up the last batch have weight 0 and count nowhere.
        weight_B = np.float32(np.arange(batch_size) < count)
        yield to_global({**arrays, "weight": weight_B[mine]}, mesh)


def _narrowed(arrays: dict[str, np.ndarray], T: int) -> dict[str, np.ndarray]:
    """The first T columns of arrays that go along rows, which hold all their tokens."""
    wide = [name for name in arrays if name.rpartition("_")[2] in _ALONG_ROWS]
    return arrays | {name: arrays[name][..., :T] for name in wide}
