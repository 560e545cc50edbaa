"""Prompt templates: jinja2 files with one block per chat message, and the escaping of the data shown in them.

A template consists of blocks named by role, in order: `{% block system %}...{% endblock %}`, then
`{% block user %}`; further turns are `{% block assistant_1 %}`, `{% block user_2 %}` and so on. Each block is
rendered by itself, so nothing in the data can open another message. It sees the data of its kind (`DATA_NAMES`),
or `examples`, a list of such data, and the judge's `template_vars`, and nothing else.

Data under judgment stands between tags (<output_a>...</output_a>). A known tag inside it, or a special token of chat
models ("<|im_end|>"), gets its "<" written as "&lt;"; a "&lt;" that stood before one already becomes "&amp;lt;", so
that escaping can be undone exactly. The prompt of a completion is a message of its own with nothing to judge: no tag
is escaped there.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from jinja2 import meta

from rlhf_jax.annotation.judges.fields import closest_name
from rlhf_jax.annotation.parsing.contracts import COMPLETION, PAIRWISE, RANKING, RATING
from rlhf_jax.data.files.tables import valid_text
from rlhf_jax.errors import UserError

TEMPLATE_DIR = Path(__file__).parent / "templates"
# What a template is given, by kind; `outputs` is a list of texts.
DATA_NAMES = {
    PAIRWISE: ("instruction", "output_a", "output_b"),
    RATING: ("instruction", "output"),
    RANKING: ("instruction", "outputs"),
    COMPLETION: ("instruction", "input"),
}
# One example: its values, in the order of DATA_NAMES.
Data = Sequence[str | Sequence[str]]
_ROLES = ("system", "user", "assistant")

# Special tokens of chat models, which some servers parse wherever they stand: "<|im_end|>" in an output would
# end the message. U+FF5C is the bar in DeepSeek's tokens.
_SPECIAL = r"[|\uff5c][^|\uff5c<>\s]{1,40}[|\uff5c]>|/?s>|(?:bos|eos|start_of_turn|end_of_turn)>"
# Also "</ Output_A >": a language model reads it as the tag that it resembles.
_TAG_AHEAD = rf"(?=\s*(?:/\s*)?(?i:instruction|output(?:_\w+)?|example_\w+)\b|{_SPECIAL})"
_OPEN_TAG = re.compile(rf"<{_TAG_AHEAD}")
# Control characters, which a person does not see, may end a text for a server or steer a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ESCAPED_TAG = re.compile(rf"&((?:amp;)*)lt;{_TAG_AHEAD}")

# StrictUndefined: a misspelt variable is an error, not empty. No HTML escaping: a model would read &quot;.
_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


def escape(data: str) -> str:
    """Write the tags in `data` so that they cannot be taken for the template's. Undone by `unescape`.

    Lone surrogates, which no request can carry, and control characters but tab and line ends become U+FFFD.
    """
    data = sendable(data)
    # Most texts hold neither, and the patterns below look at every character.
    if "<" not in data and "&" not in data:
        return data
    return _OPEN_TAG.sub("&lt;", _ESCAPED_TAG.sub(r"&amp;\1lt;", data))


def sendable(data: str) -> str:
    """Replace what a request cannot carry: lone surrogates and control characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", valid_text(data))


def unescape(text: str) -> str:
    """Undo `escape` exactly."""
    return _ESCAPED_TAG.sub(lambda m: "&" + m[1][4:] + "lt;" if m[1] else "<", text)


def read_template(name: str, folder: Path, where: str) -> tuple[str, str]:
    """Read the source and the origin of a shipped template ("choice") or a file beside the YAML ("mine.jinja").

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
            f"{where}: template: {what}; {closest_name(name.removesuffix('.jinja'), shipped)}"
        ) from None


class PromptTemplate:
    """A compiled template with its fixed variables.

    name: where it came from, for messages and labels. sha: 16 hex digits of the source's SHA-256.
    offered: what the template may use besides, such as the ends of a rating scale.
    takes_many: whether it loops over `examples`, so that one request can hold several.
    Errors: UserError on bad syntax, on a variable nobody gives, on one given and not used.
    """

    def __init__(
        self,
        source: str,
        name: str,
        variables: Mapping[str, str] | None = None,
        kind: str = PAIRWISE,
        offered: Mapping[str, object] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.variables = dict(variables or {})
        # Of the source, not the file's name: a label says which words were asked.
        self.sha = hashlib.sha256(source.encode()).hexdigest()[:16]
        try:
            wanted = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"template {name}: line {error.lineno}: {error.message}; mend the template"
            ) from None
        self.takes_many = "examples" in wanted
        self._offered = {k: v for k, v in (offered or {}).items() if k in wanted and k not in self.variables}
        wanted = wanted - set(self._offered)
        self._check_variables(wanted)
        self._blocks = list(self._template.blocks.items())
        self._check_blocks()
        self._check_shown()

    def _check_variables(self, wanted: set[str]) -> None:
        data = ("examples",) if self.takes_many else DATA_NAMES[self.kind]
        given = {*data, *self.variables}
        for missing in sorted(wanted - given):
            raise UserError(
                f"template {self.name}: nobody gives {missing!r}; {closest_name(missing, sorted(given))}"
            )
        for unused in sorted(given - wanted):
            hint = "the model must be shown it" if unused in data else "remove it from template_vars"
            raise UserError(f"template {self.name}: {unused!r} is not used; {hint}")

    def _check_shown(self) -> None:
        """Check that all data is shown: render with marks in place of the data and look for every mark."""
        marks = [
            [
                [f"\ue000{i}{name}{j}" for j in "12"] if name == "outputs" else f"\ue000{i}{name}"
                for name in names
            ]
            # Two examples where the template loops: one that shows the first only must not pass.
            for i, names in enumerate([DATA_NAMES[self.kind]] * (2 if self.takes_many else 1))
        ]
        try:
            text = "\n".join(message["content"] for message in self.messages(marks))
        except jinja2.UndefinedError as error:
            raise UserError(f"template {self.name}: {error}; mend the template") from None
        for name, mark in zip(DATA_NAMES[self.kind] * len(marks), itertools.chain(*marks), strict=True):
            if any(part not in text for part in ([mark] if isinstance(mark, str) else mark)):
                raise UserError(f"template {self.name}: {name!r} is not shown; the model must be shown it")

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

    def messages(self, examples: Sequence[Data]) -> list[dict[str, str]]:
        """Render the chat messages [{"role", "content"}] about the examples, with their data escaped."""
        named = [self._named(example) for example in examples]
        data = {"examples": named} if self.takes_many else named[0]
        # Each block is rendered alone: however hostile the data, it cannot open another message.
        context = self._template.new_context({**self._offered, **self.variables, **data})
        return [
            {"role": _role(name), "content": "".join(block(context)).strip()} for name, block in self._blocks
        ]

    def _named(self, example: Data) -> dict[str, str | list[str]]:
        clean = sendable if self.kind == COMPLETION else escape
        values = [clean(v) if isinstance(v, str) else [clean(text) for text in v] for v in example]
        return dict(zip(DATA_NAMES[self.kind], values, strict=True))


def _role(block_name: str) -> str:
    return block_name.partition("_")[0]
