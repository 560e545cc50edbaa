"""A contestant's side of the conversation with run.py: a JSON line out for every turn, one word in.

run.py says "go"; the contestant does one repetition and says what it took. Between turns it waits, so that
contestants take turns on the same cores. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setting import SIZES, Size


@dataclass(frozen=True)
class Job:
    """What to measure."""

    task: str
    size: Size
    ragged: bool
    root: Path
    repetitions: int

    @property
    def policy(self) -> str:
        return str(self.root / "policy")

    @property
    def reward(self) -> str:
        return str(self.root / "reward")


class Session:
    """`turn()` at the start of every repetition; `note()` for what was computed in it."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._started: tuple[float, float, float, dict[str, float]] | None = None
        self._notes: dict[str, float] = {}

    def turn(self) -> None:
        """Reports the repetition that has just ended, if any, and waits to be told to start the next one."""
        self._say({"ready": True} if self._started is None else self._finished())
        word = sys.stdin.readline().strip()
        if word != "go":
            self._say({"peak_bytes": peak_bytes()})
            os._exit(0)  # Trainers hold on to their threads and progress bars; nothing is left to save.
        self._started = (time.perf_counter(), _cpu_seconds(), _system_seconds(), _waiting_seconds())

    def note(self, **numbers: float) -> None:
        """Numbers of the running repetition, e.g. loss and grad_norm at step 0."""
        self._notes |= {name: float(x) for name, x in numbers.items()}

    def _finished(self) -> dict[str, float]:
        wall, cpu, system, waiting = self._started
        report = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": _cpu_seconds() - cpu,
            "system_seconds": _system_seconds() - system,
            "waited_seconds": max(
                now - waiting.get(thread, 0.0) for thread, now in _waiting_seconds().items()
            ),
            **self._notes,
        }
        self._notes = {}
        return report

    def _say(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def peak_bytes() -> int:
    """Largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _system_seconds() -> float:
    """Of the CPU seconds, those in the kernel: page faults mostly."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def _waiting_seconds() -> dict[str, float]:
    """Per thread, how long it was ready to run but had no core: what other programs took from the measurement."""
    found = {"none": 0.0}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # The thread has just ended.
            found[path.parent.name] = int(path.read_text().split()[1]) / 1e9
    return found


def main() -> None:
    """`python session.py MODULE --task ...`: runs contestants/MODULE.py's `run(job, session)`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--task", required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    args = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print goes to the log; the conversation keeps the real stdout.
    module = importlib.import_module(f"contestants.{args.module}")
    job = Job(args.task, SIZES[args.size], args.ragged, args.root, args.repetitions)
    module.run(job, Session(out))


if __name__ == "__main__":
    main()
