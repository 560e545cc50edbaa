"""Runs a study: the stages of its page that are not finished yet, in its order, each in its own folder.

Which methods and jobs these are is the page's affair. Nothing here knows one by name.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study.study_fingerprints import fingerprint
from rlhf_jax.jobs.study.study_stages import Stage, plan_stages
from rlhf_jax.parallel import startup
from rlhf_jax.programs import check_jobs, check_values
from rlhf_jax.settings.pages import closest
from rlhf_jax.training.checkpoints import workdir as folders
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import Needs

NEEDS = Needs()  # Its own workdir; all else is asked for by its stages.
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
    ran = {}
    for number, stage in enumerate(stages):
        ran[stage.name] = _run_stage(number, stage, stages, root)
        _check_readers(stage, stages, root)
    if startup.is_main():
        if config.report:
            _show_report(root / config.report, root, told=ran[config.report])
        print(f"done in {time.monotonic() - started:.0f} s", flush=True)


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


def _check_readers(stage: Stage, stages: list[Stage], root: Path) -> None:
    """A file that a stage should have made and has not is missed before the next stage runs, not when one reads it."""
    for reader in stages if startup.is_main() else ():
        if stage.name in reader.upstream:
            missing_inputs.check_made(
                reader.program.NEEDS, reader.config, reader.prefix, str(root / stage.name)
            )


def _show_report(stage: Path, root: Path, *, told: bool) -> None:
    """Puts the report where the user of a study looks; told: the stage has just printed its table."""
    for name in ("report.html", "leaderboard.csv"):
        if (stage / name).is_file():
            shutil.copyfile(stage / name, root / name)
    for name in () if told else ("leaderboard.txt", "measures.txt"):
        if (stage / name).is_file():
            print(f"\n{(stage / name).read_text()}")
    if (root / "report.html").is_file():
        print(f"report: {(root / 'report.html').resolve()}")
