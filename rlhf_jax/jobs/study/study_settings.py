"""The settings of a stage: a group of the study's page, the stage's overrides, folders for the stages' names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.ranges import value_at
from rlhf_jax.settings.page_fields import leaves
from rlhf_jax.settings.pages import KINDS, closest

_REFERENCE = re.compile(r"\{([^{}]*)\}")


def overridden(page: ConfigDict, overrides: list[str], where: str) -> ConfigDict:
    """The settings with FIELD=VALUE texts laid over them, each value of the kind that the field has."""
    settings = ConfigDict(page.to_dict())
    known = [field for field in leaves(settings) if field != "job"]
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{where}: {override!r} is not FIELD=VALUE")
        if field not in known:
            raise UserError(f"{where}: {field}: the job {page.job} has no such field{closest(field, known)}")
        value = _value(text, value_at(settings, field), ranges.RANGES.get(field), f"{where}: {field}")
        # Some fields are a number or a word, and a page has one of the two.
        with settings.ignore_type():
            settings.update_from_flattened_dict({field: value})
    return settings


def _value(text: str, default: Any, allowed: ranges.Range | None, field: str) -> Any:
    words = () if allowed is None else allowed.words
    if text in words:
        return text
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(ast.literal_eval(text))
        if default in words and text.isdigit() and allowed.fits(int(text)):
            return int(text)
        return type(default)(text)
    except (KeyError, TypeError, ValueError, SyntaxError):
        kind = KINDS[type(default).__name__]
        raise UserError(f"{field}: {text!r} does not fit; it takes {kind}, by default {default!r}") from None


def texts(settings: ConfigDict) -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every field that holds text."""
    for field in leaves(settings):
        value = value_at(settings, field)
        if isinstance(value, str):
            yield field, value


def for_every_seed(text: str, repeated: Mapping[str, str], seeds: tuple[int, ...], field: str) -> str:
    """A text of named paths in which each that is there for every seed stands once for each: NAME@SEED=PATH.

    repeated: the names of the stages that are there for every seed. Raises UserError for such a path without a name,
    since a field for one path cannot hold several.
    """
    items = []
    for item in text.split(","):
        names = [name for name in _REFERENCE.findall(item) if name in repeated]
        label, equals, path = item.partition("=")
        if not names:
            items.append(item)
        elif not equals or _REFERENCE.search(label):
            raise UserError(
                f"{field}: {item}: {names[0]} is run for every seed, and this stage once for all; name one of them, as "
                f"in {{{f'seed_{seeds[0]}/{names[0]}'}}}, or list this stage no longer in once"
            )
        else:
            items += [f"{label}@{seed}={_of_seed(path, repeated, seed)}" for seed in seeds]
    return ",".join(items)


def _of_seed(path: str, repeated: Mapping[str, str], seed: int) -> str:
    def named(found: re.Match[str]) -> str:
        return f"{{seed_{seed}/{found[1]}}}" if found[1] in repeated else found[0]

    return _REFERENCE.sub(named, path)


def with_folders(text: str, folders: Mapping[str, str], field: str) -> str:
    """A text with every {NAME} replaced by the folder of that stage."""

    def folder(found: re.Match[str]) -> str:
        if found[1] not in folders:
            known = closest(found[1], folders) or f"; there are {', '.join(folders)}"
            raise UserError(f"{field}: {text}: no stage is named {found[1]!r}{known}")
        return folders[found[1]]

    return _REFERENCE.sub(folder, text)
