"""The text of `--config=PAGE --help`: the page's docstring, and every field with its value and its comment.

Comments are read from the source files in which fields are set: the page, the job's own page, and configs/common.py.
"""

from __future__ import annotations

import ast
import io
import json
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.ranges import value_at
from rlhf_jax.settings.page_fields import page_of_job
from rlhf_jax.settings.pages import PAGES, load_page


def page_help(spec: str) -> str:
    """Returns the help text of the page that `--config=` names."""
    page, path = load_page(spec), Path(spec.partition(":")[0])
    said = comments_for(page, path)
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
    lines = [about, "", f"Fields of {spec}:", ""]
    for name in _in_order(page):
        value = value_at(page, name)
        # A stage of a study has a page of its own, which says what its fields mean.
        if isinstance(value, ConfigDict):
            lines.append(f"  --config.{name}.FIELD: see configs/{page_of_job(value).name}")
            continue
        lines.append(f"  --config.{name}={value!r}")
        lines += textwrap.wrap(said.get(name, ""), 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def comments_for(page: ConfigDict, path: Path) -> dict[str, str]:
    """Collects the comment on each field of a page, by dotted name: that of the job's page, else of the shared file.

    What a recipe or a user's own page says of a field comes after "Here:", since it is about the value there.
    """
    # Later files win: what a job says of a field is nearer to it than what all pages share.
    ours = page_of_job(page)
    sources = [source for source in (PAGES / "common.py", ours) if source.is_file()]
    said: dict[str, str] = {}
    for source in sources:
        said |= comments_of(source.read_text(encoding="utf8"))
    if path.resolve() != ours:
        for name, comment in comments_of(path.read_text(encoding="utf8")).items():
            said[name] = f"{said[name]} Here: {comment}" if name in said else comment
    return said


def comments_of(text: str) -> dict[str, str]:
    """Reads the first comment on each field that a file sets: the lines above it, and behind its value.

    `c.data.rows = 0` sets data.rows, and so does `data.rows = 0`: a page is called c, a group by its name.
    """
    # ast drops comments, so the tokens tell where they stand, and the tree which line sets which field.
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        while first - 1 in comments and _is_alone(comments[first - 1]):
            first -= 1
        said = " ".join(
            comments[row].string.lstrip("# ") for row in range(first, last + 1) if row in comments
        )
        if said:
            # The first comment counts: variants further down set a field again and explain their own value.
            found.setdefault(ast.unparse(node.targets[0]).removeprefix("c."), said)
    return found


def _is_alone(comment: tokenize.TokenInfo) -> bool:
    """Whether a comment has its line for itself, so that it speaks of what comes below."""
    return not comment.line[: comment.start[1]].strip()


def _in_order(page: ConfigDict) -> Iterator[str]:
    """Names of the fields in the order in which the page sets them."""
    # Iterating a ConfigDict sorts its fields; its JSON keeps the order in which they were set.

    def walk(group: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for name, value in group.items():
            if isinstance(value, dict) and "job" not in value:
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    return (name for name in walk(json.loads(page.to_json()), "") if name != "job")
