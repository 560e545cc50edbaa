"""Asking one question once, over the official OpenAI and Anthropic clients, and naming what went wrong.

The clients do authentication, addresses, connections and error classes. Requests go through their `post` with
the body as it was hashed, and answers come back as the raw response: that skips building typed objects nobody
reads, which is half of a call's CPU time. Retrying is not done here; the clients' own retries are off.
"""

import importlib
import re
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from rlhf_jax.annotation.answers import Answer
from rlhf_jax.annotation.judges import Address
from rlhf_jax.annotation.readers import read_answer
from rlhf_jax.annotation.retries import EndpointError, Headers, Rejected, Retryable, retry_after

# By the protocol a judge speaks (`JudgeSpec.api`): below the address of the SDK's client.
PATHS = {
    "chat": "/chat/completions",
    "responses": "/responses",
    "decisions": "/decisions",
    "messages": "/v1/messages",
}
_CONNECT_TIMEOUT_S = 10.0
_SHORT_KEY = 6  # So short a "key" is a placeholder, and may be part of any word.
_RETRY_STATUS = frozenset({408, 409, 425, 429})
_CROWDED = frozenset({408, 503, 529})
_FATAL = {
    401: "the key was refused; set a valid one",
    402: "the account cannot pay; add credit",
    403: "the key may not do this; check its permissions",
    404: "no such model or address; check model and base_url",
}


class Endpoint:
    """One provider at one address with one key: an SDK client that keeps its connections open."""

    def __init__(self, address: Address, *, max_connections: int, timeout_s: float) -> None:
        self.address = address
        self._key = address.key()
        self._sdk = importlib.import_module(address.provider)
        self._httpx = importlib.import_module("httpx2")
        client = {"openai": "AsyncOpenAI", "anthropic": "AsyncAnthropic"}[address.provider]
        timeout = self._httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
        limits = self._httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections
        )
        # A proxy from the environment must not get between us and a server on this machine.
        loopback = urlsplit(address.url).hostname in ("127.0.0.1", "localhost", "::1")
        http = self._sdk.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, trust_env=not loopback)
        self.client = getattr(self._sdk, client)(
            api_key=self._key, base_url=address.url, max_retries=0, timeout=timeout, http_client=http
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def ask(self, api: str, body: dict, on_headers: Headers) -> Answer:
        """Send one request by the protocol `api`; `on_headers` gets the headers of any response, errors included.

        Errors: Retryable (try again later), Rejected (this request will never work), UserError (no request to
        this endpoint will work: bad key, no credit, unknown model).
        """
        started = time.monotonic()
        path, sdk = PATHS[api], self._sdk
        try:
            response = await self.client.post(path, body=body, cast_to=self._httpx.Response)
        except sdk.APIStatusError as error:
            on_headers(error.response.headers)
            raise self._status_error(error) from None
        except sdk.APIConnectionError as error:
            raise self._connection_error(error.__cause__ or error) from None
        except self._httpx.HTTPError as error:
            raise Retryable(self.clean(str(error)) or type(error).__name__, may_cost=True) from None
        on_headers(response.headers)
        answer = self.scrubbed(read_answer(api, response))
        latency_ms = (time.monotonic() - started) * 1e3
        return replace(answer, latency_ms=latency_ms, created_at=int(time.time() * 1000))

    async def call(self, action: Awaitable[Any]) -> Any:
        """The result of a call of the SDK, its errors as those of `ask`."""
        sdk = self._sdk
        try:
            return await action
        except sdk.APIStatusError as error:
            raise self._status_error(error) from None
        except sdk.APIConnectionError as error:
            raise self._connection_error(error.__cause__ or error) from None
        except self._httpx.HTTPError as error:
            raise Retryable(self.clean(str(error)) or type(error).__name__) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Retryable(f"malformed answer ({type(error).__name__})") from None

    async def post_json(self, path: str, data: bytes) -> dict:
        """Send JSON text as it is; the JSON that comes back. Errors are those of the SDK, see `call`."""
        headers = {"Content-Type": "application/json"}
        options = {"content": data, "options": {"headers": headers}, "cast_to": self._httpx.Response}
        return (await self.client.post(path, **options)).json()

    def _connection_error(self, cause: BaseException) -> Retryable:
        reason = self.clean(str(cause)) or type(cause).__name__
        nobody = isinstance(cause, (self._httpx.ConnectError, self._httpx.ConnectTimeout))
        late = isinstance(cause, self._httpx.TimeoutException)
        return Retryable(reason, unreachable=nobody, crowded=late, may_cost=not nobody)

    def _status_error(self, error: Any) -> Exception:
        return self.fault(error.status_code, error.body, error.response.headers)

    def fault(self, status: int, body: object, headers: Mapping[str, str]) -> Exception:
        """What an error status means: EndpointError for the whole endpoint, Retryable or Rejected for a request."""
        code, message = _error_fields(body)
        said = self.clean(f"{status} {code} {message}" if code else f"{status} {message}")
        no_quota = status == 429 and "insufficient_quota" in (code, message)
        if status in _FATAL or no_quota:
            mend = _FATAL[402] if no_quota else _FATAL[status]
            key = f" (key from {self.address.api_key_env})" if self.address.api_key_env else ""
            return EndpointError(f"{self.address.shown}{key}: {said}; {mend}", status)
        if status in _RETRY_STATUS or status >= 500:
            wait_s, crowded = retry_after(headers), status in _CROWDED
            return Retryable(said, wait_s=wait_s, rate_limit=status == 429, crowded=crowded)
        return Rejected(said)

    def scrubbed(self, answer: Answer) -> Answer:
        """The answer without the key, should a server repeat what it was sent."""
        if len(self._key) <= _SHORT_KEY:
            return answer
        texts = ("text", "model", "request_id", "system_fingerprint", "finish_reason", "refusal")
        found = {name: value for name in texts if self._key in (value := getattr(answer, name) or "")}
        return replace(answer, **{name: value.replace(self._key, "***") for name, value in found.items()})

    def clean(self, text: str) -> str:
        """One short line without the key, whole or abridged as providers quote it."""
        text = " ".join(text.split())
        text = text.replace(self._key, "***") if len(self._key) > _SHORT_KEY else text
        return re.sub(r"\bsk-[\w*.-]{4,}", "***", text)[:300]


def _error_fields(body: object) -> tuple[str, str]:
    """The provider's code and message: {"error": {...}} or the inner mapping, whichever the SDK gives."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            return str(inner.get("code") or inner.get("type") or ""), str(inner.get("message") or "")
        return "", str(inner)
    return "", str(body or "")
