"""The one training loop of all methods: iterate, log, evaluate, save, resume, and stop when told to.

It knows only `iterate(state, i)` and `evaluate(state, step)`, neither models nor losses.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.checkpoint import MAY_CHANGE, Checkpoints, Restored
from rlhf_jax.training.loop.metrics import Writer, make_writer
from rlhf_jax.training.loop.recorder import Recorder
from rlhf_jax.training.loop.state import TrainState, abstract
from rlhf_jax.training.progress import Progress

# Being told to stop: a scheduler's SIGTERM, noticed between two iterations, on all processes alike.


class Preemption:
    """A context in which SIGTERM does not kill the process; `requested` says whether it has come."""

    def __init__(self) -> None:
        self._asked = False
        self._before: object = None
        # With several processes jax has a handler of its own, which makes them agree on a step. And Python
        # takes handlers from the main thread only: a run in another thread is stopped by its owner.
        self._ours = startup.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Preemption:
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, step: int) -> bool:
        """True when the run should save and stop after `step`. Every process asks at every step."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def command() -> str:
    """Returns the command line of this process, quoted for a shell."""
    return shlex.join(sys.orig_argv)


Iterate = Callable[[TrainState, int], tuple[TrainState, Mapping[str, Any], PyTree]]
Evaluate = Callable[[TrainState, int], Mapping[str, float]]


def run_loop(
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
        that phase of the iteration was done (see `recorder.done_at`), phases in order; written is what each took.
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
    # Rows of steps after the checkpoint are dropped: they will be computed and written again.
    writer.start(None if restored is None else start)
    progress = Progress(steps, done=start)
    if start:
        progress.note(f"continuing {workdir} at step {start}")
    with (
        Preemption() as told,
        Recorder(writer, progress, workdir, steps, log_every, show, flops) as recorder,
    ):
        pauses = _Pauses(steps, save_every, eval_every, eval_first, evaluate, checkpoints, writer, recorder)
        # `step` counts finished iterations: there is a pause before the first and one after the last.
        for step in range(start, steps + 1):
            stop = told.requested(step)
            # A checkpoint that was saved with its evaluation is not evaluated again when the run goes on.
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
        # A state without any iteration is not worth a checkpoint: the next start makes it again.
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
                # Rows reach the disk before the checkpoint does: a crash then leaves no gap between them.
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
    progress.note(f"told to stop: saved after step {step}; to continue: {command()}")
    raise SystemExit(0)


# The loop in a workdir, by a page's settings: checkpoints, metric files, resume, and which state is exported.


def fit(
    config: ConfigDict,
    workdir: str,
    state: TrainState,
    iterate: Iterate,
    evaluate: Evaluate,
    *,
    steps: int,
    inputs: dict[str, str],
    show: tuple[str, ...],
    eval_first: bool = False,
    flops: float = 0.0,
) -> TrainState:
    """Runs the loop in a workdir; returns the last state, or with `best_metric` the best one.

    inputs: hashes of what the run reads, which must be the same when it goes on. For the others see `run_loop`.
    """
    # Reading weights takes some machines minutes longer than others, more than a collective waits.
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
        # Taken now: the loop uses the state's buffers up.
        like = abstract(state)
        writer = make_writer(
            workdir,
            tensorboard=config.tensorboard,
            wandb_project=config.wandb_project,
            config=config.to_dict(),
        )
        try:
            state = run_loop(
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
        return _best_or_last(config, state, like, checkpoints, steps)


def may_change(config: ConfigDict) -> tuple[str, ...]:
    """The fields that may differ when a run goes on; its length too, where the learning rate does not depend on it."""
    if config.optimizer.schedule in ranges.FALLING:
        return MAY_CHANGE
    return (*MAY_CHANGE, "steps" if "steps" in config else "epochs")


def tell_warmup(config: ConfigDict, steps: int) -> None:
    """Prints a notice when the learning rate will not reach its peak; a longer run that continues this one may."""
    warmup = config.optimizer.warmup_steps
    if warmup > steps and startup.is_main():
        print(
            f"notice: optimizer.warmup_steps: {warmup}, but the run has {steps} steps; the learning rate ends at "
            f"{steps / warmup:.0%} of its peak",
            flush=True,
        )


def _best_or_last(
    config: ConfigDict, state: TrainState, like: TrainState, checkpoints: Checkpoints, steps: int
) -> TrainState:
    """Returns the state of the best evaluation where the page names a metric, else the last; prints which."""
    if not config.best_metric:
        return state
    best = checkpoints.best_step()
    if best is None:
        startup.notice_once(
            f"best_metric: no kept checkpoint has a finite {config.best_metric}, so there is no best one; the last "
            f"one, of step {steps}, is exported"
        )
        return state
    if startup.is_main():
        print(f"best {config.best_metric}: step {best}", flush=True)
    if best == steps:
        return state
    # Two copies of everything may not fit into memory, so the last state goes before the best one is read.
    for x in jax.tree.leaves((state.params, state.opt_state)):
        x.delete()
    return checkpoints.restore_best(like).state
