"""Changes to a page, by a command line or from Python: which page is named, and why an override does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from rlhf_jax.data.files.tables import shown
from rlhf_jax.errors import UserError
from rlhf_jax.ranges import value_at
from rlhf_jax.settings.page_fields import leaves
from rlhf_jax.settings.pages import KINDS, PAGES, closest, load_page


def named_page(argv: list[str]) -> str:
    """Returns the page that `--config=PAGE` or `--config PAGE` names; "" where there is neither."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config" and (value or following):
            return value or following
    return ""


def page_of(argv: list[str]) -> str:
    """The page of a command line; UserError where none is named."""
    page = named_page(argv)
    if not page:
        raise UserError("--config: missing; use for example --config=configs/farm.py")
    return page


def is_own(spec: str) -> bool:
    """Whether a page, FILE.py or FILE.py:VARIANT, is a user's own: neither a job's page nor a paper's recipe."""
    page = Path(spec.partition(":")[0]).resolve()
    return page.parent != PAGES and not page.is_relative_to(PAGES / "papers")


def check_overrides(argv: list[str]) -> None:
    """Raises UserError for the first `--config.x.y=` whose field the page does not have, with the closest field.

    ml_collections says only that a key is missing, and not which ones there are.
    """
    spec = page_of(argv)
    # absl writes a switch that is off as --noconfig.FIELD.
    named = (argument.lstrip("-").split("=", 1)[0].removeprefix("no") for argument in argv)
    fields = [flag.removeprefix("config.") for flag in named if flag.startswith("config.")]
    check_names(load_page(spec), spec, fields, "--config.")


def check_names(page: ConfigDict, spec: str, fields: Iterable[str], prefix: str = "") -> None:
    """Raises UserError for the first of these dotted names that is no field of the page, with the closest that is.

    spec: what the page was loaded from. prefix: what stands before a name where the user wrote it.
    """
    known = list(leaves(page))
    # A group is a key of the page, too, but only its fields can be set.
    groups = {name.rsplit(".", i)[0] for name in known for i in range(1, name.count(".") + 1)}
    for field in fields:
        if field in groups:
            below = ", ".join(f"{prefix}{name}" for name in known if name.startswith(f"{field}."))
            raise UserError(f"{prefix}{field}: a group of fields; set one of {below}")
        if field not in known:
            meant = closest(field, known) or _same_leaf(field, known)
            raise UserError(f"{prefix}{field}: no such field in {spec}{meant}")


def set_field(page: ConfigDict, name: str, value: Any) -> None:
    """Sets a field by its dotted name; UserError when the value is of another kind than the page's."""
    group, _, leaf = name.rpartition(".")
    holder = value_at(page, group) if group else page
    default = holder[leaf]
    try:
        holder[leaf] = value
    except TypeError as error:
        raise UserError(_does_not_fit(name, value, default)) from error


def explain(error: flags.Error, argv: list[str]) -> str:
    """One line for a flag that did not parse: the field, what it got, and its kind and default."""
    # absl's sentence is "flag --config.FIELD=VALUE: reason", and the reason names Python classes.
    text = str(error).replace("\n", " ")
    if not text.startswith("flag --config.") or "=" not in text:
        return text
    field, _, rest = text.removeprefix("flag --config.").partition("=")
    value = rest.split(":", 1)[0]
    return _does_not_fit(f"--config.{field}", value, value_at(load_page(page_of(argv)), field))


def _does_not_fit(field: str, value: Any, default: Any) -> str:
    kind = KINDS.get(type(default).__name__, type(default).__name__)
    return f"{field}: {shown(value)} does not fit; it takes {kind}, by default {default!r}"


def _same_leaf(field: str, known: list[str]) -> str:
    # --config.learning_rate is the right name in the wrong group, and far from optimizer.learning_rate.
    leaf = field.rsplit(".", 1)[-1]
    matches = difflib.get_close_matches(leaf, [name.rsplit(".", 1)[-1] for name in known], n=1)
    full = next((name for name in known if matches and name.rsplit(".", 1)[-1] == matches[0]), None)
    groups = dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in known)
    return f"; did you mean {full}?" if full else f"; fields: {', '.join(groups)}"
