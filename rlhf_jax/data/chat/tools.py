"""Tools: their definitions, calls and answers, as records keep them and as chat templates take them.

In our records definitions and arguments are JSON texts, which every table can hold: as objects, a parquet file would
give each of them the fields of all others. Definitions stand in the field `tools` of a conversation's first
message, so that they go wherever the conversation goes. `for_template` makes objects of both.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.records.left_out import RowError, has_content

# Roles in ShareGPT's manner, where a call is a turn of its own whose content is the call as JSON.
CALL_ROLES = ("function_call", "tool_call")
# What published files call the role of a tool's answer; ipython is Llama 3's name.
ANSWER_ROLES = ("tool", "function", "ipython", "observation", "function_response", "tool_response")
CALL_FIELDS = ("tool_calls", "function_call")
ANSWER_FIELDS = ("name", "tool_call_id")
DEFINITIONS = ("tools", "functions")
# A mark of our own on a message, see `chat_templates.opened`.
OPENED = "opened"
NEED_CHAT = "tool calls, which data.template=chat writes where the model's chat template can"

Message = Mapping[str, Any]


def definitions(value: Any) -> str:
    """Converts definitions of tools of any known form to a JSON text of the form that templates take; "" for none."""
    found = _from_json(value, "unreadable tools")
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list):
        raise RowError("unreadable tools")
    found = [_definition(_from_json(one, "unreadable tools")) for one in found]
    return _text(found, "tools") if found else ""


def _definition(one: Any) -> Any:
    if not isinstance(one, Mapping):
        raise RowError("unreadable tools")
    one = _without_nulls(one)
    # OpenAI's form wraps the definition; its older one, `functions`, had it bare.
    if "function" in one or "type" in one:
        return one
    if not isinstance(one.get("name"), str):
        raise RowError("tools without a name")
    return {"type": "function", "function": one}


def calls_of(message: Message, unused: set[str] | None = None) -> list[dict[str, Any]]:
    """Returns the calls in a message's `tool_calls` or, as OpenAI's older form has it, `function_call`.

    unused: gets the name of what is not used of them.
    """
    for name in CALL_FIELDS:
        if has_content(message.get(name)):
            return calls_in(message[name], unused)
    return []


def calls_in(value: Any, unused: set[str] | None = None) -> list[dict[str, Any]]:
    """Converts one call or several, given as objects or as JSON, to the form in which records keep them."""
    found = _from_json(value, "tool calls that are not JSON")
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list) or not found:
        raise RowError("tool calls that are not objects")
    return [_call(_from_json(one, "tool calls that are not JSON"), unused) for one in found]


def _call(one: Any, unused: set[str] | None) -> dict[str, Any]:
    if not isinstance(one, Mapping):
        raise RowError("tool calls that are not objects")
    if one.get("type") not in (None, "function"):
        raise RowError(f"tool calls of type {str(one['type'])[:40]!r}")
    called = one["function"] if isinstance(one.get("function"), Mapping) else one
    # Llama 3.1 writes its calls with `parameters` instead of `arguments`.
    name, arguments = called.get("name"), called.get("arguments", called.get("parameters"))
    if not isinstance(name, str) or not name:
        raise RowError("tool calls without a name")
    if isinstance(arguments, str):
        arguments = _from_json(arguments or "{}", "arguments of tool calls that are not JSON")
    elif isinstance(arguments, Mapping):
        # A parquet file gives each object the fields of all others, filled with null,
        # so nobody knows which nulls were meant. They are left out, and that is said.
        whole, arguments = arguments, _without_nulls(arguments)
        if unused is not None and arguments != whole:
            unused.add("null arguments of tool_calls")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise RowError("arguments of tool calls that are not an object")
    named = {"id": one["id"]} if isinstance(one.get("id"), str) and one["id"] else {}
    return named | {
        "type": "function",
        "function": {"name": name, "arguments": _text(arguments, "tool calls")},
    }


def text_of(calls: Sequence[Message]) -> str:
    """Writes calls as plain text, only to tell them from other calls; templates write their own form."""
    return "\n".join(f"{call['function']['name']} {call['function']['arguments']}" for call in calls)


def for_template(
    chat: Sequence[Message], *, as_text: bool = False
) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Converts a conversation to what templates take: (messages, definitions of its tools or None).

    as_text: arguments as JSON texts, which some templates want; by default as objects.
    """
    tools = next((m["tools"] for m in chat if m.get("tools")), "")
    messages = []
    for message in chat:
        shown = {name: x for name, x in message.items() if name not in ("tools", OPENED)}
        if calls := message.get("tool_calls"):
            shown["tool_calls"] = calls if as_text else [_as_object(call) for call in calls]
        messages.append(shown)
    return messages, json.loads(tools) if tools else None


def _as_object(call: Message) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def _from_json(value: Any, reason: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise RowError(reason) from e


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(x) for name, x in value.items() if x is not None}
    return [_without_nulls(x) for x in value] if isinstance(value, list) else value


def _text(value: Any, what: str) -> str:
    try:
        # NaN is not JSON: a model trained on it would write calls that no parser reads.
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise RowError(f"{what} hold what JSON cannot") from e
