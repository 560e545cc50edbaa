"""Runs a study: the stages of its page that are not finished yet, in its order, each in its own folder.

Which methods and jobs these are is the page's affair. Nothing here knows one by name. A stage that fails is named, and
leaves alone all stages but those that read what it should have made.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError, problem_of_machine
from rlhf_jax.jobs.study.study_fingerprints import fingerprint
from rlhf_jax.jobs.study.study_stages import Stage, plan_stages
from rlhf_jax.parallel import startup
from rlhf_jax.programs import check_jobs, check_values
from rlhf_jax.settings.pages import closest
from rlhf_jax.training.checkpoints import workdir as folders
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import Needs

NEEDS = Needs()  # Its own workdir; all else is asked for by its stages.
ranges.own_rows(
    "study",
    seeds=ranges.Range(
        lambda value: isinstance(value, tuple | list) and all(map(ranges.whole(0, 2**32 - 1).fits, value)),
        "a tuple of whole numbers, such as (0,1,2), or () for the page's seed alone",
    ),
    once=ranges.Range(
        lambda value: isinstance(value, tuple | list) and all(map(ranges.is_text, value)),
        "a tuple of names of stages",
    ),
)
_LONGEST_S = 24 * 3600.0  # That the other processes wait for a stage which one of them runs.


@folders.one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Runs what is not finished yet, then shows the table of the stage `report` and says where its report is."""
    check_jobs(config)
    check_values(config)
    with startup.join_after_checks(config.distributed):
        stages = plan_stages(config, workdir)
        _check_report(config.report, stages)
        _check_stages(stages, config, workdir)
    for stage in stages:
        if stage.joins:
            made = _made(stage, workdir)
            missing_inputs.check_models(stage.program.NEEDS, stage.config, stage.prefix, made)
    root = Path(workdir)
    folders.prepare_workdir(workdir, config.to_dict())
    started = time.monotonic()
    ran, failed = _run_stages(stages, root)
    if startup.is_main():
        if config.report in ran:
            _show_report(root / config.report, root, told=ran[config.report])
        print(f"done in {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        raise UserError(_what_failed(failed, stages))


def _run_stages(stages: list[Stage], root: Path) -> tuple[dict[str, bool], dict[str, str]]:
    """Runs what can be run: (stage -> whether it was run or finished before, stage -> why it is not there)."""
    ran: dict[str, bool] = {}
    failed: dict[str, str] = {}
    for number, stage in enumerate(stages):
        lacking = [name for name in stage.upstream if name in failed]
        if stage.name in failed or lacking:
            failed.setdefault(stage.name, f"it reads {', '.join(lacking)}")
            if startup.is_main():
                why = f"as {failed[stage.name]}" if lacking else "see above"
                print(f"[{number}] {stage.name}: not run, {why}", flush=True)
            continue
        try:
            ran[stage.name] = _run_stage(number, stage, stages, root)
        except Exception as error:
            failed[stage.name] = _told(error, stage.name)
        for reader in stages if stage.name in ran else ():
            if stage.name in reader.upstream and reader.name not in failed:
                try:
                    _check_reader(reader, root / stage.name)
                except UserError as error:
                    failed[reader.name] = _told(error, reader.name)
    return ran, failed


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


def _what_failed(failed: Mapping[str, str], stages: list[Stage]) -> str:
    """The line with which a study ends that is not whole."""
    upstream = {stage.name: stage.upstream for stage in stages}
    first = [name for name in failed if not any(other in failed for other in upstream[name])]
    rest = [name for name in failed if name not in first]
    line = "; ".join(failed[name] for name in first)
    waits = f"; not run for want of {'it' if len(first) == 1 else 'them'}: {', '.join(rest)}" if rest else ""
    done = f"{len(stages) - len(failed)} of {len(stages)} stages"
    return f"{line}{waits}; the same command runs what is missing, and keeps what is done, {done}"


def _check_report(report: str, stages: list[Stage]) -> None:
    known = [stage.name for stage in stages]
    if report and report not in known:
        raise UserError(
            f"report: no stage is named {report!r}{closest(report, known)}; nothing leaves it out"
        )


def _check_stages(stages: list[Stage], config: ConfigDict, workdir: str) -> None:
    """What a later stage asks for is said now, not after the stages before it have been trained."""
    missing_inputs.check_needs(NEEDS, config, workdir)
    for stage in stages:
        folder, made = str(Path(workdir) / stage.name), _made(stage, workdir)
        missing_inputs.check_needs(stage.program.NEEDS, stage.config, folder, stage.prefix, made)


def _made(stage: Stage, workdir: str) -> tuple[str, ...]:
    """The folders whose contents need not be there yet."""
    return tuple(str(Path(workdir) / name) for name in stage.upstream)


def _run_stage(number: int, stage: Stage, stages: list[Stage], root: Path) -> bool:
    """Runs a stage unless it is finished, and says which; True when it was run."""
    where, mark, finished = root / stage.name, "", False
    if startup.is_main():  # It alone reads the files that decide, so that all processes do the same.
        mark = fingerprint(stage, root, [other.name for other in stages])
        finished = folders.is_finished(where, mark)
        what = "finished before" if finished else stage.config.job
        print(f"[{number}] {stage.name}: {what}", flush=True)
    if startup.from_main(f"{stage.name} finished", finished, startup.SLOW_S):
        return False
    folders.unfinish(where)
    if stage.joins or startup.is_main():
        stage.program.run(stage.config, str(where))
    startup.barrier(stage.name, timeout_s=_LONGEST_S)
    folders.finish(where, mark)
    return True


def _check_reader(reader: Stage, made: Path) -> None:
    """A file that a stage should have made and has not is missed as soon as it ends, not when another reads it."""
    if startup.is_main():
        missing_inputs.check_made(reader.program.NEEDS, reader.config, reader.prefix, str(made))


def _show_report(stage: Path, root: Path, *, told: bool) -> None:
    """Puts the report where the user of a study looks; told: the stage has just printed its table."""
    for name in ("report.html", "leaderboard.csv"):
        if (stage / name).is_file():
            shutil.copyfile(stage / name, root / name)
    for name in () if told else ("leaderboard.txt", "measures.txt", "verdicts.txt"):
        if (stage / name).is_file():
            print(f"\n{(stage / name).read_text()}")
    if (root / "report.html").is_file():
        print(f"report: {(root / 'report.html').resolve()}")
