"""Asking one question once, over the official OpenAI and Anthropic clients, and naming what went wrong.

The clients do authentication, addresses, connections and error classes. Requests go through their `post` with
the body as it was hashed, and answers come back as the raw response: that skips building typed objects nobody
reads, which is half of a call's CPU time. Retrying is not done here; the clients' own retries are off.
"""

import importlib
import re
import time
from typing import Any
from urllib.parse import urlsplit

from rlhf_jax.annotation.answers import Answer
from rlhf_jax.annotation.judges import Address
from rlhf_jax.annotation.protocols import PATHS, READERS
from rlhf_jax.annotation.retries import Rejected, Retryable, retry_after
from rlhf_jax.errors import UserError

_CONNECT_TIMEOUT_S = 10.0
_RETRY_STATUS = frozenset({408, 409, 425, 429})
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
        self._client = getattr(self._sdk, client)(
            api_key=self._key, base_url=address.url, max_retries=0, timeout=timeout, http_client=http
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, body: dict) -> Answer:
        """Send one request.

        Errors: Retryable (try again later), Rejected (this request will never work), UserError (no request to
        this endpoint will work: bad key, no credit, unknown model).
        """
        started = time.monotonic()
        path, sdk = PATHS[self.address.api], self._sdk
        try:
            response = await self._client.post(path, body=body, cast_to=self._httpx.Response)
            answer = READERS[self.address.api](response.json())
        except sdk.APIStatusError as error:
            raise self._status_error(error) from None
        except sdk.APIConnectionError as error:
            raise self._connection_error(error.__cause__ or error) from None
        except self._httpx.HTTPError as error:
            raise Retryable(self._clean(str(error)) or type(error).__name__) from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise Retryable(f"malformed answer ({type(error).__name__})") from None
        answer["latency_ms"] = (time.monotonic() - started) * 1e3
        return Answer(**answer, created_at=int(time.time() * 1000))

    def _connection_error(self, cause: BaseException) -> Retryable:
        reason = self._clean(str(cause)) or type(cause).__name__
        nobody = isinstance(cause, (self._httpx.ConnectError, self._httpx.ConnectTimeout))
        return Retryable(reason, unreachable=nobody)

    def _status_error(self, error: Any) -> Exception:
        status = error.status_code
        code, message = _error_fields(error.body)
        said = self._clean(f"{status} {code} {message}" if code else f"{status} {message}")
        no_quota = status == 429 and "insufficient_quota" in (code, message)
        if status in _FATAL or no_quota:
            mend = _FATAL[402] if no_quota else _FATAL[status]
            key = f" (key from {self.address.api_key_env})" if self.address.api_key_env else ""
            return UserError(f"{self.address.shown}{key}: {said}; {mend}")
        if status in _RETRY_STATUS or status >= 500:
            return Retryable(said, wait_s=retry_after(error.response.headers), rate_limit=status == 429)
        return Rejected(said)

    def _clean(self, text: str) -> str:
        """One short line without the key, whole or abridged as providers quote it."""
        text = (
            " ".join(text.split()).replace(self._key, "***") if len(self._key) > 6 else " ".join(text.split())
        )
        return re.sub(r"\bsk-[\w*.-]{4,}", "***", text)[:300]


def _error_fields(body: object) -> tuple[str, str]:
    """The provider's code and message: {"error": {...}} or the inner mapping, whichever the SDK gives."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            return str(inner.get("code") or inner.get("type") or ""), str(inner.get("message") or "")
        return "", str(inner)
    return "", str(body or "")
