"""What a chat template writes around the texts of a conversation, found once for all of the same roles.

A template is run once on texts that it cannot look into. Whatever it does but write them, join them to others, strip
them or ask whether there are any (test, count, compare, search, change or pass them on) ends that, and conversations
are rendered one by one as before. Where it goes through, it does the same for any texts that are not empty (and, where
it strips them, have no space around them), so theirs can be put in their places.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Macro

from rlhf_jax.data.chat.chat_templates import NO_THOUGHTS, REFUSALS, render_plain, template_of
from rlhf_jax.data.chat.tools import OPENED
from rlhf_jax.data.records.messages import ChatMessage
from rlhf_jax.data.templates import Handling

# Writes conversations, None in place of each that cannot be.
Render = Callable[[Sequence[Sequence[ChatMessage]]], list[str | None]]
# A noncharacter around the number of a text, which Unicode reserves for internal use.
_HOLE = "\ufdd5"
# What gives its argument again, or says what kind of thing it is, as it does of every text.
_FILTERS = {"trim", "length", "count", "first", "last", "default", "d", "string"}
_TESTS = {"defined", "undefined", "none", "string", "mapping", "boolean", "number", "integer", "float"}
_CALLED = {"namespace", "TemplateNamespace", "_generation_support"}
# These join texts to one that can be looked into.
_JOINING = (
    nodes.Concat,
    nodes.AssignBlock,
    nodes.FilterBlock,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
)
# Conversations of each kind that are rendered as well, to see that the same comes out.
_TRIALS = 4


class LookedIntoError(Exception):
    """A template does something with a text that depends on the text."""


class Outlines:
    """The outlines of one template with its variables, by the roles of the conversation."""

    def __init__(self, template: str, variables: Mapping[str, Any], render: Render) -> None:
        """render: writes conversations in the usual way.

        Raises LookedIntoError for a template that could join texts unseen, ImportError without its environment.
        """
        # Private, and so that a template runs in the environment that it runs in else.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._render = render
        self._variables = {"tools": None, "documents": None, "add_generation_prompt": False} | variables
        environment = _compile_jinja_template(template).environment
        _check_nodes(environment.parse(template))
        self._template = _tracing(environment).from_string(template)
        self._found: dict[tuple, list[Any] | None] = {}

    def of(self, chat: Sequence[ChatMessage]) -> list[str] | None:
        """A plain conversation's text in parts, its messages' at 1, 3, ...; None where that cannot be said."""
        kind = tuple([(m["role"], m.get("train"), OPENED in m, len(m)) for m in chat])
        if kind not in self._found:
            self._found[kind] = self._traced(chat)
        if (found := self._found[kind]) is None:
            return None
        texts = [m["content"] for m in chat]
        parts, strips, trials = found
        if not all(map(str.strip, texts)) or (strips and any(text != text.strip() for text in texts)):
            return None
        whole = [*chain.from_iterable(zip(parts, texts, strict=False)), parts[-1]]
        if trials:
            found[2] -= 1
            if "".join(whole) != self._render([chat])[0]:
                self._found[kind] = None
                return None
        return whole

    def _traced(self, chat: Sequence[ChatMessage]) -> list[Any] | None:
        """[what is written before each text and behind the last one, whether texts are stripped, trials to come]."""
        done: list[str] = []
        given = [
            {
                name: _Hole(f"{_HOLE}{i}{_HOLE}", done) if name == "content" else x
                for name, x in m.items()
                if x is not None and name != OPENED
            }
            for i, m in enumerate(chat)
        ]
        try:
            parts = self._template.render(messages=given, **self._variables).split(_HOLE)
        # Templates are programs that may raise anything at a text they cannot look into. Then conversations are
        # rendered one by one, which says what is wrong with a template that is at fault itself.
        except Exception:
            return None
        if parts[1::2] != [str(i) for i in range(len(chat))]:
            return None
        return [parts[::2], bool(done), _TRIALS]


def outlines_of(tokenizer: Any, how: Handling, **options: bool) -> Outlines | None:
    """The outlines of a tokenizer's template, as `render_plain` would render with these options; None: it has none."""
    render = partial(render_plain, tokenizer=tokenizer, how=how, **options)
    with suppress(*REFUSALS, LookedIntoError, ImportError):
        thoughts = NO_THOUGHTS if how.thoughts == "drop" else {}
        variables = {**tokenizer.special_tokens_map, **options, **thoughts}
        key = template_of(tokenizer, how), repr(sorted(variables.items()))
        if key not in _known:
            _known[key] = None
            _known[key] = Outlines(key[0], variables, render)
        return _known[key]
    return None


# A template takes some milliseconds to read, and some pages have more than one.
_known: dict[tuple[str, str], Outlines | None] = {}


class _Hole(str):
    """A text that cannot be looked into, or others joined to it; strips: gets an entry when it is stripped."""

    def __new__(cls, text: str, strips: list[str]) -> "_Hole":
        made = super().__new__(cls, text)
        made.strips = strips
        return made

    def __add__(self, other: str) -> "_Hole":
        return _Hole(str.__add__(str(self), _plain(other)), self.strips)

    def __radd__(self, other: str) -> "_Hole":
        return _Hole(str.__add__(_plain(other), str(self)), self.strips)

    def __bool__(self) -> bool:
        return True

    def strip(self, chars: None = None) -> "_Hole":
        return self._stripped(str.strip, chars)

    def lstrip(self, chars: None = None) -> "_Hole":
        return self._stripped(str.lstrip, chars)

    def rstrip(self, chars: None = None) -> "_Hole":
        return self._stripped(str.rstrip, chars)

    def _stripped(self, way: Callable[[str], str], chars: None) -> "_Hole":
        if chars is not None:
            raise LookedIntoError
        self.strips.append("")
        return _Hole(way(str(self)), self.strips)


def _plain(text: Any) -> str:
    if not isinstance(text, str):
        raise LookedIntoError
    return str(text)


def _refused(*_: Any, **__: Any) -> Any:
    raise LookedIntoError


# `str` itself writes the text, and is what templates end with.
_KEPT = {
    "__new__",
    "__init__",
    "__class__",
    "__str__",
    "__getattribute__",
    "__setattr__",
    "__init_subclass__",
}
for _name in {*dir(str), "__rmod__", "__reversed__"} - set(vars(_Hole)) - _KEPT:
    if callable(getattr(str, _name, _refused)):
        setattr(_Hole, _name, _refused)
# A class that defines no hash has None as one, which is refused by a TypeError that templates may catch.
_Hole.__hash__ = _refused


def _check_nodes(template: nodes.Template) -> None:
    if next(template.find_all(_JOINING), None) is not None:
        raise LookedIntoError
    for compared in template.find_all(nodes.Compare):
        for operand in compared.ops:
            # A text asks every other type that it is searched in; a plain text that is searched does not.
            searched = operand.op in ("in", "notin") and not isinstance(compared.expr, nodes.Const)
            if searched and not isinstance(operand.expr, nodes.List | nodes.Tuple):
                raise LookedIntoError


def _tracing(environment: Any) -> Any:
    """The same environment, in which nothing is called that could look into a text."""

    class Tracing(type(environment)):
        def call(self, context: Any, called: Any, *given: Any, **named: Any) -> Any:
            of = getattr(called, "__self__", None)
            name = getattr(called, "__name__", "")
            strips = isinstance(of, _Hole) and name in ("strip", "lstrip", "rstrip")
            if isinstance(called, Macro) or not (strips or name in _CALLED):
                raise LookedIntoError
            return super().call(context, called, *given, **named)

    made = environment.overlay()
    made.__class__ = Tracing
    for name, known in (("filters", _FILTERS), ("tests", _TESTS)):
        there = getattr(environment, name)
        setattr(made, name, {x: there[x] if x in known else _refused for x in there})
    return made
