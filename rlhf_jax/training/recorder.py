"""Metrics on their way from the device to the writers: fetched late, timed, checked, logged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather
from rlhf_jax.training.metrics import Writer
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.storage import at

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Recorder:
    """Holds back the metrics of the last iteration until the next one has been given to the device.

    Fetching them at once would leave the device idle while the host prepares the next batch.
    """

    def __init__(
        self,
        writer: Writer,
        progress: Progress,
        workdir: str | PurePath,
        steps: int,
        log_every: int,
        show: tuple[str, ...],
    ) -> None:
        self._writer, self._progress, self._workdir = writer, progress, at(workdir)
        self._steps, self._log_every, self._show = steps, log_every, show
        self._pending: tuple[int, Mapping[str, Any], PyTree] | None = None
        self._ended: float | None = None  # when that iteration ended, if it had when it was handed over
        self._pushed = time.perf_counter()  # when it was handed over
        self._seen: dict[str, float] = {}  # the newest value of every metric, for the progress line
        self._mark = time.perf_counter()  # when the time of the current row began
        self._iterations, self._tokens = 0, 0.0  # of the current row
        self._compile_s = 0.0
        self._extra: dict[str, float] = {}  # timings that go into the next row

    def __enter__(self) -> Recorder:
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        self._writer.flush()
        self._progress.close()

    def push(self, step: int, metrics: Mapping[str, Any], batch: PyTree) -> None:
        """Takes the metrics of iteration number `step` (from 1), and writes those of the one before."""
        now = time.perf_counter()
        ended = now if all(map(_is_ready, metrics.values())) else None
        if ended is not None and self._ended is None:
            # Nobody waited for the one before, which must have ended soon after: this one came after it.
            self._ended = self._pushed
        self.flush()
        self._pending, self._ended, self._pushed = (step, metrics, batch), ended, now

    def flush(self) -> None:
        """Waits for the metrics held back, and writes them. UserError when they tell of a divergence."""
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        values = {name: float(x) for name, x in jax.device_get(dict(metrics)).items()}
        self._iterations += 1
        self._tokens += values.get("num_tokens", 0.0)
        diverged = values.get("nonfinite", 0.0) > 0 or not math.isfinite(values.get("loss", 0.0))
        if diverged or step % self._log_every == 0 or step == self._steps:
            timings = self._timings()
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
        spent = time.perf_counter() - began
        self._mark += spent
        self._extra[f"timing_s/{name}"] = self._extra.get(f"timing_s/{name}", 0.0) + spent

    @contextmanager
    def evaluation(self, step: int) -> Iterator[dict[str, float]]:
        """Yields a dict to fill with metrics; writes them as a row of their own."""
        found: dict[str, float] = {}
        compiled, began = self._compile_s, time.perf_counter()
        yield found
        spent = time.perf_counter() - began
        self._mark += spent
        self._compile_s = compiled  # what the evaluation compiled is in its own time
        self._writer.write(step, found | {"timing_s/eval": spent})
        self._seen |= found

    def _line(self) -> tuple[str, ...]:
        return (
            (*self._show, "perf/tokens_per_s")
            if self._tokens or "perf/tokens_per_s" in self._seen
            else self._show
        )

    def _timings(self) -> dict[str, float]:
        now = time.perf_counter() if self._ended is None else max(self._ended, self._mark)
        seconds = max(now - self._mark - self._compile_s, 1e-9)
        timings = {"timing_s/step": seconds / self._iterations, **self._extra}
        if self._tokens:
            timings["perf/tokens_per_s"] = self._tokens / seconds
        if self._compile_s:
            timings["timing_s/compile"] = self._compile_s
        self._mark, self._iterations, self._tokens, self._compile_s, self._extra = now, 0, 0.0, 0.0, {}
        return timings

    def _on_duration(self, event: str, duration: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            self._compile_s += duration

    def _stop(self, step: int, values: Mapping[str, float], batch: PyTree) -> None:
        path = self._workdir / "nonfinite" / f"step_{step}.npz"
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


def _is_ready(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_ready()


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
        wide = x.astype(np.float32) if x.dtype.kind == "V" else x
        named[jax.tree_util.keystr(path, simple=True, separator=".") or "batch"] = wide
    return named
