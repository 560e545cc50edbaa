"""Calls of tools in the text that a chat template makes of a conversation: that they are there, and where a turn lies.

A template writes a call in a form of its own, so there is no text of the record's to look for. An invisible mark before
the name of each call shows where the calls of a turn begin. The turn itself begins where the prompt for sampling
would end, and ends as the conversation cut after this turn ends.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data.left_out import RowError
from rlhf_jax.data.messages import ChatMessage

MARK = "\ufdd2"  # Unicode keeps it for uses like ours.
NOT_WRITTEN = "tool calls that the chat template does not write"
TOOLS_NOTE = "tools that the chat template does not write (row kept)"

Chat = Sequence[ChatMessage]
Render = Callable[..., str]  # A conversation, add_generation_prompt -> its text.


def check_tools(chat: Chat, text: str, render: Render) -> tuple[str, ...]:
    """Raises RowError when calls or answers of tools are missing in the text of a conversation.

    Returns the remark that their definitions are, which cost no row.
    """
    count = sum(len(message.get("tool_calls", ())) for message in chat)
    if count:
        marked = render(_with_calls(chat, name=lambda name: MARK + name))
        if marked.count(MARK) < count or marked.replace(MARK, "") != text:
            raise RowError(NOT_WRITTEN)
        bare = _with_calls(chat, arguments=lambda _: "{}")
        if bare != list(chat) and render(bare) == text:
            raise RowError(f"{NOT_WRITTEN} with their arguments")
    if not all(_holds(text, message["content"]) for message in chat if message["role"] == "tool"):
        raise RowError("answers of tools that the chat template does not write")
    if not any(message.get("tools") for message in chat):
        return ()
    without = [{name: x for name, x in message.items() if name != "tools"} for message in chat]
    return (TOOLS_NOTE,) if render(without) == text else ()


def call_span(chat: Chat, turn: int, text: str, opening: str, render: Render) -> tuple[int, int]:
    """Where in the text of a conversation a turn with calls lies, its end included.

    opening: what the template writes to have the assistant speak, "" when that is not known.
    """
    calls = len(chat[turn]["tool_calls"])
    marked = [*chat[:turn], *_with_calls(chat[turn : turn + 1], name=lambda name: MARK + name)]
    pieces = render([*marked, *chat[turn + 1 :]]).split(MARK)
    if len(pieces) <= calls or "".join(pieces) != text:
        raise RowError(NOT_WRITTEN)
    first, last = len(pieces[0]), len("".join(pieces[:calls]))
    tail = "".join(render(marked).rstrip().split(MARK)[calls:])
    if not text.startswith(tail, last):
        raise RowError("chat template ends tool calls otherwise within a conversation than at its end")
    start = _start(chat, turn, text, first, opening, render)
    if not _holds(text[start:last], chat[turn]["content"].strip()):
        raise RowError("chat template leaves out what is said beside tool calls")
    return start, last + len(tail)


def _start(chat: Chat, turn: int, text: str, first: int, opening: str, render: Render) -> int:
    """Where the model takes over: behind what a prompt for sampling ends with."""
    if opening and opening in text[:first]:
        return text.rindex(opening, 0, first) + len(opening)
    asked = render(chat[:turn], add_generation_prompt=True)
    if text[:first].startswith(asked):
        return len(asked)
    # Other turns may stand otherwise in the shorter text. What follows the message before is compared alone.
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
    """Characters at the beginning that are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _with_calls(
    chat: Chat, *, name: Callable[[str], str] = str, arguments: Callable[[str], str] = str
) -> list[ChatMessage]:
    """The conversation with other names or arguments of its calls."""
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


def _holds(text: str, content: str) -> bool:
    """Whether a text holds another, as it is or within JSON."""
    said = content.strip()
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text
