"""The one loop, for every method: iterate, log, evaluate, save, resume, stop when told to or when it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import jax
from jaxtyping import PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.training import preemption
from rlhf_jax.training.checkpoint import Checkpoints, Restored
from rlhf_jax.training.metrics import Writer
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.recorder import Recorder
from rlhf_jax.training.state import TrainState, abstract

Iterate = Callable[[TrainState, int], tuple[TrainState, Mapping[str, Any], PyTree]]
Evaluate = Callable[[TrainState, int], Mapping[str, float]]


def run(
    state: TrainState,
    iterate: Iterate,
    *,
    steps: int,
    workdir: str | PurePath,
    checkpoints: Checkpoints,
    writer: Writer,
    evaluate: Evaluate | None = None,
    log_every: int = 1,
    eval_every: int = 0,
    eval_first: bool = False,
    save_every: int = 0,
    show: tuple[str, ...] = ("loss",),
    flops: float = 0.0,
) -> TrainState:
    """Runs iterations 0 .. steps - 1, or those an earlier run in this workdir left; returns the state.

    state: the state before iteration 0, or the form into which a checkpoint is restored. It is used up: its
        params and opt_state are donated by the first step, or deleted when there is a checkpoint.
    iterate(state, i): one iteration -> (state, metrics, batch). metrics: scalars, on the device or not; the
        loop fetches them while the next iteration already runs. "num_tokens" becomes perf/tokens_per_s;
        "nonfinite" above 0, or a loss that is not finite, stops the run. A "timing_s/PHASE" is the moment at which
        that phase of the iteration was done (see `clock.done_at`), phases in order; written is what each took.
        batch: what to look at when a step is not finite.
    evaluate(state, step): metrics of the state after `step` iterations; equal on all processes. Written with
        "eval/" before their names. Called every eval_every iterations (0: never), at the end, and with
        `eval_first` before the first one.
    save_every: a checkpoint every so many iterations (0: none), one at the end, and one at every evaluation
        that is the best so far when `checkpoints` has a best_metric.
    log_every: metrics of every so many iterations are written, and of the last one.
    show: the metrics on the progress line.
    flops: of the train steps of one iteration, without what is computed twice; becomes perf/mfu.

    Exits with status 0 after SIGTERM, having saved. Raises UserError when training diverges, when the config
    changed, or when a file cannot be written.
    """
    _check(evaluate, checkpoints)
    restored = _restore(state, steps, workdir, checkpoints)
    start, state, evaluated = (0, state, False) if restored is None else restored
    writer.start(None if restored is None else start)
    progress = Progress(steps, done=start)
    if start:
        progress.note(f"continuing {workdir} at step {start}")
    with (
        preemption.Preemption() as told,
        Recorder(writer, progress, workdir, steps, log_every, show, flops) as recorder,
    ):
        pauses = _Pauses(steps, save_every, eval_every, eval_first, evaluate, checkpoints, writer, recorder)
        for step in range(start, steps + 1):  # the number of iterations done
            stop = told.requested(step)
            pauses.visit(state, step, evaluated=evaluated and step == start, stop=stop)
            if stop:
                _leave(checkpoints, progress, step)
            if step < steps:
                with jax.profiler.StepTraceAnnotation("iteration", step_num=step):
                    state, metrics, batch = iterate(state, step)
                recorder.push(step + 1, metrics, batch)
    checkpoints.wait()
    return state


@dataclass(frozen=True)
class _Pauses:
    """What happens between two iterations, and when: evaluations and checkpoints."""

    steps: int
    save_every: int
    eval_every: int
    eval_first: bool
    evaluate: Evaluate | None
    checkpoints: Checkpoints
    writer: Writer
    recorder: Recorder

    def visit(self, state: TrainState, step: int, *, evaluated: bool, stop: bool) -> None:
        """Does what is due after `step` iterations. When told to stop, evaluation is left to the next start."""
        evaluating = self._evaluation_due(step) and not evaluated and not stop
        saving = self._due(self.save_every, step) or (stop and step > 0)
        if evaluating or saving:
            # Rows come before the checkpoint: a run resumed from it does not write them again. And a step
            # that was not finite stops the run here, before anything built on it is saved.
            self.recorder.flush()
        if evaluating:
            with self.recorder.evaluation(step) as found:
                found |= _prefixed(self.evaluate(state, step))
            saving |= self.checkpoints.record(step, found)
        if saving:
            with self.recorder.timed("save"):
                self.writer.flush()
                self.checkpoints.save(step, state, evaluated=evaluated or evaluating)

    def _due(self, every: int, step: int) -> bool:
        return step == self.steps or (every > 0 and step > 0 and step % every == 0)

    def _evaluation_due(self, step: int) -> bool:
        first = self.eval_first and step == 0
        return self.evaluate is not None and (first or self._due(self.eval_every, step))


def _restore(
    state: TrainState, steps: int, workdir: str | PurePath, checkpoints: Checkpoints
) -> Restored | None:
    like = abstract(state)
    if checkpoints.latest_step() is not None:
        # The first step would have donated them. Two copies of everything may not fit into memory.
        for x in jax.tree.leaves((state.params, state.opt_state)):
            x.delete()
    restored = checkpoints.restore(like)
    if restored is not None and restored.step > steps:
        raise UserError(
            f"steps: {steps}, but {workdir} has {restored.step} steps done; use at least that many"
        )
    return restored


def _check(evaluate: Evaluate | None, checkpoints: Checkpoints) -> None:
    if checkpoints.best_metric and evaluate is None:
        raise UserError(f"best_metric: {checkpoints.best_metric!r} needs an evaluation, and there is none")


def _prefixed(metrics: Mapping[str, Any]) -> dict[str, float]:
    metrics = jax.device_get(dict(metrics))
    return {name if name.startswith("eval/") else f"eval/{name}": float(x) for name, x in metrics.items()}


def _leave(checkpoints: Checkpoints, progress: Progress, step: int) -> None:
    checkpoints.wait()
    progress.close()
    progress.note(f"told to stop: saved after step {step}; to continue: {preemption.command()}")
    raise SystemExit(0)
