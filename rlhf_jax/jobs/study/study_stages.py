"""The stages of a study as its page lists them, each with its settings and with the stages whose folders it reads.

    c.dpo = load_page("configs/dpo.py")
    c.dpo.data.train = "{labels}/labels.parquet"           # A name in braces is the folder of that stage.
    c.stages = (("labels", "labels"), ("low", "dpo", "beta=0.02"), ("high", "dpo", "beta=0.2"))

A stage is (its name, the group of the page that holds its settings, overrides as on a command line). What it reads of
other stages is seen in its settings, and nowhere else: order, reuse and checks all follow from there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study.study_settings import overridden, texts, with_folders
from rlhf_jax.programs import load_program
from rlhf_jax.settings.page_fields import inner_pages
from rlhf_jax.settings.pages import closest

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")


class Stage(NamedTuple):
    """One method or job of a study.

    Attributes:
      name: by which other stages know it; also its folder below the study's workdir.
      group: the group of the study's page that holds its settings.
      program: the module of the method or job.
      config: its settings, as the program gets them.
      written: the same with the stages' names in braces, as the page has them.
      upstream: the stages before it that it reads.
    """

    name: str
    group: str
    program: ModuleType
    config: ConfigDict
    written: ConfigDict
    upstream: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """What stands before the name of a field in an error: the stage, and where the page has the field."""
        return _prefix(self.name, self.group)

    @property
    def joins(self) -> bool:
        """Whether all processes run it together. A job without this setting needs no accelerator: one runs it."""
        return "distributed" in self.config


def plan_stages(config: ConfigDict, workdir: str) -> list[Stage]:
    """The stages in the page's order. Raises UserError for a page that cannot be run in this order."""
    pages = dict(inner_pages(config))
    given = [tuple(entry) for entry in config.stages]
    _check_names([name for name, *_ in given])
    folders = {name: f"{workdir.rstrip('/')}/{name}" for name, *_ in given}
    stages: list[Stage] = []
    for name, group, *overrides in given:
        if group not in pages:
            known = closest(group, pages) or f"; there are {', '.join(pages) or 'none'}"
            raise UserError(f"stages: {name}: the page has no group {group!r} with a job{known}")
        written = overridden(pages[group], overrides, f"stages: {name}")
        ranges.check_ranges(written.to_dict(), _prefix(name, group))
        settings = ConfigDict(written.to_dict())
        for field, text in texts(written):
            folder = with_folders(text, folders, f"{_prefix(name, group)}{field}")
            settings.update_from_flattened_dict({field: folder})
        stage = Stage(name, group, load_program(written), settings, written, ())
        before = [earlier.name for earlier in stages]
        stages.append(stage._replace(upstream=_upstream(stage, before, folders)))
    return stages


def stages_below(paths: Iterable[str], folders: Mapping[str, str]) -> set[str]:
    """The stages in whose folders some of these paths lie; folders: of the stages, by name."""
    found = set()
    for path in paths:
        real = Path(os.path.realpath(path))
        found |= {name for name, folder in folders.items() if real.is_relative_to(os.path.realpath(folder))}
    return found


def _upstream(stage: Stage, before: list[str], folders: Mapping[str, str]) -> tuple[str, ...]:
    """The stages that a stage reads, in their order; UserError for one that is not before it.

    A path that is written out counts as well: a page may name the folder of a stage as it would from outside.
    """
    needs, found = stage.program.NEEDS, set()
    named = {row.field for row in needs.reads}
    # A file that several stages write, such as a cache of answers, is no input.
    fields = [(field, text) for field, text in texts(stage.config) if text and field not in needs.writes]
    for field, text in fields:
        # A text may hold several paths: NAME=PATH,NAME=PATH, or FOLDER:SPLIT. Bare words are paths only where one is
        # expected: in a workdir "." the job `dpo` would else be the folder of the stage `dpo`.
        parts = {part.strip() for part in (text, *re.split("[,=:]", text))} - {""}
        read = stages_below([part for part in parts if "/" in part or field in named], folders)
        for other in sorted(read - set(before)):
            raise UserError(
                f"{stage.prefix}{field}: a stage cannot read what it makes itself; name one before {stage.name}"
                if other == stage.name
                else f"{stage.prefix}{field}: the stage {other} comes later; list it before {stage.name}"
            )
        found |= read
    return tuple(name for name in before if name in found)


def _check_names(given: list[str]) -> None:
    """Names are folders: no two may be the same, nor one lie in the other, whose files would then be both's."""
    for i, name in enumerate(given):
        if not _NAME.fullmatch(name):
            raise UserError(
                f"stages: {name!r} is no name of a stage; use letters, digits and _-. with / between folders"
            )
        for other in given[:i]:
            if name == other:
                raise UserError(f"stages: {name!r} is listed twice; give each stage its own name")
            if f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/"):
                raise UserError(
                    f"stages: the folders of {other} and {name} lie in each other; rename one of them"
                )


def _prefix(name: str, group: str) -> str:
    return f"{group}." if name == group else f"{name}: {group}."
