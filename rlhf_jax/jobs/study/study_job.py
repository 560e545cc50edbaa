"""Runs a study: the stages of its page that are not finished yet, in its order, each in its own folder.

Which methods and jobs these are is the page's affair. Nothing here knows one by name. A stage that fails is named, and
leaves alone all stages but those that read what it should have made.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study.study_run import run_stages
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
    at_once=ranges.whole(1),
)


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
    ran, failed = run_stages(stages, root, _at_once(config.at_once))
    if startup.is_main():
        if config.report in ran:
            _show_report(root / config.report, root, told=ran[config.report])
        print(f"done in {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        raise UserError(_what_failed(failed, stages))


def _what_failed(failed: Mapping[str, str], stages: list[Stage]) -> str:
    """The line with which a study ends that is not whole."""
    upstream = {stage.name: stage.upstream for stage in stages}
    first = [name for name in failed if not any(other in failed for other in upstream[name])]
    rest = [name for name in failed if name not in first]
    line = "; ".join(failed[name] for name in first)
    waits = f"; not run for want of {'it' if len(first) == 1 else 'them'}: {', '.join(rest)}" if rest else ""
    done = f"{len(stages) - len(failed)} of {len(stages)} stages"
    return f"{line}{waits}; the same command runs what is missing, and keeps what is done, {done}"


def _at_once(asked: int) -> int:
    """How many stages are run at one time: where there are accelerators, or other processes, each takes all of them."""
    if asked == 1 or (startup.process_count() == 1 and jax.default_backend() == "cpu"):
        return asked
    if startup.is_main():
        print(f"at_once: {asked} is for the CPUs of one machine; here one stage runs at a time", flush=True)
    return 1


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
