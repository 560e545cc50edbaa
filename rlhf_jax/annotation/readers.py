"""From what a provider sent to an `Answer`: one reader for each protocol a judge may speak (`JudgeSpec.api`)."""

import json
import math
from dataclasses import fields
from typing import Any

from rlhf_jax.annotation.answers import Answer, Usage
from rlhf_jax.annotation.retries import Retryable


def read_answer(api: str, response: Any) -> Answer:
    """The Answer in a response with status 200: an HTTP response, or a payload out of a batch's results.

    Errors: Retryable with the usage, if the provider told it, for what cannot be understood.
    """
    payload = None
    try:
        payload = response if isinstance(response, dict) else response.json()
        return Answer(**_READERS[api](payload))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        usage = _usage(api, payload)
        said = f"malformed answer ({type(error).__name__})"
        raise Retryable(said, usage=usage, may_cost=usage is None) from None


def _usage(api: str, payload: object) -> Usage | None:
    """The tokens of an answer that is otherwise of no use."""
    try:
        tokens = _TOKENS[api](payload["usage"])
    except (KeyError, TypeError, AttributeError):
        return None
    counts = [tokens[field.name] for field in fields(Usage)]
    known = all(count is None or isinstance(count, int) for count in counts)
    return Usage(*counts) if known and None not in (counts[0], counts[2]) else None


def _read_chat(payload: dict) -> dict:
    choice = payload["choices"][0]
    message = choice["message"]
    content = (choice.get("logprobs") or {}).get("content")
    return _chat_tokens(payload.get("usage") or {}) | {
        "text": _text(message.get("content") or message.get("refusal") or ""),
        "finish_reason": choice.get("finish_reason") or "stop",
        "refusal": "refusal" if message.get("refusal") else None,
        "top_logprobs": _top_logprobs(content),
        "model": payload.get("model") or "",
        "system_fingerprint": payload.get("system_fingerprint"),
        "request_id": payload.get("id"),
    }


def _chat_tokens(usage: dict) -> dict:
    return {
        "tokens_in": usage.get("prompt_tokens"),
        "tokens_cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        "tokens_out": usage.get("completion_tokens"),
        "tokens_reasoning": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
        "tokens_cache_write": None,
    }


def _read_responses(payload: dict) -> dict:
    """OpenAI's responses: the parts of its messages, and why it stopped if it is not complete."""
    parts = [part for item in payload["output"] if item["type"] == "message" for part in item["content"]]
    refusals = [_text(part["refusal"]) for part in parts if part["type"] == "refusal"]
    texts = [_text(part["text"]) for part in parts if part["type"] == "output_text"]
    logprobs = [token for part in parts for token in part.get("logprobs") or ()]
    if payload.get("status") == "failed":
        raise ValueError("the response says that it failed")
    stopped = (payload.get("incomplete_details") or {}).get("reason") or "stop"
    return _io_tokens(payload.get("usage") or {}) | {
        "text": "".join(texts or refusals),
        "finish_reason": {"max_output_tokens": "length"}.get(stopped, stopped),
        "refusal": "refusal" if refusals else None,
        "top_logprobs": _top_logprobs(logprobs),
        "model": payload.get("model") or "",
        "request_id": payload.get("id"),
    }


def _read_decisions(payload: dict) -> dict:
    """OpenAI's decisions: the text is the verdict (of several questions a JSON list of them).

    The probabilities stand where log-probabilities do, a position for each question.
    """
    answers = payload["answers"]
    verdicts = [None if a["type"] == "refusal" else a[_VERDICTS[a["type"]]] for a in answers]
    if not answers:
        raise ValueError("no answers")
    return _io_tokens(payload.get("usage") or {}) | {
        "text": _decided(verdicts[0]) if len(verdicts) == 1 else json.dumps(verdicts),
        "refusal": "refusal" if all(verdict is None for verdict in verdicts) else None,
        "top_logprobs": tuple(_as_logprobs(answer) for answer in answers),
        "model": payload.get("model") or "",
        "request_id": payload.get("id"),
    }


_VERDICTS = {"choice": "choice", "score": "score", "predicate": "probability"}


def _decided(verdict: object) -> str:
    return "" if verdict is None else verdict if isinstance(verdict, str) else json.dumps(verdict)


def _as_logprobs(answer: dict) -> tuple:
    if answer["type"] == "predicate":
        yes = float(answer["probability"])
        pairs = [("yes", yes), ("no", 1.0 - yes)]
    else:
        # A choice has values; a score has levels, whose labels are what was asked for.
        shares = answer.get("probabilities") or ()
        pairs = [(_decided(p.get("label", p["value"])), float(p["probability"])) for p in shares]
    return tuple((value, math.log(p)) for value, p in pairs if p > 0.0)


def _io_tokens(usage: dict) -> dict:
    return {
        "tokens_in": usage.get("input_tokens"),
        "tokens_cached": (usage.get("input_tokens_details") or {}).get("cached_tokens"),
        "tokens_out": usage.get("output_tokens"),
        "tokens_reasoning": (usage.get("output_tokens_details") or {}).get("reasoning_tokens"),
        "tokens_cache_write": None,
    }


def _top_logprobs(content: list | None) -> tuple | None:
    if not content:
        return None
    return tuple(
        tuple((top["token"], float(top["logprob"])) for top in token.get("top_logprobs") or ())
        for token in content
    )


def _read_messages(payload: dict) -> dict:
    stopped = payload.get("stop_reason") or "end_turn"
    details = payload.get("stop_details") or {}
    return _messages_tokens(payload.get("usage") or {}) | {
        "text": _text("".join(block["text"] for block in payload["content"] if block["type"] == "text")),
        "finish_reason": stopped,
        "refusal": (details.get("category") or "refusal") if stopped == "refusal" else None,
        "model": payload.get("model") or "",
        "request_id": payload.get("id"),
    }


def _messages_tokens(usage: dict) -> dict:
    counts = [usage.get(f"{kind}input_tokens") for kind in ("", "cache_read_", "cache_creation_")]
    return {
        "tokens_in": None if counts[0] is None else sum(count or 0 for count in counts),
        "tokens_cached": counts[1],
        "tokens_out": usage.get("output_tokens"),
        "tokens_reasoning": (usage.get("output_tokens_details") or {}).get("thinking_tokens"),
        "tokens_cache_write": counts[2],
    }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the answer's text is {type(value).__name__}")
    return value


_READERS = {
    "chat": _read_chat,
    "responses": _read_responses,
    "decisions": _read_decisions,
    "messages": _read_messages,
}
_TOKENS = {
    "chat": _chat_tokens,
    "responses": _io_tokens,
    "decisions": _io_tokens,
    "messages": _messages_tokens,
}
