"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases when asked for. Process 0 only.

A writer has `start(step)` (the run goes on after that step; None: it begins), `write(step, values)`,
`flush()` and `close()`.
"""

from __future__ import annotations

import io
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

from etils import epath

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import at, is_remote


@runtime_checkable
class Writer(Protocol):
    """What the loop expects of a writer."""

    def start(self, step: int | None) -> None: ...

    def write(self, step: int, values: Mapping[str, float | int]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


# What else is told the rows of every run: (workdir, settings) -> a writer. `feedback.running_findings` puts itself here
# where the front door loads it, since training does not know what reads rows.
also_told: list[Callable[[str | PurePath, Mapping[str, Any]], Writer]] = []


class JsonlWriter:
    """One JSON object per row, which a kill after `write` does not lose. NaN and infinities become null.

    In an object store, which cannot append, the rows are written again as a whole at every `flush`.
    """

    def __init__(self, path: str | PurePath) -> None:
        self._path = at(path)
        self._file: Any = None

    def start(self, step: int | None) -> None:
        """Drops the rows after `step`: the run will write them again. A row cut off by a kill goes too."""
        self.close()
        kept = (
            [] if step is None else [line for line in _complete_lines(self._path) if _step_of(line) <= step]
        )
        if is_remote(self._path):
            self._path.write_text("".join(kept))
            self._file = io.StringIO("".join(kept))
            self._file.seek(0, io.SEEK_END)
            return
        # Renamed when it is complete: a kill leaves all the rows or those that are kept, never half of them.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        # Python writes NaN as a bare word, which is no JSON and which many readers refuse.
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            if is_remote(self._path):
                self._path.write_text(self._file.getvalue())
            else:
                # `write` hands rows to the system, which is enough for a kill. For a crash of the machine the
                # disk is waited for, but only when a checkpoint follows.
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None


class TensorBoardWriter:
    """Writes scalars as TensorBoard event files to `directory`."""

    def __init__(self, directory: str | Path) -> None:
        try:
            import tensorboardX
        except ImportError:
            raise UserError(
                "tensorboard: tensorboardX is not installed; run pip install tensorboardX"
            ) from None
        self._module = tensorboardX
        self._directory = str(directory)
        self._events: Any = None

    def start(self, step: int | None) -> None:
        self.close()
        # TensorBoard hides older events from this step on.
        purge = 0 if step is None else step + 1
        self._events = self._module.SummaryWriter(self._directory, purge_step=purge)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


class WandbWriter:
    """Writes to a Weights & Biases run. Its id is kept in the workdir, so a resumed job goes on in the same run."""

    def __init__(self, workdir: str | Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "wandb: wandb is not installed; run pip install wandb, then wandb login"
            ) from None
        self._module = wandb
        self._workdir, self._project, self._config = Path(workdir), project, dict(config)
        self._run: Any = None

    def start(self, step: int | None) -> None:
        self.close()
        # A run that begins anew in an old folder needs a new id: W&B drops rows of steps that a run has had.
        remembered = self._workdir / "wandb_id"
        if step is None or not remembered.exists():
            remembered.write_text(uuid.uuid4().hex[:12])
        self._run = self._module.init(
            project=self._project,
            name=self._workdir.name,
            dir=str(self._workdir),
            config=self._config,
            id=remembered.read_text(),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        # wandb sends from a process of its own.
        pass

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


class MultiWriter:
    """Hands every call to each of several writers. Without any it is the writer of all processes but process 0."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)

    def start(self, step: int | None) -> None:
        for writer in self._writers:
            writer.start(step)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        for writer in self._writers:
            writer.write(step, values)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def make_writer(
    workdir: str | PurePath,
    *,
    tensorboard: bool = False,
    wandb_project: str = "",
    config: Mapping[str, Any] | None = None,
) -> MultiWriter:
    """Makes the writer of a run: WORKDIR/metrics.jsonl, and TensorBoard or Weights & Biases where asked for."""
    if not startup.is_main():
        return MultiWriter([])
    writers: list[Writer] = [JsonlWriter(at(workdir) / "metrics.jsonl")]
    if (tensorboard or wandb_project) and is_remote(workdir):
        raise UserError(
            f"tensorboard, wandb_project: they cannot write to {workdir}; use a --workdir on a disk"
        )
    if tensorboard:
        writers.append(TensorBoardWriter(Path(workdir) / "tensorboard"))
    if wandb_project:
        writers.append(WandbWriter(workdir, wandb_project, config or {}))
    # Behind the file, which drops the rows that a run that goes on will write again.
    writers += [make(workdir, config or {}) for make in also_told]
    return MultiWriter(writers)


def _complete_lines(path: Path | epath.Path) -> list[str]:
    # A row without its newline was being written when the process was killed.
    if not path.exists():
        return []
    return [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # Not a row of ours: infinity is after any step, so it is dropped.
        return math.inf
