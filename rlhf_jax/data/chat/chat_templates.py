"""Renders conversations with a tokenizer's chat template, and gives it thoughts and tool calls as it takes them.

The text depends on the conversation and the settings alone: the date that a template asks for is fixed, too.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date, datetime, time
from typing import Any, NamedTuple

import jinja2

from rlhf_jax.data.chat.tools import OPENED, for_template
from rlhf_jax.data.records.left_out import RowError
from rlhf_jax.data.records.messages import THOUGHTS, ChatMessage
from rlhf_jax.data.templates import Handling
from rlhf_jax.errors import UserError

# The errors that templates raise when they are given something that they were not made for.
REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

# Only a literal format can be replaced before the template runs; any other use would read the clock itself,
# but for a test whether there is a clock ("strftime_now is defined"), and comments do nothing.
_CLOCK = re.compile(r"""\bstrftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
_HARMLESS = re.compile(r"\bstrftime_now\s+is\b|\{#[^#]*#\}")

# Both names are in use: Qwen 3's template reads the first, DeepSeek's the second.
NO_THOUGHTS = {"enable_thinking": False, "thinking": False}

# A noncharacter, which Unicode reserves for internal use, so no text should hold it.
MARK = "\ufdd2"
_NUMBERED = re.compile(f"{MARK}([0-9]+){MARK}")

Chat = Sequence[ChatMessage]
# Takes a conversation and add_generation_prompt, and returns the rendered text.
Render = Callable[..., str]


def render_chat(chat: Sequence[ChatMessage], tokenizer: Any, how: Handling, **options: Any) -> str:
    """Renders a conversation. Raises RowError with the template's own words where it refuses it.

    A template that asks for the time is told the beginning of the day `how.date`, so that it writes the same text
    in every call. Without thoughts it is asked for its prompt without thoughts, where it has one. The arguments of
    tool calls are given as objects, or as JSON texts to a template that only takes those.
    """
    if how.thoughts == "drop":
        options |= NO_THOUGHTS
    try:
        return _rendered(*for_template(chat), tokenizer, how, options)
    except REFUSALS as e:
        # Templates refuse with raise_exception. One that joins
        # arguments to a string (DeepSeek's) fails on objects.
        if any(message.get("tool_calls") for message in chat):
            with suppress(*REFUSALS):
                return _rendered(*for_template(chat, as_text=True), tokenizer, how, options)
        raise RowError(f"chat template: {' '.join(str(e).split())[:80]}") from e


def render_plain(
    chats: Sequence[Sequence[ChatMessage]], tokenizer: Any, how: Handling, **options: Any
) -> list[str | None]:
    """Renders conversations without tools, all in one call; None in place of each that the template refuses."""
    if how.thoughts == "drop":
        options |= NO_THOUGHTS
    given = [[m if OPENED not in m else _unmarked(m) for m in chat] for chat in chats]
    with suppress(*REFUSALS):
        found = _rendered(given, None, tokenizer, how, options)
        if isinstance(found, list) and len(found) == len(given):
            return found
    # Which one it was is not said, and there may be several.
    alone: list[str | None] = [None] * len(given)
    for i, chat in enumerate(given):
        with suppress(*REFUSALS):
            alone[i] = _rendered(chat, None, tokenizer, how, options)
    return alone


def _unmarked(message: ChatMessage) -> ChatMessage:
    return {name: x for name, x in message.items() if name != OPENED}


def _rendered(
    messages: list[Any], tools: list[Any] | None, tokenizer: Any, how: Handling, options: dict
) -> Any:
    template = template_of(tokenizer, how, tools)
    return tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, chat_template=template, **options
    )


def template_of(tokenizer: Any, how: Handling, tools: list[Any] | None = None) -> str:
    """The template that writes conversations. Errors of `REFUSALS` where there is none that could."""
    template = tokenizer.get_chat_template(how.chat_template or None, tools)
    # Llama 3.2 writes today's date: without this the same row would become other tokens tomorrow.
    return _at(how.date, template) if "strftime_now" in template else template


def _at(day: str, template: str) -> str:
    """Replaces each time that a template asks for by the beginning of a day; "" is today."""
    moment = datetime.combine(date.fromisoformat(day) if day else date.today(), time())
    found = _CLOCK.sub(lambda call: repr(moment.strftime(call[2])), template)
    if "strftime_now" in _HARMLESS.sub("", found):
        raise ValueError("it computes how it asks for the time, so the same text could not be written again")
    return found


def asks_for_the_date(tokenizer: Any) -> bool:
    """Whether a template of the tokenizer reads the clock."""
    found = getattr(tokenizer, "chat_template", None) or ""
    return "strftime_now" in (found if isinstance(found, str) else "".join(found.values()))


def check_template(tokenizer: Any, name: str, how: Handling) -> None:
    """Raises UserError when the tokenizer `name` has no chat template that can be used, or not the one asked for."""
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        raise UserError(
            f"template: chat is the tokenizer's own chat template, and {name} has none; use a chat model's "
            "tokenizer, or set tokenizer.chat_template to a Jinja text and save it to a new folder with "
            "save_pretrained, or use another template (alpaca, brief)"
        )
    names = sorted(found) if isinstance(found, dict) else []
    if how.chat_template and how.chat_template not in names:
        there = f"its templates are {', '.join(names)}" if names else "it has one without a name"
        raise UserError(f"data.chat_template: {name} has no {how.chat_template!r}; {there}")
    if names and not how.chat_template and "default" not in names:
        raise UserError(
            f"template: {name} has the chat templates {', '.join(names)} and no default; choose one with "
            f"--config.data.chat_template={names[0]}"
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"template: chat needs character offsets, which {name} does not give; save a fast tokenizer (one "
            "with tokenizer.json) with save_pretrained"
        )


# The thoughts of a reasoning model (its chain of thought):
# where records keep them, and how a template is given them.
#
# Records keep them in a field of the message (`reasoning_content`, `thinking`) or before the answer, as
# "<think>...</think>"; of a response that was sampled after an open "<think>" the first tag is missing.
# An answer may speak of the tags, too. So a closing tag without an opening one ends thoughts only where the
# template's generation prompt opens them, or where it stands alone on its line, as models write it.

OPEN, CLOSE = "<think>", "</think>"
_ALONE = re.compile(r"(?:^|\n)[ \t]*</think>[ \t]*(?:\n|$)")
UNOPENED_NOTE = f"text before a {CLOSE} without {OPEN} taken for thoughts (row kept)"
# How a turn's thoughts are given to a template, in the order in which the forms are tried.
VERBATIM, FIELDS, INLINE = "as the record has them", "as fields", f"as {OPEN}...{CLOSE}"


class Said(NamedTuple):
    """A turn of the assistant in two parts: its thoughts, "" for none, and the answer after them."""

    thoughts: str
    answer: str


def said_of(message: ChatMessage) -> Said:
    """Thoughts and answer of a message, wherever it keeps them."""
    for name in THOUGHTS:
        if message.get(name):
            return Said(message[name].strip("\n"), message["content"])
    text = message["content"]
    before, closed, answer = text.partition(CLOSE)
    if not closed or not (message.get(OPENED) or before.lstrip().startswith(OPEN) or _unopened(text)):
        return Said("", text)
    return Said(before.strip().removeprefix(OPEN).strip("\n"), answer.lstrip("\n"))


def _unopened(text: str) -> bool:
    """Whether a text has a closing tag alone on its line, and no tag before it."""
    found = _ALONE.search(text)
    return found is not None and not any(tag in text[: found.start()] for tag in (OPEN, CLOSE))


def opened(chat: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The same conversation for a template whose generation prompt opens the thoughts: every closing tag ends some."""
    return [m | {OPENED: True} if m["role"] == "assistant" else m for m in chat]


def unopened_note(chat: Sequence[ChatMessage], how: Handling) -> tuple[str, ...]:
    """The remark on a conversation of which a text is split off without the tag that says that it is thoughts."""
    # With other settings the template is given the text as it is.
    if how.thoughts == "keep" and how.generation_prompt != "sampling":
        return ()
    known = (OPENED, *THOUGHTS)
    turns = [m for m in chat if m["role"] == "assistant" and not any(m.get(name) for name in known)]
    return (UNOPENED_NOTE,) if any(_unopened(message["content"]) for message in turns) else ()


def kept(chat: Sequence[ChatMessage], which: str, *, prompt: bool = False) -> list[ChatMessage]:
    """Removes the thoughts that are not wanted; which: keep (all), drop (none), or last (of the last turn alone).

    prompt: the conversation ends with the user, so that its last turn is still to come.
    """
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    # In a prompt the last turn is still to be sampled, so every turn that is there is an earlier one.
    bare = set() if which == "keep" else set(turns if which == "drop" or prompt else turns[:-1])
    return [
        _bare(message, said_of(message).answer) if i in bare else message for i, message in enumerate(chat)
    ]


def inline(said: Said) -> str:
    """Joins thoughts and answer in one text, as reasoning models write them."""
    return f"{OPEN}\n{said.thoughts}\n{CLOSE}\n\n{said.answer}" if said.thoughts else said.answer


def continued(prompt: str, said: Said) -> str:
    """What a model writes after a generation prompt, which may have opened the thoughts already."""
    # DeepSeek R1's generation prompt ends with an open <think>; the model then writes no opening tag.
    if not prompt.rstrip().endswith(OPEN):
        return inline(said)
    return f"{said.thoughts}\n{CLOSE}\n\n{said.answer}"


def written(message: ChatMessage, form: str, marks: tuple[str, str] = ("", ""), trim=str) -> ChatMessage:
    """Writes a turn in one of the forms, with marks around its thoughts and around its answer."""
    said, (start, end) = said_of(message), marks
    if form == FIELDS and said.thoughts:
        # Under both names, because a template reads only the one it was written for.
        thoughts = f"{start}{said.thoughts}{end}"
        return _bare(message, f"{start}{trim(said.answer)}{end}") | dict.fromkeys(THOUGHTS, thoughts)
    if form == VERBATIM:
        return message | {"content": f"{start}{trim(message['content'])}{end}"}
    return _bare(message, f"{start}{trim(inline(said))}{end}")


def _bare(message: ChatMessage, content: str) -> ChatMessage:
    # The mark goes, too: what is left of the text is the answer, which may speak of the tags.
    return {name: x for name, x in message.items() if name not in (*THOUGHTS, OPENED)} | {"content": content}


# Turns that the model reads and does not write: whether the template wrote them.

SYSTEM_NOTE = "a system text that the chat template does not write (row kept)"
BESIDE_CALLS = "chat template leaves out what is said beside tool calls"
REWRITTEN_NOTE = "a text that the chat template writes otherwise (row kept)"
_WHO = {"user": "a turn of the user", "assistant": "a turn of the assistant"}


def marked_turns(chat: Chat, turns: Sequence[int]) -> tuple[dict[int, ChatMessage], list[ChatMessage]]:
    """Those of these turns that say something, by number, and the conversation with a mark behind each of them."""
    said = {i: chat[i] for i in turns if chat[i]["role"] in ("system", *_WHO) and chat[i]["content"].strip()}
    # What a turn says may stand elsewhere in the text by chance, so each has a mark with its number. It stands
    # behind the text: what is before it may be thoughts, which templates leave out of earlier turns.
    return said, [
        m | {"content": f"{m['content']}{MARK}{i}{MARK}"} if i in said else m for i, m in enumerate(chat)
    ]


def check_shown(chat: Chat, turns: Sequence[int], text: str, render: Render) -> tuple[str, ...]:
    """Raises RowError when one of these turns of the user or the assistant is missing in the conversation's text.

    Returns remarks, which cost no row: that a system text is missing, or a text is written otherwise.
    """
    said, marked = marked_turns(chat, turns)
    if not said:
        return ()
    written = {int(i) for i in _NUMBERED.findall(render(marked))}
    lost = [message for i, message in said.items() if i not in written]
    for message in lost:
        if message.get("tool_calls"):
            raise RowError(BESIDE_CALLS)
        if message["role"] != "system":
            raise RowError(f"{_WHO[message['role']]} that the chat template does not write")
    there = [read_text(m) for i, m in said.items() if i in written]
    notes = (SYSTEM_NOTE,) if lost else ()
    return notes if all(holds(text, x) for x in there) else (*notes, REWRITTEN_NOTE)


def read_text(message: ChatMessage) -> str:
    """What a template is to write of a turn that the model reads: of its own earlier turns the answer alone."""
    return said_of(message).answer if message["role"] == "assistant" else message["content"]


# Tool calls in a rendered conversation: whether the template wrote them, and where a turn with calls lies.
#
# Every template writes calls in a form of its own, so there is no text of the record to look for. An
# invisible mark before the name of each call shows where the calls of a turn begin. The turn itself begins
# where the prompt for sampling would end, and ends as the conversation ends that is cut after this turn.

NOT_WRITTEN = "tool calls that the chat template does not write"
TOOLS_NOTE = "tools that the chat template does not write (row kept)"


def check_tools(chat: Chat, text: str, render: Render) -> tuple[str, ...]:
    """Raises RowError when calls or answers of tools are missing in the text of a conversation.

    Returns the remark that their definitions are, which cost no row.
    """
    count = sum(len(message.get("tool_calls", ())) for message in chat)
    if count:
        marked = render(_with_calls(chat, name=lambda name: MARK + name))
        # Templates drop what they do not know in silence: so
        # all marks must come back, and nothing else may change.
        if marked.count(MARK) < count or marked.replace(MARK, "") != text:
            raise RowError(NOT_WRITTEN)
        bare = _with_calls(chat, arguments=lambda _: "{}")
        # Other arguments must give another text, or the template does not write them at all.
        if bare != list(chat) and render(bare) == text:
            raise RowError(f"{NOT_WRITTEN} with their arguments")
    if not all(holds(text, message["content"]) for message in chat if message["role"] == "tool"):
        raise RowError("answers of tools that the chat template does not write")
    if not any(message.get("tools") for message in chat):
        return ()
    without = [{name: x for name, x in message.items() if name != "tools"} for message in chat]
    return (TOOLS_NOTE,) if render(without) == text else ()


def call_span(chat: Chat, turn: int, text: str, opening: str, render: Render) -> tuple[int, int]:
    """Finds where in the text of a conversation a turn with calls lies, its end included.

    opening: what the template writes to have the assistant speak, "" when that is not known.
    """
    calls = len(chat[turn]["tool_calls"])
    marked = [*chat[:turn], *_with_calls(chat[turn : turn + 1], name=lambda name: MARK + name)]
    pieces = render([*marked, *chat[turn + 1 :]]).split(MARK)
    if len(pieces) <= calls or "".join(pieces) != text:
        raise RowError(NOT_WRITTEN)
    first, last = len(pieces[0]), len("".join(pieces[:calls]))
    # How the template ends the turn is seen where the conversation stops after it.
    tail = "".join(render(marked).rstrip().split(MARK)[calls:])
    if not text.startswith(tail, last):
        raise RowError("chat template ends tool calls otherwise within a conversation than at its end")
    start = _start(chat, turn, text, first, opening, render)
    if not holds(text[start:last], chat[turn]["content"].strip()):
        raise RowError(BESIDE_CALLS)
    return start, last + len(tail)


def _start(chat: Chat, turn: int, text: str, first: int, opening: str, render: Render) -> int:
    """Finds where the model takes over: right after the end of a prompt for sampling."""
    # The last opening before the calls is this turn's; earlier turns have one each.
    if opening and opening in text[:first]:
        return text.rindex(opening, 0, first) + len(opening)
    asked = render(chat[:turn], add_generation_prompt=True)
    if text[:first].startswith(asked):
        return len(asked)
    # The template may write earlier turns differently in the shorter text (Mistral puts the tools
    # before the last user turn), so only what follows the message before this turn is compared.
    before = chat[turn - 1] if turn else {"content": ""}
    for content in (before["content"], before["content"].strip()):
        marked = [*chat[: turn - 1], {**before, "content": content + MARK}]
        pieces = render([*marked, *chat[turn:]]).split(MARK)
        asked_pieces = render(marked, add_generation_prompt=True).split(MARK)
        if len(pieces) == len(asked_pieces) == 2 and "".join(pieces) == text:
            at = len(pieces[0])
            return at + _common(pieces[1][: first - at], asked_pieces[1])
    raise RowError("chat template does not show where a turn with tool calls begins")


def _common(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _with_calls(
    chat: Chat, *, name: Callable[[str], str] = str, arguments: Callable[[str], str] = str
) -> list[ChatMessage]:
    """Copies a conversation with its calls' names or arguments changed."""
    return [
        _with_call(message, name, arguments) if message.get("tool_calls") else message for message in chat
    ]


def _with_call(
    message: ChatMessage, name: Callable[[str], str], arguments: Callable[[str], str]
) -> ChatMessage:
    def changed(call: dict[str, Any]) -> dict[str, Any]:
        called = call["function"]
        return {
            **call,
            "function": {"name": name(called["name"]), "arguments": arguments(called["arguments"])},
        }

    return {**message, "tool_calls": [changed(call) for call in message["tool_calls"]]}


def holds(text: str, content: str) -> bool:
    """Whether a text holds another, as it is or within JSON."""
    # Llama 3.1's template writes answers of tools as JSON, in which quotes and line breaks are escaped.
    said = content.strip()
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text
