"""What all trainers share around the loop: optimizer from config, checkpoints, writers, offline iterations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.batches import eval_batches, row_indices
from rlhf_jax.jobs import fits
from rlhf_jax.jobs import plan as planning
from rlhf_jax.jobs.adapters import Start
from rlhf_jax.jobs.losses import LossFn
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel import notices, startup
from rlhf_jax.parallel.arrays import check_batch, host_rows, to_global
from rlhf_jax.training import loop
from rlhf_jax.training.average import averaged
from rlhf_jax.training.checkpoint import MAY_CHANGE, Checkpoints
from rlhf_jax.training.evaluator import make_evaluator
from rlhf_jax.training.metrics import make_writer
from rlhf_jax.training.state import TrainState, abstract, create, joined
from rlhf_jax.training.step import check_microbatches

MakeBatch = Callable[[np.ndarray, Any], dict[str, np.ndarray]]


def steps_of(config: ConfigDict, rows: int) -> int:
    """`epochs` passes over the rows, in steps of batch_size; at least one."""
    steps = max(1, math.ceil(config.epochs * rows / config.batch_size))
    ranges.check_warmup(config.optimizer, steps)
    tell_warmup(config, steps)
    return steps


def tell_warmup(config: ConfigDict, steps: int) -> None:
    """A notice when the learning rate will not come to its peak, which a longer run, continued from this one, may."""
    warmup = config.optimizer.warmup_steps
    if warmup > steps and startup.is_main():
        print(
            f"notice: optimizer.warmup_steps: {warmup}, but the run has {steps} steps; the learning rate ends at "
            f"{steps / warmup:.0%} of its peak",
            flush=True,
        )


def may_change(config: ConfigDict) -> tuple[str, ...]:
    """The fields that may differ when a run goes on; its length too, where the rate does not fall to an end."""
    if config.optimizer.schedule in ranges.FALLING:
        return MAY_CHANGE
    return (*MAY_CHANGE, "steps" if "steps" in config else "epochs")


def offline(
    config: ConfigDict,
    workdir: str,
    mesh: Mesh,
    model: ModelConfig,
    loss_of: Callable[[ModelConfig, ConfigDict], LossFn],
    load: Callable[[], Start],
    *,
    scalar: bool = False,
    enrich: Callable[[dict], dict] = lambda batch: batch,
    frozen_copy: bool = False,
    rows: int,
    make_batch: MakeBatch,
    tokens_of: np.ndarray,
    eval_rows: int,
    make_eval_batch: MakeBatch,
    inputs: dict[str, str],
    show: tuple[str, ...],
) -> TrainState:
    """Trains on a fixed set of rows and returns the last or best state, with the parameters to export.

    These are the average, when the optimizer keeps one; it is also what is evaluated. What is frozen is part of
    them, but neither of the loop's state nor of its checkpoints.

    loss_of(model, config) -> the loss. load() -> the parameters, which are not read before it is known that the
    step fits into memory, as what is trained and what is frozen. scalar: whether the model has a score head.
    enrich(batch) -> batch: what is added on the devices to a batch that has been put there, or replaced.
    frozen_copy: whether that needs a copy of what is trained.
    make_batch(indices of the global batch, rows of this process) -> this process's arrays.
    tokens_of: real tokens of every row [n], for the rate.
    """
    check_batch(config.batch_size, mesh)
    check_microbatches(config.batch_size, config.microbatches, mesh)
    steps = steps_of(config, rows)
    example = planning.example(make_batch)
    plan = fits.prepare(
        lambda c, where: planning.offline(
            model, loss_of, steps, example, c, where, scalar=scalar, frozen_copy=frozen_copy
        ),
        config,
        mesh,
    )
    evaluator = make_evaluator(plan.loss_fn)
    mine = host_rows(config.batch_size, mesh)

    def iterate(state: TrainState, i: int) -> tuple[TrainState, dict, dict]:
        index_B = row_indices(i, config.batch_size, rows, config.seed)
        batch = enrich(to_global(make_batch(index_B, mine), mesh))
        state, metrics = plan.step(state, batch, frozen)
        epoch = (i + 1) * config.batch_size / rows
        return state, {**metrics, "num_tokens": float(tokens_of[index_B].sum()), "epoch": epoch}, batch

    def evaluate(state: TrainState, _: int) -> dict[str, float]:
        params = joined(frozen, averaged(state.params, state.opt_state))
        return evaluator(
            params, map(enrich, _eval_batches(eval_rows, config.batch_size, make_eval_batch, mesh))
        )

    start = load()
    frozen = fits.placed(start.frozen, plan.frozen)
    state = create(fits.placed(start.trained, plan.state.params), plan.optimizer, config.seed)
    state = fit(
        config,
        workdir,
        state,
        iterate,
        evaluate,
        steps=steps,
        inputs=inputs,
        show=show,
        flops=plan.flops,
    )
    return state.replace(params=joined(frozen, averaged(state.params, state.opt_state)))


def fit(
    config: ConfigDict,
    workdir: str,
    state: TrainState,
    iterate: loop.Iterate,
    evaluate: loop.Evaluate,
    *,
    steps: int,
    inputs: dict[str, str],
    show: tuple[str, ...],
    eval_first: bool = False,
    flops: float = 0.0,
) -> TrainState:
    """Runs the loop in a workdir; returns the last state, or with `best_metric` the best one."""
    startup.barrier("ready to train", startup.SLOW_S)
    with Checkpoints(
        workdir,
        config={**config.to_dict(), "inputs": inputs},
        may_change=may_change(config),
        keep=config.keep_checkpoints,
        best_metric=config.best_metric,
        best_mode=config.best_mode,
        keep_best=config.keep_best,
    ) as checkpoints:
        like = abstract(state)
        writer = make_writer(
            workdir,
            tensorboard=config.tensorboard,
            wandb_project=config.wandb_project,
            config=config.to_dict(),
        )
        try:
            state = loop.run(
                state,
                iterate,
                steps=steps,
                workdir=workdir,
                checkpoints=checkpoints,
                writer=writer,
                evaluate=evaluate,
                log_every=config.log_every,
                eval_every=config.eval_every,
                eval_first=eval_first,
                save_every=config.save_every,
                show=show,
                flops=flops,
            )
        finally:
            writer.close()
        best = checkpoints.best_step() if config.best_metric else None
        if best is not None and startup.is_main():
            print(f"best {config.best_metric}: step {best}", flush=True)
        if config.best_metric and best is None:
            notices.once(
                f"best_metric: no kept checkpoint has a finite {config.best_metric}, so there is no best one; the last "
                f"one, of step {steps}, is exported"
            )
        if best is not None and best != steps:
            for x in jax.tree.leaves((state.params, state.opt_state)):  # two copies may not fit into memory
                x.delete()
            state = checkpoints.restore_best(like).state
    return state


def _eval_batches(rows: int, batch_size: int, make: MakeBatch, mesh: Mesh) -> Iterator[dict]:
    mine = host_rows(batch_size, mesh)
    for index_B, weight_B in eval_batches(rows, batch_size):
        yield to_global({**make(index_B, mine), "weight": weight_B[mine]}, mesh)
