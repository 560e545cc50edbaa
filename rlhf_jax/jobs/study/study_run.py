"""Runs the stages of a study: which can begin, what is finished before, what becomes of each.

A stage that fails is named, and leaves alone all stages but those that read what it should have made.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

from rlhf_jax.errors import UserError, problem_of_machine
from rlhf_jax.jobs.study.study_fingerprints import fingerprint
from rlhf_jax.jobs.study.study_processes import StageProcesses
from rlhf_jax.jobs.study.study_stages import Stage, without_company
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints import workdir as folders
from rlhf_jax.training.run import missing_inputs

_LONGEST_S = 24 * 3600.0  # That the other processes wait for a stage which one of them runs.


def run_stages(stages: list[Stage], root: Path, at_once: int) -> tuple[dict[str, bool], dict[str, str]]:
    """Runs what can be run: (stage -> whether it was run and not finished before, stage -> why it is not there).

    at_once: with 1 the stages run in this process, in their order; else up to so many, each in one of its own, as soon
        as what they read is there.
    """
    run = _Run(stages, root, StageProcesses(at_once) if at_once > 1 else None)
    with nullcontext() if run.processes is None else run.processes.ended_with_us():
        run.all()
    return run.ran, run.failed


class _Run:
    """What has become of the stages of a study so far."""

    def __init__(self, stages: list[Stage], root: Path, processes: StageProcesses | None) -> None:
        self.stages, self.root, self.processes = stages, root, processes
        self.ran: dict[str, bool] = {}
        self.failed: dict[str, str] = {}
        self._marks: dict[str, str] = {}
        self._alone = without_company(stages)

    def all(self) -> None:
        """Begins every stage once those that it reads have ended, the page's first ones first."""
        left, processes = dict(enumerate(self.stages)), self.processes
        while left or (processes is not None and processes.busy):
            settled = self.ran.keys() | self.failed.keys()
            ready = [number for number, stage in left.items() if settled.issuperset(stage.upstream)]
            if ready and (processes is None or not processes.full):
                self._begin(ready[0], left.pop(ready[0]))
            else:
                stage, seconds, problem = processes.wait()
                if not problem:
                    print(f"[{self.stages.index(stage)}] {stage.name}: done in {seconds:.0f} s", flush=True)
                self._ended(stage, _told(UserError(problem), stage.name) if problem else "")

    def _begin(self, number: int, stage: Stage) -> None:
        lacking = [name for name in stage.upstream if name in self.failed]
        if stage.name in self.failed or lacking:
            self.failed.setdefault(stage.name, f"it reads {', '.join(lacking)}")
            if startup.is_main():
                why = f"as {self.failed[stage.name]}" if lacking else "see above"
                print(f"[{number}] {stage.name}: not run, {why}", flush=True)
        elif self._is_finished(number, stage):
            self._found(stage, new=False)
        elif self.processes is None:
            folders.unfinish(self.root / stage.name)
            self._ended(stage, self._run_here(stage))
        else:
            self.processes.start(stage, self.root / stage.name, alone=stage.name in self._alone)

    def _is_finished(self, number: int, stage: Stage) -> bool:
        """Says what a stage is, and keeps the mark of what it is made of; whether it need not be run."""
        mark, finished = "", False
        if startup.is_main():  # It alone reads the files that decide, so that all processes do the same.
            mark = fingerprint(stage, self.root, [other.name for other in self.stages])
            finished = folders.is_finished(self.root / stage.name, mark)
            what = "finished before" if finished else stage.config.job
            print(f"[{number}] {stage.name}: {what}", flush=True)
        self._marks[stage.name] = mark
        return startup.from_main(f"{stage.name} finished", finished, startup.SLOW_S)

    def _run_here(self, stage: Stage) -> str:
        """Runs a stage in this process, with all others of the run; "" or why it failed."""
        try:
            if stage.joins or startup.is_main():
                stage.program.run(stage.config, str(self.root / stage.name))
        except Exception as error:
            return _told(error, stage.name)
        return ""

    def _ended(self, stage: Stage, problem: str) -> None:
        if problem:
            self.failed[stage.name] = problem
            return
        startup.barrier(stage.name, timeout_s=_LONGEST_S)
        folders.finish(self.root / stage.name, self._marks[stage.name])
        self._found(stage, new=True)

    def _found(self, stage: Stage, *, new: bool) -> None:
        """A file that a stage should have made and has not is missed as soon as it ends, not when another reads it."""
        self.ran[stage.name] = new
        for reader in self.stages:
            if stage.name in reader.upstream and reader.name not in self.failed and startup.is_main():
                try:
                    made = str(self.root / stage.name)
                    missing_inputs.check_made(reader.program.NEEDS, reader.config, reader.prefix, made)
                except UserError as error:
                    self.failed[reader.name] = _told(error, reader.name)


def _told(error: Exception, stage: str) -> str:
    """Prints why a stage failed, as the front door would, and returns it in a line.

    Raises again what is no failure of one stage: a full disk, and anything where other processes take part.
    """
    if startup.process_count() > 1 or problem_of_machine(error) is not None:
        raise error
    line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    line = line if line.startswith((f"{stage}.", f"{stage}:")) else f"{stage}: {line}"
    print(f"error: {line}", file=sys.stderr, flush=True)
    return line
