"""A contestant's side of the conversation with run.py: a JSON line out for every turn, one word in.

run.py says "go"; the contestant does one repetition and says what it took. Between turns it waits, so that
contestants take turns on the same cores. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import setting
from setting import Size


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
      root: folder of the models, which may also hold the rows of training tasks; without those they are `setting`'s.
      repetitions: passes over the rows; the first is not timed.
      batch: rows of a step, or pairs; 0 for all of them.
      lora: whether the adapters of the folder are trained instead of the models.
    """

    task: str
    size: Size
    ragged: bool
    root: Path
    repetitions: int
    batch: int = 0
    lora: bool = False

    @property
    def policy(self) -> str:
        return str(self.root / "policy")

    @property
    def reward(self) -> str:
        return str(self.root / "reward")

    @property
    def trained(self) -> str:
        """The folder of the model that a training task begins with; its adapter's is called so with _adapter."""
        return self.reward if self.task == "reward_model" else self.policy

    @cached_property
    def rows(self) -> list[dict[str, list[int]]]:
        """The token rows of a training task, in the order of training."""
        kind = "demonstrations" if self.task == "sft" else "pairs"
        given = self.root / f"{kind}.json"
        if given.is_file():
            return json.loads(given.read_text())
        return getattr(setting, kind)(self.size, self.ragged)

    @property
    def step_rows(self) -> int:
        return self.batch or len(self.rows)

    @property
    def steps(self) -> int:
        """Steps of a repetition."""
        return len(self.rows) // self.step_rows

    @property
    def work(self) -> dict[str, float]:
        """Real tokens of a repetition, and the FLOPs of its matrix products."""
        if self.task in ("sft", "reward_model", "dpo"):
            flops = setting.training_flops(self.task, self.size, self.rows, self.lora)
            return {"tokens": setting.tokens_of(self.rows), "flops": flops}
        about = (self.task, self.size, self.ragged)
        return {"tokens": setting.tokens_per_repetition(*about), "flops": setting.matrix_flops(*about)}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self) | {"root": str(self.root)}))

    @classmethod
    def read(cls, path: Path) -> Job:
        found = json.loads(path.read_text())
        return cls(**found | {"size": Size(**found["size"]), "root": Path(found["root"])})


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
        """Numbers of the running repetition, e.g. loss and grad_norm at step 0; the first of a name stays."""
        self._notes = {name: float(x) for name, x in numbers.items()} | self._notes

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
    """`python session.py MODULE JOB.json`: runs MODULE.py's `run(job, session)`."""
    module, job = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print goes to the log; the conversation keeps the real stdout.
    importlib.import_module(f"contestants.{module}").run(Job.read(Path(job)), Session(out))


if __name__ == "__main__":
    main()
