"""The fields of a page by their dotted names, and how a user's own page differs from the job's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.ranges import value_at
from rlhf_jax.settings.pages import PAGES, closest, load_page


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of every field that holds a value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_fields(page: ConfigDict, prefix: str = "") -> None:
    """Raises UserError for a field that the job's own page does not have, or that it has and this one lacks.

    prefix: of a page within a study's page, which is held against the page of its own job.
    """
    # Held against the job's own page: nowhere else is it written which fields a job reads.
    known, found = stock(page), set(own_fields(page))
    for name in sorted(found - known.keys() if known else ()):
        meant = closest(f"{prefix}{name}", [f"{prefix}{field}" for field in known])
        raise UserError(f"{prefix}{name}: the job {page.job} has no such field{meant}")
    for name in sorted(known.keys() - found):
        raise UserError(
            f"{prefix}{name}: missing; a page of the job {page.job} needs it, see configs/{page_of_job(page).name}"
        )
    for name, inner in inner_pages(page):
        check_fields(inner, f"{name}.")


def changed(page: ConfigDict) -> set[str]:
    """The fields of a user's own page that have other values than the job's own page gives them."""
    known, here = stock(page), own_fields(page)
    found = {name for name, value in here.items() if name in known and value != known[name]}
    for name, inner in inner_pages(page):
        # Paths such as "{sft}/export", with which a study joins its stages, are no choice of its user.
        joined = {field for field, value in own_fields(inner).items() if "{" in str(value)}
        found |= {f"{name}.{field}" for field in changed(inner) - joined}
    return found


def page_of_job(page: ConfigDict) -> Path:
    """The file of the job's own page that a page is like: JOB.py, or JOB_online.py of a method that learns from files
    and can also sample while it trains, for pages with a group `rollout`.
    """
    own, online = (PAGES / f"{page.job}{end}.py" for end in ("", "_online"))
    # Not for methods that always sample: there a file of this name is a page of its user's.
    if "rollout" in page and online.is_file() and "rollout" not in load_page(str(own)):
        return online
    return own


def stock(page: ConfigDict) -> dict[str, Any]:
    """The fields of the job's own page and their values; none where the pages do not lie beside the program."""
    path = page_of_job(page)
    return own_fields(load_page(str(path))) if path.is_file() else {}


def inner_pages(page: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """The groups of a page that are pages themselves: they have a field `job`, and the stages of a study run them."""
    for name, value in page.items():
        if hasattr(value, "items") and "job" in value:
            yield name, value


def own_fields(page: ConfigDict) -> dict[str, Any]:
    """The fields of a page and their values, without those of pages within it."""
    inner, values = {name for name, _ in inner_pages(page)}, page.to_dict()
    return {name: value_at(values, name) for name in leaves(page) if name.split(".")[0] not in inner}
