"""Runs stages of a study side by side, each in a process of its own on its share of this machine's cores.

A model that is small enough for a CPU keeps few cores busy: two stages on one core each end sooner than one after the
other on two. Sums are rounded otherwise on another number of cores, so that results differ in their last digits.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import rlhf_jax
from rlhf_jax.errors import StoppedError, UserError
from rlhf_jax.jobs.study.stage_process import MACHINE, STOPPED, Work
from rlhf_jax.jobs.study.study_stages import Stage
from rlhf_jax.training.checkpoints import workdir as folders

LOG = "output.txt"  # In a stage's folder: what it has printed.
_LOOK_S, _TELL_S = 0.2, 20.0


class _Running(NamedTuple):
    stage: Stage
    process: subprocess.Popen
    log: Path
    began: float
    slot: int


class StageProcesses:
    """At most `at_once` stages at a time, each on its share of the cores.

    A stage that never has company gets all of them. On their number its digits depend, not on which these are; so that
    is decided by the page, and not by what happens to run.
    """

    def __init__(self, at_once: int) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        each = max(1, len(cores) // at_once) if cores else 0
        self._at_once, self._all_cores = at_once, tuple(cores)
        # With fewer cores than stages some share one.
        self._cores = [
            tuple(cores[k % len(cores)] for k in range(i * each, (i + 1) * each)) for i in range(at_once)
        ]
        self._running: list[_Running] = []
        self._told = time.monotonic()
        self._asked_to_end = False
        share = f", on {each} of {len(cores)} cores each where they have company" if cores else ""
        print(f"{self._at_once} stages at one time{share}; what they print is in STAGE/{LOG}", flush=True)

    @property
    def full(self) -> bool:
        return len(self._running) == self._at_once

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(self, stage: Stage, folder: Path, *, alone: bool = False) -> None:
        """Starts a stage; `full` must not be so. alone: no other one runs until it has ended."""
        slot = min(set(range(self._at_once)) - {r.slot for r in self._running})
        log = folder / LOG
        folder.mkdir(parents=True, exist_ok=True)
        folders.unfinish(folder)
        # The package is found where this process has found it.
        root = str(Path(rlhf_jax.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("ab") as out, _on_cores(self._all_cores if alone else self._cores[slot]):
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from rlhf_jax.jobs.study import stage_process as s; s.run_and_leave()",
                ],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path},
                # Signals of a terminal are for the study, which hands them on.
                start_new_session=True,
            )
        work = Work(stage.config.to_dict(), str(folder), sys.argv)
        self._running.append(_Running(stage, process, log, time.monotonic(), slot))
        try:
            pickle.dump(work, process.stdin)
            process.stdin.flush()
        # It has ended already; `wait` says why.
        except BrokenPipeError:
            return

    def wait(self) -> tuple[Stage, float, str]:
        """Waits for a stage to end: (the stage, its seconds, why it failed or "").

        Raises:
          UserError: it met what the machine refused, such as a full disk; no other stage would fare better.
          SystemExit: a SIGTERM has come, and what ran has saved and stopped.
        """
        while True:
            for running in self._running:
                status = running.process.poll()
                if status is not None:
                    return self._ended(running, status)
            if time.monotonic() - self._told > _TELL_S:
                self._told = time.monotonic()
                for running in self._running:
                    print(f"    {running.stage.name}: {_last_line(running.log)}", flush=True)
            time.sleep(_LOOK_S)

    def _ended(self, running: _Running, status: int) -> tuple[Stage, float, str]:
        self._running.remove(running)
        running.process.stdin.close()
        line = _last_line(running.log)
        if self._asked_to_end or status == STOPPED:
            sys.exit(0)
        if status == MACHINE:
            raise UserError(f"{running.stage.name}: {line}")
        if status < 0:
            line = f"ended by {signal.Signals(-status).name}; its last line: {line}"
        return running.stage, time.monotonic() - running.began, line if status else ""

    @contextmanager
    def ended_with_us(self) -> Iterator[None]:
        """A context at whose end nothing runs any more: signals are handed on, and stages save what they can."""

        def ask(_: int, __: FrameType | None) -> None:
            self._asked_to_end = True
            for running in self._running:
                running.process.terminate()

        # Python takes handlers from the main thread only.
        ours = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, ask) if ours else None
        try:
            yield
        except KeyboardInterrupt:
            names = " and ".join(running.stage.name for running in self._running)
            raise StoppedError(
                f"finished stages are kept, and what {names or 'the others'} had saved"
            ) from None
        finally:
            self._end()
            if ours:
                signal.signal(signal.SIGTERM, before)

    def _end(self) -> None:
        for running in self._running:
            running.process.terminate()
        for running in self._running:
            running.process.wait()
            running.process.stdin.close()
        self._running = []


@contextmanager
def _on_cores(cores: tuple[int, ...]) -> Iterator[None]:
    """A context in which this thread, and so a process that it starts, runs on some cores alone; (): on all."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    told = [line.strip() for line in lines if line.strip()]
    return told[-1] if told else "no line yet"
