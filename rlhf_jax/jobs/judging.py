"""Asking judges from a job: the embedded server when a judge wants it, and one progress line."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rlhf_jax.annotation.specs import PoolSpec

LOCAL = "local"  # The base_url of judges that live in the embedded world.


@contextlib.contextmanager
def judge_urls(pool: PoolSpec) -> Iterator[dict[str, str]]:
    """Addresses of symbolic base_urls; the embedded judge server runs while they are in use."""
    if all(judge.base_url != LOCAL for judge in pool.judges):
        yield {}
        return
    from rlhf_jax.microfarm.judge_server import JudgeServer

    with JudgeServer() as server:
        yield {LOCAL: server.url}


class JudgingLine:
    """The progress callback of the annotation layer: rows done, rate, what it cost, time left."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s = every_s if not sys.stdout.isatty() else 0.2
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, counters: dict) -> None:
        now = time.monotonic()
        if done < total and now - self._last < self._every_s:
            return
        self._last = now
        left = counters["seconds_left"]
        cost = "cost unknown" if counters["cost_usd"] is None else f"${counters['cost_usd']:.2f}"
        parts = [f"judged {done}/{total} rows", f"{counters['asked_per_s']:.0f} answers/s", cost]
        parts += [f"{counters[name]} {name}" for name in ("cached", "failed") if counters[name]]
        if left is not None and done < total:
            parts.append(f"{left:.0f} s left")
        end = "\r" if sys.stdout.isatty() and done < total else "\n"
        print("  " + " · ".join(parts), end=end, flush=True)


def describe(summary: dict, statuses: Sequence[tuple[str, int]]) -> str:
    """One line for the log: what came back, by status, and what it cost."""
    counts = ", ".join(f"{n} {status}" for status, n in statuses)
    cost = "unknown" if summary["cost_usd"] is None else f"${summary['cost_usd']:.4f}"
    return f"{summary['asked']} asked, {summary['cached']} from the cache; {counts}; cost {cost}"
