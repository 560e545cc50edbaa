"""Finds the programs that a page can name as its `job`: every module of `methods` and `jobs` that has a `run`.

There is no list to keep: a new file in one of these folders is a new name. And here is what is checked of a page before
its job is loaded, wherever the page comes from: a command or Python.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_jax import idle, ranges
from rlhf_jax.errors import UserError
from rlhf_jax.settings.page_fields import changed, check_fields, inner_pages, leaves

ROOMS = ("methods", "jobs")
# Looked for in the source, because importing all jobs to ask them would load jax and take seconds. A job that
# is a package has `run` in another of its modules and imports it under its own name.
_RUN = re.compile(r"^def run\(|^from .* import run as run$", re.MULTILINE)


@lru_cache
def names() -> tuple[str, ...]:
    """The names of all methods and jobs, methods first; found by their files, without importing any."""
    found = []
    for room in ROOMS:
        for path in sorted((Path(__file__).parent / room).iterdir()):
            source = path / "__init__.py" if path.is_dir() else path
            if path.stem.startswith("_") or not source.is_file():
                continue
            if _RUN.search(source.read_text()):
                found.append(path.stem)
    return tuple(found)


def is_method(name: str) -> bool:
    """Whether a name is that of a method, which trains a model, and not of another job."""
    return (Path(__file__).parent / ROOMS[0] / f"{name}.py").is_file()


def check_page(page: Any, given: set[str], *, own: bool) -> None:
    """Raises UserError for a page, a ConfigDict, that names no job or has a field or value that cannot be.

    And says what of it does nothing. given: the fields that were set beside the page. own: whether the page is a
    user's and not one of ours; what it changes counts as given, too.
    """
    # In the order in which the checks help most: what job it is, which fields it has, what values they have, and which
    # of them do nothing.
    check_jobs(page)
    if own:
        check_fields(page)
        given = given | changed(page)
    check_values(page)
    for line in idle.notices(page, given):
        print(f"notice: {line}", flush=True)


def check_jobs(page: Any) -> None:
    """Raises UserError for a page, a ConfigDict, or a page within it, whose job is none."""
    for field, one in (("job", page), *((f"{group}.job", inner) for group, inner in inner_pages(page))):
        if one.job not in names():
            raise UserError(f"{field}: {one.job!r}; use one of {', '.join(names())}")


def program(name: str) -> ModuleType:
    """The module of a method or job, by its name; it has `run(config, workdir)`."""
    for room in ROOMS:
        base = Path(__file__).parent / room / name
        if base.with_suffix(".py").is_file() or (base / "__init__.py").is_file():
            return importlib.import_module(f"rlhf_jax.{room}.{name}")
    raise ValueError(f"no method or job is called {name}; there are {', '.join(names())}")


def load_program(page: Any) -> ModuleType:
    """The module of a page's job, with what a method's file does not name: kept rows, and findings and judges at its
    evaluations."""
    if is_method(page.job):
        importlib.import_module("rlhf_jax.training.rows.kept_tokens")
        importlib.import_module("rlhf_jax.feedback.running_findings")
    if "win_rate" in page and page.win_rate.judges:
        importlib.import_module("rlhf_jax.feedback.sampled_win_rate")
    return program(page.job)


def check_values(page: Any) -> None:
    """Raises UserError for a page, a ConfigDict whose jobs there are, with a field or value that cannot be.

    A method with settings of its own is imported first, since its file brings their rows of `ranges`. Others are not:
    that loads jax, which most wrong settings can be told without.
    """
    for one in (page, *(inner for _, inner in inner_pages(page))):
        if any(ranges.range_of(one.job, field) is None for field in leaves(one)):
            program(one.job)
    ranges.check_ranges(page.to_dict())
