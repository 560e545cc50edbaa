"""Brings metrics from the device to the writers: fetched one step late, timed by one clock, checked for divergence."""

from __future__ import annotations

import math
import queue
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import PurePath
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import Mean, add, value
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import gather
from rlhf_jax.training.checkpoints.object_stores import at
from rlhf_jax.training.loop.metrics import Writer
from rlhf_jax.training.loop.program_costs import peak_flops
from rlhf_jax.training.progress import Progress

# jax sends it for every compilation, and for a program that is read from the compilation cache.
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileWatch:
    """Notes when programs were compiled (or read from the compilation cache) while the context is open.

    While the host compiles, the devices may still work on what they were given before. So what is left out of a
    duration is the part of it in which a compilation ran, and not the length of the compilation.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> CompileWatch:
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def within(self, begin: float, end: float) -> float:
        """Seconds between two moments in which a compilation ran."""
        return math.fsum(max(0.0, min(end, b) - max(begin, a)) for a, b in self._spans)

    def count(self, begin: float, end: float) -> int:
        """Compilations that ended between two moments."""
        return sum(begin < b <= end for _, b in self._spans)

    def _on_duration(self, event: str, duration: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            now = time.perf_counter()
            self._spans.append((now - duration, now))


@dataclass
class _Row:
    """Times that go into the next row of metrics, in seconds, summed over the iterations since the last row."""

    iterations: int = 0
    tokens: float = 0.0
    seconds: float = 0.0  # without compiling
    compiling: float = 0.0
    compiles: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    pauses: dict[str, float] = field(default_factory=dict)

    def timings(self, flops: float) -> dict[str, float]:
        """flops: of the train steps of an iteration over all devices; 0 where that is not known."""
        found = {"timing_s/step": self.seconds / self.iterations}
        found |= {name: seconds / self.iterations for name, seconds in self.phases.items()}
        found |= {f"timing_s/{name}": seconds for name, seconds in self.pauses.items()}
        if self.tokens and self.seconds > 0:
            found["perf/tokens_per_s"] = self.tokens / self.seconds
        # Of an online method only the updates count: MFU is about training, and sampling is bound by memory.
        training, peak = self.phases.get("timing_s/update", self.seconds), peak_flops()
        if flops and peak and training > 0:
            found["perf/mfu"] = flops * self.iterations / training / (peak * jax.device_count())
        found["perf/peak_memory_gib"] = peak_memory() / 2**30
        if self.compiles:
            found |= {"timing_s/compile": self.compiling, "perf/compiles": float(self.compiles)}
        return found


class Recorder:
    """Holds back the metrics of the last iteration until the next one has been given to the device.

    Fetching them at once would leave the device idle while the host prepares the next batch. An iteration took the
    time from when the devices were done with the one before (or from the end of a pause) until they were done with it.
    """

    def __init__(
        self,
        writer: Writer,
        progress: Progress,
        workdir: str | PurePath,
        steps: int,
        log_every: int,
        show: tuple[str, ...],
        flops: float = 0.0,
    ) -> None:
        self._writer, self._progress, self._workdir = writer, progress, at(workdir)
        self._steps, self._log_every, self._show = steps, log_every, show
        self._flops = flops
        self._pending: tuple[int, Mapping[str, Any], PyTree, Future[float]] | None = None
        self._seen: dict[str, float] = {}  # the newest value of every metric, for the progress line
        self._mark = time.perf_counter()  # until when all time has been counted
        self._row = _Row()
        self._compiling = CompileWatch()

    def __enter__(self) -> Recorder:
        self._compiling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._compiling.__exit__()
        self._writer.flush()
        self._progress.close()

    def push(self, step: int, metrics: Mapping[str, Any], batch: PyTree) -> None:
        """Takes the metrics of iteration number `step` (from 1), and writes those of the one before."""
        # Before anything is fetched: the clock wants results in the order in which they are computed.
        done = done_at([x for x in metrics.values() if isinstance(x, jax.Array)])
        self.flush()
        self._pending = (step, metrics, batch, done)

    def flush(self) -> None:
        """Waits for the metrics held back, and writes them. UserError when they tell of a divergence."""
        if self._pending is None:
            return
        (step, metrics, batch, done), self._pending = self._pending, None
        phases = {name: x for name, x in metrics.items() if isinstance(x, Future)}
        found = jax.device_get({name: x for name, x in metrics.items() if name not in phases})
        values = {name: float(x) for name, x in found.items()}
        self._count(phases, done.result())
        self._row.iterations += 1
        self._row.tokens += values.get("num_tokens", 0.0)
        # The step was skipped, so parameters are finite; but a run must not skip in silence for hours.
        diverged = values.get("nonfinite", 0.0) > 0 or not math.isfinite(values.get("loss", 0.0))
        if diverged or step % self._log_every == 0 or step == self._steps:
            timings, self._row = self._row.timings(self._flops), _Row()
            self._writer.write(step, values | timings)
            values |= timings
        self._seen |= values
        if diverged:
            self._stop(step, values, batch)
        self._progress.update(step, {name: self._seen[name] for name in self._line() if name in self._seen})

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """The time spent inside counts as timing_s/NAME of the next row, not as time of the iterations."""
        began = time.perf_counter()
        yield
        self._mark = time.perf_counter()
        self._row.pauses[name] = self._row.pauses.get(name, 0.0) + self._mark - began

    @contextmanager
    def evaluation(self, step: int) -> Iterator[dict[str, float]]:
        """Yields a dict to fill with metrics; writes them as a row of their own."""
        found: dict[str, float] = {}
        began = time.perf_counter()
        yield found
        self._mark = time.perf_counter()
        self._writer.write(step, found | {"timing_s/eval": self._mark - began})
        self._seen |= found

    def _line(self) -> tuple[str, ...]:
        rate = "perf/tokens_per_s"
        return (*self._show, rate) if self._row.tokens or rate in self._seen else self._show

    def _count(self, phases: Mapping[str, Future[float]], done: float) -> None:
        """Adds the time since the mark to the row: to the phases of the iteration in turn, and to its total."""
        # Moments are noted by another thread; put in order here, phases never add up to more.
        row, end = self._row, max(done, self._mark)
        moment = self._mark
        for name, found in phases.items():
            until = min(max(found.result(), moment), end)
            spent = until - moment - self._compiling.within(moment, until)
            row.phases[name] = row.phases.get(name, 0.0) + spent
            moment = until
        compiling = self._compiling.within(self._mark, end)
        row.seconds += end - self._mark - compiling
        row.compiling += compiling
        row.compiles += self._compiling.count(self._mark, end)
        self._mark = end

    def _stop(self, step: int, values: Mapping[str, float], batch: PyTree) -> None:
        path = self._workdir / "nonfinite" / f"step_{step}.npz"
        # A collective: every process comes here, since all have the same metrics.
        arrays = _named_arrays(gather(_plain(batch)))
        if startup.is_main():
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                np.savez(file, **arrays)
        shown = ", ".join(f"{name} {values[name]:g}" for name in ("loss", "grad_norm") if name in values)
        raise UserError(
            f"training diverged: step {step} is not finite ({shown}); its batch is in {path}, "
            "the checkpoints are of finite steps before it; look for broken rows in that batch, "
            "or lower learning_rate or max_grad_norm"
        )


def peak_memory() -> int:
    """The most bytes that this process has held on one of its devices; of CPUs, which have no memory of their own, its
    largest resident set."""
    known = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in stats for stats in known):
        return max(stats["peak_bytes_in_use"] for stats in known)
    # In KiB, but on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _plain(batch: PyTree) -> PyTree:
    """Typed keys as their bits, so that numpy can hold them."""

    def plain(x: Any) -> Any:
        is_key = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(plain, batch)


def _named_arrays(batch: PyTree) -> dict[str, np.ndarray]:
    """Arrays of a batch by dotted name, in dtypes an .npz file knows (bfloat16 is widened)."""
    named = {}
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        x = np.asarray(x)
        # NumPy takes bfloat16 for raw bytes, kind V.
        wide = x.astype(np.float32) if x.dtype.kind == "V" else x
        named[jax.tree_util.keystr(path, simple=True, separator=".") or "batch"] = wide
    return named


def overall_metrics(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of an iteration from those of its updates.

    A Mean is taken over the tokens or rows of all updates together, since minibatches hold unequal numbers of them.
    Learning rates and parameter norms are those of the last update; non-finite updates are counted; any other number
    is averaged over the updates.
    """

    def one(name: str) -> Any:
        values = [update[name] for update in found]
        if isinstance(values[0], Mean):
            return value(reduce(add, values))
        if name == "nonfinite":
            return sum(values)
        return values[-1] if name.startswith(("learning_rate", "param_norm")) else sum(values) / len(values)

    return {name: one(name) for name in found[0]}


# What a program takes of time, by the one clock of a run: when the devices were done with something.
#
# Work is handed to the devices long before it is done, so the moment at which a function returns says
# nothing. A thread of its own waits for each result in turn and notes the time; a duration is the time
# between two such moments.

_waiting: queue.SimpleQueue[tuple[Any, Future]] = queue.SimpleQueue()
_thread: threading.Thread | None = None


def done_at(x: Any) -> Future[float]:
    """Returns a future of the moment (`time.perf_counter`) at which the devices have computed a tree of arrays.

    Results must be handed over in the order in which they are computed, and must not be donated before they are there.
    What is no array counts as computed at once.
    """
    global _thread
    if _thread is None:
        # A daemon: a process that leaves does not wait for a device that hangs.
        _thread = threading.Thread(target=_note_moments, name="clock", daemon=True)
        _thread.start()
    moment: Future[float] = Future()
    _waiting.put((x, moment))
    return moment


def _note_moments() -> None:
    while True:
        x, moment = _waiting.get()
        try:
            jax.block_until_ready(x)
        # An error of the device belongs to whoever asks for the moment; this thread has to go on.
        except Exception as error:
            moment.set_exception(error)
        else:
            moment.set_result(time.perf_counter())
        # A result must not be kept alive until the next one comes.
        del x, moment
