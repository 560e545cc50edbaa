"""The two protocols of the judge server as pure functions: OpenAI's chat completions, Anthropic's messages.

Each vendor is three functions: read a request body (or raise `ApiError`), write an answer body, write an
error body. Shapes and names follow the public APIs as their Python SDKs (openai 3, anthropic 2) parse them.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

from rlhf_jax.microfarm.judges.judge_answers import JudgeAnswer, count_tokens

# From this version on Anthropic's endpoint refuses sampling parameters, even at their defaults.
ANTHROPIC_NO_SAMPLING = "2026-10-21"


class ApiError(Exception):
    """An error a vendor would answer with. `kind` is the vendor-neutral name; `code`/`param` are OpenAI's."""

    def __init__(
        self, status: int, message: str, *, kind: str = "", code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or "invalid_request_error"
        self.code = code
        self.param = param


@dataclass(frozen=True)
class Request:
    """A vendor-neutral request. `text` is what the judge reads, `key` tells this request from others."""

    model: str
    text: str
    key: str
    prompt_tokens: int
    temperature: float
    seed: int | None = None
    max_tokens: int | None = None
    top_logprobs: int | None = None  # None: no logprobs wanted


def unknown_model(model: str) -> ApiError:
    """The 404 both vendors give for a model name they do not have."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, kind="not_found_error", code="model_not_found", param="model")


# OpenAI: its error codes and the wording of its errors, as clients see them from the real API.


def read_openai(body: Any) -> Request:
    """Check a POST /v1/chat/completions body. Raises `ApiError` 400 naming the field."""
    model, messages = (
        _field(body, "model", str),
        _messages(body, {"system", "developer", "user", "assistant", "tool"}),
    )
    if body.get("n") not in (None, 1):
        raise ApiError(400, "Unsupported value: 'n' must be 1 here.", param="n", code="unsupported_value")
    if body.get("stream"):
        raise ApiError(
            400, "Unsupported value: 'stream' must be false here.", param="stream", code="unsupported_value"
        )
    # max_tokens is the older name of the same limit; the API refuses both together.
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(limits) == 2:
        raise ApiError(
            400, "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        )
    top = body.get("top_logprobs")
    if top is not None and not body.get("logprobs"):
        raise ApiError(400, "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    temperature = body.get("temperature")
    return Request(
        model=model,
        **_texts(messages),
        temperature=1.0 if temperature is None else _number(temperature, "temperature", 0.0, 2.0),
        seed=None if body.get("seed") is None else _integer(body["seed"], "seed", -(2**63), 2**63),
        max_tokens=_integer(limits[0], "max_tokens", 1, 10**9) if limits else None,
        top_logprobs=_integer(top or 0, "top_logprobs", 0, 20) if body.get("logprobs") else None,
    )


def write_openai(request: Request, answer: JudgeAnswer, serial: str) -> dict[str, Any]:
    """The body of a chat completion: message, finish_reason, logprobs where asked for, usage."""
    refusal = answer.refusal
    logprobs = None
    if request.top_logprobs is not None and refusal is None:
        logprobs = {"content": _openai_logprobs(answer, request.top_logprobs), "refusal": None}
    message = {
        "role": "assistant",
        # A refusal leaves the content null and has a field of its own; clients that read only content must
        # cope.
        "content": None if refusal else answer.text,
        "refusal": refusal,
        "annotations": [],
    }
    completion_tokens = answer.n_tokens
    return {
        "id": f"chatcmpl-{serial}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": "length" if answer.is_cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": request.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_microfarm_1",
    }


def _openai_logprobs(answer: JudgeAnswer, top: int) -> list[dict[str, Any]]:
    content = []
    for token, distribution in answer.tokens():
        entry = _logprob(token, dict(distribution)[token])
        entry["top_logprobs"] = [_logprob(*alternative) for alternative in distribution[:top]]
        content.append(entry)
    return content


def _logprob(token: str, probability: float) -> dict[str, Any]:
    return {"token": token, "logprob": math.log(probability), "bytes": list(token.encode())}


def openai_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """OpenAI's error body; the request id travels in a header there."""
    kind = "invalid_request_error" if error.status in (400, 401, 404) else error.kind
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


# Anthropic: a version in a header, a date, decides which fields a request may have.


def read_anthropic(body: Any, version: str) -> Request:
    """Check a POST /v1/messages body sent under the `anthropic-version` header `version`."""
    if not version:
        raise ApiError(400, "anthropic-version: header is required")
    model, messages = _field(body, "model", str), _messages(body, {"user", "assistant"})
    if body.get("stream"):
        raise ApiError(400, "stream: must be false here")
    if "max_tokens" not in body:
        raise ApiError(400, "max_tokens: Field required")
    sampling = [name for name in ("temperature", "top_p", "top_k") if name in body]
    # Versions are ISO dates, which compare rightly as text.
    if sampling and version >= ANTHROPIC_NO_SAMPLING:
        raise ApiError(
            400, f"{sampling[0]}: Extra inputs are not permitted under anthropic-version {version}"
        )
    if body.get("system"):
        messages = [{"role": "system", "content": body["system"]}, *messages]
    return Request(
        model=model,
        **_texts(messages),
        # Without the parameter the judge samples from its own distribution, as the real endpoint does.
        temperature=_number(body.get("temperature", 1.0), "temperature", 0.0, 1.0),
        max_tokens=_integer(body["max_tokens"], "max_tokens", 1, 10**9),
    )


def write_anthropic(request: Request, answer: JudgeAnswer, serial: str) -> dict[str, Any]:
    """The body of a message: content blocks, stop_reason, usage."""
    refusal = answer.refusal
    stop_reason = "refusal" if refusal else "max_tokens" if answer.is_cut else "end_turn"
    return {
        "id": f"msg_{serial}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": []
        if refusal or not answer.text
        else [{"type": "text", "text": answer.text, "citations": None}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "stop_details": {"type": "refusal", "category": "frontier_llm", "explanation": refusal}
        if refusal
        else None,
        "usage": {
            "input_tokens": request.prompt_tokens,
            "output_tokens": answer.n_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "service_tier": "standard",
        },
    }


def anthropic_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """Anthropic's error body."""
    return {
        "type": "error",
        "error": {"type": error.kind, "message": error.message},
        "request_id": request_id,
    }


def _field(body: Any, name: str, kind: type) -> Any:
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    if name not in body:
        raise ApiError(
            400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
        )
    if not isinstance(body[name], kind):
        raise ApiError(400, f"Invalid type for '{name}'.", param=name, code="invalid_type")
    return body[name]


def _messages(body: Any, roles: set[str]) -> list[dict[str, Any]]:
    messages = _field(body, "messages", list)
    if not messages:
        raise ApiError(400, "Invalid 'messages': empty array.", param="messages", code="empty_array")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in roles:
            message = f"Invalid 'messages[{i}].role'; expected one of {', '.join(sorted(roles))}."
            raise ApiError(400, message, param=f"messages[{i}].role", code="invalid_value")
    return messages


def _texts(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the text that the judge reads, the key that is hashed, and the number of prompt tokens.

    The judge does not read its own earlier turns, but they are part of the key.
    """
    turns = [(message["role"], _flatten(message.get("content"), i)) for i, message in enumerate(messages)]
    return {
        "text": "\n\n".join(text for role, text in turns if role != "assistant"),
        "key": "\x1e".join(f"{role}\x1f{text}" for role, text in turns),
        # Each turn costs a few tokens of chat format beside its text.
        "prompt_tokens": 3 + sum(4 + count_tokens(text) for _, text in turns),
    }


def _flatten(content: Any, i: int) -> str:
    """A message's content as one text: a string, or a list of text blocks."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(b, dict) and isinstance(b.get("text"), str) for b in content
    ):
        return "\n".join(block["text"] for block in content)
    raise ApiError(400, f"Invalid 'messages[{i}].content': text only.", param=f"messages[{i}].content")


def _number(value: Any, name: str, low: float, high: float) -> float:
    # bool is a subclass of int in Python, but true is no number in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(
            400, f"Invalid '{name}': expected a number from {low} to {high}, got {value!r}.", param=name
        )
    return float(value)


def _integer(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(
            400, f"Invalid '{name}': expected an integer from {low} to {high}, got {value!r}.", param=name
        )
    return value
