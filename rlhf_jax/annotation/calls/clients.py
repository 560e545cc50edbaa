"""Sending one request once through the official OpenAI and Anthropic clients, and classifying what went wrong.

The clients do authentication, addresses, connections and error classes. Requests go through their `post` with
the body as it was hashed, and answers come back as the raw response: that skips building typed objects nobody
reads, which is half of a call's CPU time. Retrying is not done here; the clients' own retries are off. They are
asynchronous: `complete` runs what is asked of them from a plain function, also in a notebook.
"""

import asyncio
import importlib
import threading
import time
from collections.abc import Awaitable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.answers.response_readers import read_answer, read_json, usage_of
from rlhf_jax.annotation.calls.faults import error_in, fault, meant_status, said, unwrapped
from rlhf_jax.annotation.calls.guards import (
    Courier,
    Elsewhere,
    Mask,
    check_connections,
    hidden_from_clients,
    keep_out_of_logs,
    proxy_variable,
)
from rlhf_jax.annotation.calls.retries import EndpointError, Headers, Retryable
from rlhf_jax.annotation.judges.requests import Address
from rlhf_jax.data.files.tables import valid_text
from rlhf_jax.errors import UserError

# The path of each protocol (`JudgeSpec.api`), relative to the base URL of the SDK's client: OpenAI's base URL
# ends in /v1, Anthropic's does not.
PATHS = {
    "chat": "/chat/completions",
    "responses": "/responses",
    "decisions": "/decisions",
    "messages": "/v1/messages",
}
_ERRORS = {"openai": "OpenAIError", "anthropic": "AnthropicError"}
# A host that is down should be known within seconds; only writing an answer may take all of `timeout_s`.
_CONNECT_TIMEOUT_S = 10.0
# An error page may have any size, and its reason stands at the beginning.
_ERROR_BYTES = 20_000
# httpx counts its read timeout anew with every byte that comes, so a server that sends a blank now and then
# would be waited for without end. The whole call may take this many times `timeout_s`.
_LONGEST_TIMEOUTS = 10


T = TypeVar("T")


class Endpoint:
    """One provider at one address with one key: an SDK client that keeps its connections open.

    Errors: UserError for a key that no header can carry, an address or an environment that cannot be used.
    """

    def __init__(self, address: Address, *, max_connections: int, timeout_s: float) -> None:
        self.address = address
        self._mask = Mask(address.secrets())
        self._longest_s = _LONGEST_TIMEOUTS * timeout_s
        self._sdk = _package(address.provider)
        self._httpx = _package("httpx2")
        # The base class of all the SDK's errors, for those that are neither a status nor a connection.
        self._sdk_error = getattr(self._sdk, _ERRORS[address.provider])
        # A proxy from the environment must not get between us and a server on this machine.
        loopback = urlsplit(address.url).hostname in ("127.0.0.1", "localhost", "::1")
        if not loopback:
            check_connections()
        self._proxy = "" if loopback else proxy_variable(address.url)
        # The SDKs read the environment (base URL, organization, headers) only while they are constructed.
        try:
            with hidden_from_clients():
                self.client = self._client(max_connections, timeout_s, trust_env=not loopback)
        except (ImportError, ValueError, OSError, self._httpx.InvalidURL) as error:
            reason = self.clean(str(error)) or type(error).__name__
            raise UserError(
                f"{address.shown}: no client can be made for it ({reason}); "
                "correct base_url, or the proxies and certificates in the environment"
            ) from None

    def _client(self, max_connections: int, timeout_s: float, *, trust_env: bool) -> Any:
        timeout = self._httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
        limits = self._httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections
        )
        # A hook sees every request of a chain of redirects, which a wrapper around `post` would not.
        courier = Courier(self.address)
        keep_out_of_logs()
        # httpx would refuse a malformed address at every request, as a fault that may pass: parse it once
        # here, where that ends the run.
        self._httpx.URL(self.address.root)
        http = self._sdk.DefaultAsyncHttpxClient(
            limits=limits, timeout=timeout, trust_env=trust_env, event_hooks={"request": [courier.check]}
        )
        kind = {"openai": "AsyncOpenAI", "anthropic": "AsyncAnthropic"}[self.address.provider]
        # Anthropic's client traces calls by OpenTelemetry: its spans hold the URL, with a key in its query.
        further = {"open_telemetry": False} if self.address.provider == "anthropic" else {}
        return getattr(self._sdk, kind)(
            api_key=self.address.key(),
            base_url=self.address.root,
            # The SDKs' own retries wait 8 s at most, too short for a budget per minute, and would multiply
            # with those of `retries.Patient`.
            max_retries=0,
            timeout=timeout,
            http_client=http,
            **further,
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
            async with asyncio.timeout(self._longest_s):
                response = await self.client.post(path, body=body, cast_to=self._httpx.Response)
        except sdk.APIStatusError as error:
            on_headers(error.response.headers)
            raise self._status_error(error) from None
        except sdk.APIConnectionError as error:
            # The SDK wraps what was raised in sending: its cause tells a refused connection from a timeout.
            raise self._connection_error(error.__cause__ or error) from None
        except Elsewhere as error:
            raise self._connection_error(error) from None
        except TimeoutError:
            # The server may have written, and billed, an answer that we gave up waiting for.
            reason = f"no whole answer in {self._longest_s:.0f} s"
            raise Retryable(reason, crowded=True, may_cost=True) from None
        except self._httpx.HTTPError as error:
            raise Retryable(self.clean(str(error)) or type(error).__name__, may_cost=True) from None
        except self._sdk_error as error:
            raise Retryable(self.clean(str(error)) or type(error).__name__) from None
        # Before the body is read: rate limits count also for an answer that turns out to be malformed.
        on_headers(response.headers)
        answer = self.read(api, self._payload(response), response.headers)
        latency_ms = (time.monotonic() - started) * 1e3
        return replace(answer, latency_ms=latency_ms, created_at=int(time.time() * 1000))

    def read(self, api: str, payload: object, headers: Mapping[str, str]) -> Answer:
        """Read the Answer in a payload that came with status 200; raise as `ask` does when it is an error."""
        payload = unwrapped(payload)
        # Some gateways report a provider's error under status 200.
        if error_in(payload):
            failed = self.fault(meant_status(payload), payload, headers)
            # What was written before the error is billed, where the provider says how much it was.
            usage = usage_of(api, payload)
            if isinstance(failed, Retryable):
                failed.usage, failed.may_cost = usage, usage is None
            raise failed
        return self._scrubbed(read_answer(api, payload))

    def _payload(self, response: Any) -> object:
        """The JSON of a response. Errors: Retryable that says what came instead: nothing, a web page, half a text."""
        try:
            return read_json(response.content)
        except (ValueError, RecursionError):
            words = said(response.content[:2000])[1].strip()
            what = f"no JSON: {words}" if words else "it is empty"
            raise Retryable(self.clean(f"malformed answer ({what})"), may_cost=True, of_row=True) from None

    async def call(self, action: Awaitable[Any]) -> Any:
        """Await a call of the SDK other than a question (files, batches), its errors turned into those of `ask`."""
        sdk = self._sdk
        try:
            return await action
        except sdk.APIStatusError as error:
            raise self._status_error(error) from None
        except sdk.APIConnectionError as error:
            raise self._connection_error(error.__cause__ or error) from None
        except Elsewhere as error:
            raise self._connection_error(error) from None
        except self._httpx.HTTPError as error:
            raise Retryable(self.clean(str(error)) or type(error).__name__) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Retryable(f"malformed answer ({type(error).__name__})") from None
        except self._sdk_error as error:
            raise Retryable(self.clean(str(error)) or type(error).__name__) from None

    async def post_json(self, path: str, data: bytes) -> dict:
        """Send text that is JSON already and return the JSON that comes back. Errors are the SDK's own: see `call`."""
        headers = {"Content-Type": "application/json"}
        options = {"content": data, "options": {"headers": headers}, "cast_to": self._httpx.Response}
        return read_json((await self.client.post(path, **options)).content)

    def _connection_error(self, cause: BaseException) -> Retryable | EndpointError:
        reason = self.clean(str(cause)) or type(cause).__name__
        # 307 and 310 are chosen here, so that no caller takes a redirect for a missing batch service.
        if isinstance(cause, Elsewhere):
            return EndpointError(f"{self.address.shown}: {reason}; set base_url to that address", 307)
        if isinstance(cause, self._httpx.TooManyRedirects):
            return EndpointError(
                f"{self.address.shown}: it sends requests in a circle; correct base_url, or log in where it wants that",
                310,
            )
        # After these the request certainly did not reach the server, so nothing was billed; after any other
        # fault it may have been processed.
        nobody = isinstance(
            cause, (self._httpx.ConnectError, self._httpx.ConnectTimeout, self._httpx.ProxyError)
        )
        late = isinstance(cause, self._httpx.TimeoutException)
        if nobody and self._proxy:
            reason = f"through the proxy of {self._proxy}: {reason}"
        return Retryable(reason, unreachable=nobody, crowded=late, may_cost=not nobody)

    def _status_error(self, error: Any) -> Exception:
        body = error.body
        # The SDK gives the whole text of a body that is no JSON; only its beginning is read.
        if isinstance(body, str) or not body:
            body = error.response.content[:_ERROR_BYTES].decode("utf-8", "replace")
        return self.fault(error.status_code, body, error.response.headers)

    def fault(self, status: int, body: object, headers: Mapping[str, str]) -> Exception:
        """Classify an error status: EndpointError for the whole endpoint, Retryable or Rejected for a request."""
        key = f" (key from {self.address.api_key_env})" if self.address.api_key_env else ""
        return fault(self.address.shown + key, status, body, headers, self.clean)

    def _scrubbed(self, answer: Answer) -> Answer:
        """The answer without the key, should a server repeat what it was sent, and with valid text only."""
        # A server that echoes its request, as debugging proxies do, would put the key into cache and labels.
        names = ("text", "model", "request_id", "system_fingerprint", "finish_reason", "refusal")
        given = {name: value for name in names if (value := getattr(answer, name))}
        clean = {name: self._mask.text(valid_text(value)) for name, value in given.items()}
        if clean == given:
            return answer
        # A key that was masked in the text may still stand in the tokens, cut into pieces.
        tops = answer.top_logprobs if clean.get("text") == valid_text(answer.text) else None
        return replace(answer, **clean, top_logprobs=tops)

    def clean(self, text: str) -> str:
        """Make a text one short line without the key, whole or abridged as providers quote it."""
        return self._mask.line(text)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"judges: the package {error.name} is not installed; pip install -r requirements-annotation.txt"
        ) from None


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and return its result; inside a running event loop, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # Jupyter runs an event loop in this thread, and asyncio.run refuses to start a second one. Loop and task
    # are made here, not in the new thread, so that Ctrl-C can reach them below.
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    raised: list[BaseException] = []
    results: list[T] = []

    def target() -> None:
        try:
            results.append(loop.run_until_complete(task))
        # Also a cancelled task: an exception that leaves a thread is printed and lost.
        except BaseException as error:
            raised.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=target)
    thread.start()
    try:
        thread.join()
    # Python delivers Ctrl-C to the main thread only. The work is cancelled and waited for, so that it can
    # close its connections and leave the cache in order.
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if raised:
        raise raised[0]
    return results[0]
