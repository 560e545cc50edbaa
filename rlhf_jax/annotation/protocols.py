"""From a provider's answer, as JSON, to the fields of an `Answer`: one reader per protocol.

Errors: KeyError, IndexError, TypeError, ValueError or AttributeError when the answer is not what the protocol
says; the caller names that a malformed answer.
"""

import json
from collections.abc import Callable

PATHS = {
    "chat": "/chat/completions",
    "responses": "/responses",
    "decisions": "/decisions",
    "messages": "/v1/messages",
}


def _chat(payload: dict) -> dict:
    choice = payload["choices"][0]
    message, usage = choice["message"], payload.get("usage") or {}
    content = (choice.get("logprobs") or {}).get("content")
    return {
        "text": _text(message.get("content") or message.get("refusal") or ""),
        "finish_reason": choice.get("finish_reason") or "stop",
        "refusal": "refusal" if message.get("refusal") else None,
        "top_logprobs": _top_logprobs(content),
        "model": payload.get("model") or "",
        "tokens_in": usage.get("prompt_tokens"),
        "tokens_cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        "tokens_out": usage.get("completion_tokens"),
        "tokens_reasoning": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
        "system_fingerprint": payload.get("system_fingerprint"),
        "request_id": payload.get("id"),
    }


def _responses(payload: dict) -> dict:
    if payload.get("status") not in ("completed", "incomplete"):
        raise ValueError(f"the response's status is {payload.get('status')!r}")
    parts = [part for item in payload["output"] if item["type"] == "message" for part in item["content"]]
    said = [part for part in parts if part["type"] == "output_text"]
    refused = [part["refusal"] for part in parts if part["type"] == "refusal"]
    # With a limit reached while reasoning there is no message at all, but always a reason.
    reason = (payload.get("incomplete_details") or {}).get("reason") or "stop"
    return {
        "text": _text("".join(part["text"] for part in said) or "".join(refused)),
        "finish_reason": reason,
        "refusal": "refusal" if refused else None,
        "top_logprobs": _top_logprobs([token for part in said for token in part.get("logprobs") or ()]),
        "model": payload.get("model") or "",
        **_input_output_usage(payload),
        "request_id": payload.get("id"),
    }


def _decisions(payload: dict) -> dict:
    answers = payload["answers"]
    if not isinstance(answers, list):
        raise TypeError(f"the answers are {type(answers).__name__}")
    return {
        "text": json.dumps(answers, sort_keys=True),
        "model": payload.get("model") or "",
        **_input_output_usage(payload),
        "request_id": payload.get("id"),
    }


def _input_output_usage(payload: dict) -> dict:
    usage = payload.get("usage") or {}
    return {
        "tokens_in": usage.get("input_tokens"),
        "tokens_cached": (usage.get("input_tokens_details") or {}).get("cached_tokens"),
        "tokens_out": usage.get("output_tokens"),
        "tokens_reasoning": (usage.get("output_tokens_details") or {}).get("reasoning_tokens"),
    }


def _top_logprobs(content: list | None) -> tuple | None:
    if not content:
        return None
    return tuple(
        tuple((top["token"], float(top["logprob"])) for top in token.get("top_logprobs") or ())
        for token in content
    )


def _messages(payload: dict) -> dict:
    usage = payload.get("usage") or {}
    stopped = payload.get("stop_reason") or "end_turn"
    details = payload.get("stop_details") or {}
    counts = [usage.get(f"{kind}input_tokens") for kind in ("", "cache_read_", "cache_creation_")]
    return {
        "text": _text("".join(block["text"] for block in payload["content"] if block["type"] == "text")),
        "finish_reason": stopped,
        "refusal": (details.get("category") or "refusal") if stopped == "refusal" else None,
        "model": payload.get("model") or "",
        "tokens_in": None if counts[0] is None else sum(count or 0 for count in counts),
        "tokens_cached": counts[1],
        "tokens_out": usage.get("output_tokens"),
        "tokens_reasoning": (usage.get("output_tokens_details") or {}).get("thinking_tokens"),
        "request_id": payload.get("id"),
    }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the answer's text is {type(value).__name__}")
    return value


READERS: dict[str, Callable[[dict], dict]] = {
    "chat": _chat,
    "responses": _responses,
    "decisions": _decisions,
    "messages": _messages,
}
