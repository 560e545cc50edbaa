"""The stages of a study as its page lists them, each with its settings and with the stages whose folders it reads.

    c.dpo = load_page("configs/dpo.py")
    c.dpo.data.train = "{labels}/labels.parquet"           # A name in braces is the folder of that stage.
    c.stages = (("labels", "labels"), ("low", "dpo", "beta=0.02"), ("high", "dpo", "beta=0.2"))

A stage is (its name, the group of the page that holds its settings, overrides as on a command line). What it reads of
other stages is seen in its settings, and nowhere else: order, reuse and checks all follow from there.

With seeds = (0, 1) every stage is two, in folders seed_0/NAME and seed_1/NAME, which read those of their own seed. The
stages that `once` names stay one. One of them that reads what there is of every seed gets its named paths for each:
"ppo={ppo}/x" becomes "ppo@0=seed_0/ppo/x,ppo@1=seed_1/ppo/x".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study.study_settings import for_every_seed, overridden, texts, with_folders
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


class _Entry(NamedTuple):
    """A stage as the page lists it, for one seed; seed None: for all of them, in a folder of the bare name."""

    bare: str
    group: str
    overrides: tuple[str, ...]
    seed: int | None

    @property
    def name(self) -> str:
        return self.bare if self.seed is None else f"seed_{self.seed}/{self.bare}"


def plan_stages(config: ConfigDict, workdir: str) -> list[Stage]:
    """The stages in the page's order. Raises UserError for a page that cannot be run in this order."""
    pages = dict(inner_pages(config))
    entries = list(_entries(config))
    _check_names([entry.name for entry in entries])
    folders = {entry.name: f"{workdir.rstrip('/')}/{entry.name}" for entry in entries}
    real, stages = real_folders(folders), []
    for entry in entries:
        name, group = entry.name, entry.group
        if group not in pages:
            known = closest(group, pages) or f"; there are {', '.join(pages) or 'none'}"
            raise UserError(f"stages: {entry.bare}: the page has no group {group!r} with a job{known}")
        written = overridden(pages[group], list(entry.overrides), f"stages: {entry.bare}")
        _take_seed(written, entry, config.seed)
        ranges.check_ranges(written.to_dict(), _prefix(name, group))
        settings = ConfigDict(written.to_dict())
        seen = _seen_from(entry, entries, folders)
        repeated = {e.bare: e.name for e in entries if e.seed is not None} if entry.seed is None else {}
        for field, text in texts(written):
            where = f"{_prefix(name, group)}{field}"
            if repeated:
                text = for_every_seed(text, repeated, tuple(config.seeds), where)
            settings.update_from_flattened_dict({field: with_folders(text, seen, where)})
        stage = Stage(name, group, load_program(written), settings, written, ())
        before = [earlier.name for earlier in stages]
        stages.append(stage._replace(upstream=_upstream(stage, before, real)))
    return stages


def _entries(config: ConfigDict) -> Iterator[_Entry]:
    """The page's stages, each as often as it is run: all of the first seed, then all of the next."""
    given = [tuple(entry) for entry in config.stages]
    seeds, once = tuple(config.seeds), tuple(config.once)
    known = [name for name, *_ in given]
    for name in once:
        if name not in known:
            raise UserError(f"once: no stage is named {name!r}{closest(name, known)}; leave it out")
    for i, seed in enumerate(seeds):
        if seed in seeds[:i]:
            raise UserError(f"seeds: {seed} is listed twice; list different ones")
    # Between two stages that are run once, those of one seed stay together: the first results come early.
    for alone, block in groupby(given, key=lambda entry: not seeds or entry[0] in once):
        listed = list(block)
        for seed in (None,) if alone else seeds:
            yield from (_Entry(name, group, tuple(more), seed) for name, group, *more in listed)


def _take_seed(settings: ConfigDict, entry: _Entry, base: int) -> None:
    """Gives a stage the seed that it is run for, unless it is told another one.

    A group may be some seeds ahead of the page's, as later rounds of sampling are; it stays ahead by as many.
    """
    told = any(text.startswith("seed=") for text in entry.overrides)
    if entry.seed is not None and "seed" in settings and not told:
        settings.seed = entry.seed + settings.seed - base


def _seen_from(entry: _Entry, entries: Iterable[_Entry], folders: Mapping[str, str]) -> dict[str, str]:
    """The folders by the names that a stage may write: those run once, those of its own seed, and all in full."""
    seen = {e.bare: folders[e.name] for e in entries if e.seed in (None, entry.seed)}
    return dict(folders) | seen


def real_folders(folders: Mapping[str, str]) -> dict[str, str]:
    """Real path -> name of the stages whose folders, by name, these are."""
    return {os.path.realpath(folder): name for name, folder in folders.items()}


def stages_below(paths: Iterable[str], real: Mapping[str, str]) -> set[str]:
    """The stages in whose folders some of these paths lie; real: as `real_folders` gives it."""
    found = set()
    for path in paths:
        here = Path(os.path.realpath(path))
        found |= {real[str(folder)] for folder in (here, *here.parents) if str(folder) in real}
    return found


def _upstream(stage: Stage, before: list[str], real: Mapping[str, str]) -> tuple[str, ...]:
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
        read = stages_below([part for part in parts if "/" in part or field in named], real)
        for other in sorted(read - set(before)):
            raise UserError(
                f"{stage.prefix}{field}: a stage cannot read what it makes itself; name one before {stage.name}"
                if other == stage.name
                else f"{stage.prefix}{field}: the stage {other} comes later; list it before {stage.name}"
            )
        found |= read
    return tuple(name for name in before if name in found)


def without_company(stages: list[Stage]) -> set[str]:
    """The stages that run alone, however many may run at once: each of the others comes before or after them."""
    before: dict[str, set[str]] = {}  # What a stage reads, what that reads, and so on.
    for stage in stages:
        before[stage.name] = set(stage.upstream).union(*(before[name] for name in stage.upstream))
    after = {name: sum(name in others for others in before.values()) for name in before}
    return {name for name in before if len(before[name]) + after[name] == len(stages) - 1}


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
