"""Prompt templates: jinja2 files with one block per chat message, and the escaping that keeps data data.

A template consists of blocks named by role, in order: `{% block system %}...{% endblock %}`, then
`{% block user %}`; further turns are `{% block assistant_1 %}`, `{% block user_2 %}` and so on. Each block is
rendered by itself, so nothing in the data can open another message. It sees `instruction`, `output_a`,
`output_b` and the judge's `template_vars`, and nothing else.

Data stands between tags (<output_a>...</output_a>). A known tag inside the data gets its "<" written as
"&lt;", and a "&lt;" that already stood before a known tag becomes "&amp;lt;", so the way back is exact.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
from jinja2 import meta

from rlhf_jax.annotation.fields import closest
from rlhf_jax.errors import UserError

TEMPLATE_DIR = Path(__file__).parent / "templates"
DATA_NAMES = ("instruction", "output_a", "output_b")
_ROLES = ("system", "user", "assistant")

# Also "</ Output_A >": a language model reads it as the tag it looks like.
_TAG_AHEAD = r"(?=\s*/?\s*(?i:instruction|output(?:_\w+)?|example_\w+)\b)"
_OPEN_TAG = re.compile(rf"<{_TAG_AHEAD}")
_ESCAPED_TAG = re.compile(rf"&((?:amp;)*)lt;{_TAG_AHEAD}")

_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


def escape(data: str) -> str:
    """Write the tags in `data` so that they cannot be taken for the template's. Undone by `unescape`.

    Lone surrogates, which no request can carry, become "?".
    """
    data = data.encode("utf-8", "replace").decode("utf-8") if not data.isascii() else data
    if "<" not in data and "&" not in data:
        return data
    return _OPEN_TAG.sub("&lt;", _ESCAPED_TAG.sub(r"&amp;\1lt;", data))


def unescape(text: str) -> str:
    """The exact inverse of `escape`."""
    return _ESCAPED_TAG.sub(lambda m: "&" + m[1][4:] + "lt;" if m[1] else "<", text)


def read_template(name: str, folder: Path, where: str) -> tuple[str, str]:
    """The source and the origin of a shipped template ("choice") or a file beside the YAML ("mine.jinja").

    Errors: UserError beginning with `where` that names the closest shipped template.
    """
    is_file = name.endswith(".jinja")
    path = folder / name if is_file else TEMPLATE_DIR / f"{name}.jinja"
    try:
        return path.read_text(encoding="utf-8"), name
    except OSError:
        shipped = [p.stem for p in TEMPLATE_DIR.glob("*.jinja")]
        what = f"no file {path}" if is_file else f"unknown template {name!r}"
        raise UserError(
            f"{where}: template: {what}; {closest(name.removesuffix('.jinja'), shipped)}"
        ) from None


class PromptTemplate:
    """A compiled template with its fixed variables.

    name: where it came from, for messages and labels. sha: 16 hex digits of the source's SHA-256.
    Errors: UserError on bad syntax, on a variable nobody gives, on one given and not used.
    """

    def __init__(self, source: str, name: str, variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.variables = dict(variables or {})
        self.sha = hashlib.sha256(source.encode()).hexdigest()[:16]
        try:
            wanted = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"template {name}: line {error.lineno}: {error.message}; mend the template"
            ) from None
        self._check_variables(wanted)
        self._blocks = list(self._template.blocks.items())
        self._check_blocks()

    def _check_variables(self, wanted: set[str]) -> None:
        given = {*DATA_NAMES, *self.variables}
        for missing in sorted(wanted - given):
            raise UserError(
                f"template {self.name}: nobody gives {missing!r}; {closest(missing, sorted(given))}"
            )
        for unused in sorted(given - wanted):
            hint = (
                "it must show the judge all three" if unused in DATA_NAMES else "remove it from template_vars"
            )
            raise UserError(f"template {self.name}: {unused!r} is not used; {hint}")

    def _check_blocks(self) -> None:
        roles = [_role(name) for name, _ in self._blocks]
        for (name, _), role in zip(self._blocks, roles, strict=True):
            if role not in _ROLES:
                raise UserError(
                    f"template {self.name}: block {name!r} is no role; name it {' or '.join(_ROLES)}"
                )
        if not roles or roles[-1] != "user" or "system" in roles[1:]:
            raise UserError(
                f"template {self.name}: blocks {roles}; at most one system block first, a user block last"
            )
        if any(first == second for first, second in itertools.pairwise(roles)):
            raise UserError(
                f"template {self.name}: blocks {roles}; two turns of one role in a row, join them"
            )

    def messages(self, instruction: str, output_a: str, output_b: str) -> list[dict[str, str]]:
        """The chat messages [{"role", "content"}] that ask to compare the two outputs, data escaped."""
        data = {
            "instruction": escape(instruction),
            "output_a": escape(output_a),
            "output_b": escape(output_b),
        }
        context = self._template.new_context({**self.variables, **data})
        return [
            {"role": _role(name), "content": "".join(block(context)).strip()} for name, block in self._blocks
        ]


def _role(block_name: str) -> str:
    return block_name.partition("_")[0]
