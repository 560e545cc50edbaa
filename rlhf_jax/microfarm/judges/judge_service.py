"""The judge server's routes: checks the key, asks the judge, adds rate-limit headers, fakes faults.

A fault is asked for in the model's name, "micro-judge-clean:ratelimit", so a test needs no other channel:

    nonsense    always an answer without a verdict
    refuse      always a refusal, in the field the protocol has for it
    slow        answers after `SLOW_SECONDS`
    ratelimit   429 with Retry-After the first time each distinct request comes, then answers
    flaky       500 the first time each distinct request comes, then answers
    error500    always 500
    drop        closes the connection without an answer

Apart from the answer itself ("nonsense", "refuse") a faulty judge says what the judge of the plain name says.
"""

import hashlib
import itertools
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlhf_jax.microfarm.judges import judge_answers, judge_protocols
from rlhf_jax.microfarm.judges.judge_eyes import JUDGES
from rlhf_jax.microfarm.judges.judge_protocols import ApiError, Request

FAULTS = ("nonsense", "refuse", "slow", "ratelimit", "flaky", "error500", "drop")
SLOW_SECONDS = 2.0
RETRY_AFTER_SECONDS = 1.0
BAD_KEY = "bad-key"
# The models that are no judges but follow instructions, each with whether it always does so as well as it can.
WRITERS = {"micro-writer": False, "micro-writer-strong": True}
HUMAN = judge_answers.HUMAN.name

# Per minute; shown in headers so that a client's limiter has something to read, never enforced.
REQUESTS_PER_MINUTE = 100_000
TOKENS_PER_MINUTE = 100_000_000


@dataclass
class ServedReply:
    """What goes back over the wire. `delay` in seconds; `drop` closes the connection instead of answering."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False


@dataclass
class Service:
    """Answers requests. Holds only counters: the answers themselves depend on nothing but the request."""

    counts: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)
    window: list[float] = field(default_factory=lambda: [0.0, 0, 0])  # start, requests, tokens
    serial: itertools.count = field(default_factory=lambda: itertools.count(1))

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> ServedReply:
        """Answer one HTTP request; header names are lower case. Never raises for what a client sends."""
        serial = f"micro{next(self.serial):08d}"
        path = path.partition("?")[0].rstrip("/") or "/"
        is_anthropic = path == "/v1/messages" or "anthropic-version" in headers
        try:
            reply = self._route(method, path, headers, body, serial)
        # A bug of ours becomes a 500 too: an exception here would drop the client's connection without a
        # word.
        except Exception as caught:
            error = _as_api_error(caught)
            write_error = judge_protocols.anthropic_error if is_anthropic else judge_protocols.openai_error
            reply = ServedReply(error.status, write_error(error, f"req_{serial}"))
            if error.status == 429:
                reply.headers["retry-after"] = f"{RETRY_AFTER_SECONDS:g}"
        self.counts[f"status {reply.status}"] += 1
        reply.headers["request-id" if is_anthropic else "x-request-id"] = f"req_{serial}"
        if path != "/stats":
            reply.headers |= self._limits(is_anthropic)
        return reply

    def _route(
        self, method: str, path: str, headers: dict[str, str], body: bytes, serial: str
    ) -> ServedReply:
        # Before the key is checked: the counts are for the tests and the parent process.
        if path == "/stats":
            return ServedReply(200, dict(self.counts))
        _check_key(headers)
        if path == "/v1/models" and method == "GET":
            names = [*JUDGES, HUMAN, *WRITERS]
            page = {"object": "list", "data": [_model(name) for name in names], "has_more": False}
            return ServedReply(200, page | {"first_id": names[0], "last_id": names[-1]})
        if path.startswith("/v1/models/") and method == "GET":
            name = path.removeprefix("/v1/models/")
            _split(name)
            return ServedReply(200, _model(name))
        if path == "/v1/chat/completions" and method == "POST":
            request = judge_protocols.read_openai(_json(body))
            return self._answer(request, partial(judge_protocols.write_openai, request, serial=serial))
        if path == "/v1/messages" and method == "POST":
            request = judge_protocols.read_anthropic(_json(body), headers.get("anthropic-version", ""))
            return self._answer(request, partial(judge_protocols.write_anthropic, request, serial=serial))
        message = f"Unknown request URL: {method} {path}."
        raise ApiError(404, message, kind="not_found_error", code="unknown_url")

    def _answer(self, request: Request, write: Callable[..., dict[str, Any]]) -> ServedReply:
        name, fault = _split(request.model)
        self.counts["requests"] += 1
        self.counts[f"model {request.model}"] += 1
        if fault == "error500" or (fault == "flaky" and self._is_new(request)):
            raise ApiError(500, "The server had an error while processing your request.", kind="api_error")
        if fault == "ratelimit" and self._is_new(request):
            message = f"Rate limit reached for {request.model}. Please try again in {RETRY_AFTER_SECONDS:g}s."
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded")
        if fault == "drop":
            return ServedReply(500, {}, drop=True)
        if fault == "refuse":
            answer = judge_answers.refuse()
        elif fault == "nonsense":
            answer = judge_answers.nonsense(name, request.key)
        elif name in WRITERS:
            stamp = (request.key, str(request.seed))
            answer = judge_answers.write_answer(request.text, *stamp, excellent=WRITERS[name])
        else:
            options = {"key": request.key, "temperature": request.temperature, "seed": request.seed}
            judge = JUDGES.get(name, judge_answers.HUMAN)
            answer = judge_answers.answer_question(judge, request.text, **options)
        if request.max_tokens is not None:
            answer = answer.cut(request.max_tokens)
        self._count_tokens(request.prompt_tokens + answer.n_tokens)
        return ServedReply(200, write(answer=answer), delay=SLOW_SECONDS if fault == "slow" else 0.0)

    def _is_new(self, request: Request) -> bool:
        # A digest, since keeping the texts of all requests would take far more memory.
        mark = hashlib.sha256(
            f"{request.model}\x1d{request.key}\x1d{request.seed}".encode("utf-8", "surrogatepass")
        ).digest()
        is_new = mark not in self.seen
        self.seen.add(mark)
        return is_new

    def _count_tokens(self, tokens: int) -> None:
        if time.monotonic() - self.window[0] >= 60:
            self.window = [time.monotonic(), 0, 0]
        self.window[1] += 1
        self.window[2] += tokens

    def _limits(self, is_anthropic: bool) -> dict[str, str]:
        start, requests, tokens = self.window
        left = max(0.0, start + 60 - time.monotonic())
        headers = {}
        for name, limit, used in (
            ("requests", REQUESTS_PER_MINUTE, requests),
            ("tokens", TOKENS_PER_MINUTE, tokens),
        ):
            remaining = str(max(0, int(limit - used)))
            if is_anthropic:
                reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + left))
                prefix = f"anthropic-ratelimit-{name}"
                headers |= {
                    f"{prefix}-limit": str(limit),
                    f"{prefix}-remaining": remaining,
                    f"{prefix}-reset": reset,
                }
            else:
                headers |= {
                    f"x-ratelimit-limit-{name}": str(limit),
                    f"x-ratelimit-remaining-{name}": remaining,
                    f"x-ratelimit-reset-{name}": f"{left:.3f}s",
                }
        return headers


def _as_api_error(error: Exception) -> ApiError:
    """The error itself; for a bug of our own a 500 to the client, and the traceback to the terminal."""
    if isinstance(error, ApiError):
        return error
    traceback.print_exception(error)
    return ApiError(500, f"{type(error).__name__}: {error}", kind="api_error")


def _check_key(headers: dict[str, str]) -> None:
    key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer").strip()
    if not key or key == BAD_KEY:
        message = f"Incorrect API key provided: {key}." if key else "You didn't provide an API key."
        raise ApiError(401, message, kind="authentication_error", code="invalid_api_key")


def _split(model: str) -> tuple[str, str]:
    """("micro-judge-clean", "slow") of "micro-judge-clean:slow"; raises a 404 for an unknown name."""
    name, _, fault = model.partition(":")
    if name not in (*JUDGES, HUMAN, *WRITERS) or (":" in model and fault not in FAULTS):
        raise judge_protocols.unknown_model(model)
    return name, fault


def _model(name: str) -> dict[str, Any]:
    """A model's entry, holding the fields of both vendors' lists."""
    openai = {"id": name, "object": "model", "created": 0, "owned_by": "microfarm"}
    return openai | {
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"We could not parse the JSON body of your request: {error}") from error
