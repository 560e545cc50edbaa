"""A conversation -> text by a tokenizer's chat template, with nothing read but the conversation and the settings."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, time
from typing import Any

import jinja2

from rlhf_jax.data.handling import Handling
from rlhf_jax.data.left_out import RowError
from rlhf_jax.data.messages import ChatMessage
from rlhf_jax.data.tools import for_template
from rlhf_jax.errors import UserError

# What templates do that are given something they were not made for.
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

_ASKED = re.compile(r"\bstrftime_now\s*\(")
_CLOCK = re.compile(r"""\bstrftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")


def render_chat(chat: Sequence[ChatMessage], tokenizer: Any, how: Handling, **options: Any) -> str:
    """The text of a conversation. Raises RowError with the template's own words where it refuses it.

    A template that asks for the time is told the beginning of the day `how.date`, so that it writes the same text
    in every call. Without thoughts it is asked for its prompt without thoughts, where it has one. The arguments of
    tool calls are given as objects, or as JSON texts to a template that only takes those.
    """
    if how.thoughts == "drop":
        options |= {"enable_thinking": False, "thinking": False}
    try:
        return _rendered(*for_template(chat), tokenizer, how, options)
    except _REFUSALS as e:  # templates refuse with raise_exception
        if any(message.get("tool_calls") for message in chat):
            with suppress(*_REFUSALS):
                return _rendered(*for_template(chat, as_text=True), tokenizer, how, options)
        raise RowError(f"chat template: {' '.join(str(e).split())[:80]}") from e


def _rendered(
    messages: list[ChatMessage], tools: list[Any] | None, tokenizer: Any, how: Handling, options: dict
) -> str:
    template = tokenizer.get_chat_template(how.chat_template or None, tools)
    if "strftime_now" in template:
        template = _at(how.date, template)
    return tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, chat_template=template, **options
    )


def _at(day: str, template: str) -> str:
    """A template in which every time it asks for is that of the beginning of a day."""
    moment = datetime.combine(date.fromisoformat(day) if day else date.today(), time())
    found = _CLOCK.sub(lambda call: repr(moment.strftime(call[2])), template)
    if _ASKED.search(found):
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
