"""What the doctor finds while a run trains: a line for every new finding at its evaluations, and WORKDIR/findings.json.

Loading this file is what makes it look, and `programs.load_program` loads it for every method. It is told the rows of
metrics as their files are, reads nothing of the devices, and never ends a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rlhf_jax.evaluation.doctor.examine import WATCHED, examine_run, looked_for
from rlhf_jax.evaluation.doctor.findings import FINDINGS, Finding, findings_json
from rlhf_jax.training.checkpoints.object_stores import at, write_text
from rlhf_jax.training.loop import metrics
from rlhf_jax.training.progress import print_between

# Rows beyond these are thinned, so that looking costs the same late in a long run as early: some milliseconds.
_MOST_ROWS = 4096


class FindingsWriter:
    """Looks at a run whenever it was evaluated. A writer of `training.loop.metrics`."""

    def __init__(self, workdir: str | PurePath, config: Mapping[str, Any]) -> None:
        self._workdir, self._config = at(workdir), config
        self._rows: list[dict[str, Any]] = []
        self._told: dict[str, float] = {}  # finding -> the step at which it was first seen
        self._able = True

    def start(self, step: int | None) -> None:
        """Reads what an earlier run of this folder logged and told, up to the step that it goes on from."""
        self._rows, self._told = [], {}
        self._try(self._read_back, step)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        self._take({"step": step, **values})
        if any(name.startswith("eval/") for name in values):
            self._try(self._look, step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _read_back(self, step: int | None) -> None:
        path = self._workdir / FINDINGS
        if step is None:
            path.unlink(missing_ok=True)
            return
        log = self._workdir / "metrics.jsonl"
        for line in log.read_text().splitlines() if log.exists() else ():
            self._take(json.loads(line))
        if path.exists():
            seen = json.loads(path.read_text())["first_seen"]
            # Those of steps that will be done again are found, and told, again.
            self._told = {name: x for name, x in seen.items() if x <= step}

    def _take(self, row: Mapping[str, Any]) -> None:
        kept = {name: x for name, x in row.items() if name in WATCHED and x is not None and math.isfinite(x)}
        if kept:
            self._rows.append({"step": row["step"], **kept})
        if len(self._rows) > _MOST_ROWS:
            # Every second one goes, but neither the first nor the last. Evaluations are few, and rules want them all.
            evaluated = [any(name.startswith("eval/") for name in row) for row in self._rows]
            both = enumerate(zip(self._rows, evaluated, strict=True))
            self._rows = [row for i, (row, whole) in both if whole or i % 2 == 0]

    def _look(self, step: int) -> None:
        found = examine_run(self._rows, self._config)
        for one in self._new(found, step):
            print_between(one.line())
        looked = {self._config.get("job") or "run": looked_for(self._rows)}
        text = findings_json(found, looked, step=step, first_seen=self._told)
        write_text(self._workdir / FINDINGS, text)

    def _new(self, found: Sequence[Finding], step: int) -> list[Finding]:
        new = [one for one in found if one.name not in self._told]
        self._told |= {one.name: step for one in new}
        return new

    def _try(self, do: Any, step: int | None) -> None:
        # What is wrong with a comment on a run, such as a full disk, should not end it.
        try:
            do(step)
        except Exception as error:
            if self._able:
                print_between(f"notice: findings: none can be told ({type(error).__name__}: {error})")
            self._able = False


metrics.also_told.append(FindingsWriter)
