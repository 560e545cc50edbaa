"""The two providers' batch services behind one interface, over their SDKs.

Limits and file formats are the providers' own: OpenAI takes a file of up to 50,000 requests and 200 MB for one
model and gives back two files, of outputs and of errors; Anthropic takes up to 100,000 requests and 256 MB in
one message and gives back one stream. Neither keeps an order: requests are known by their custom_id.

The results are paid for, so whatever can be read is taken: a broken line costs only its own request, and lines in the
odd forms of gateways are read too.
"""

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.answers.response_readers import read_json
from rlhf_jax.annotation.batches.ledger import Entry
from rlhf_jax.annotation.calls.clients import PATHS, Endpoint
from rlhf_jax.annotation.calls.faults import error_in, said
from rlhf_jax.annotation.calls.retries import EndpointError, Fault, Rejected, Retryable
from rlhf_jax.errors import UserError

# Stay below the providers' limits in bytes by this much, for what they count around the requests.
_MARGIN = 0.95
# How far the provider's clock may be from ours when a batch is looked for by its time.
_CLOCK_S = 300.0
# States of a batch, in the words of providers and of gateways, without Gemini's JOB_STATE_ or BATCH_STATE_.
_PREFIX = re.compile(r"(job|batch)_state_")
_FAILED = frozenset(["failed", "error", "rejected", "invalid"])
_STOPPED = frozenset(["cancelled", "canceled", "stopped", "aborted", "terminated", "deleted"])
_EXPIRED = frozenset(["expired", "timeout", "timed_out"])
_COMPLETE = frozenset(["completed", "complete", "succeeded", "success", "ended", "finished", "done"])
_RUNS = """
    validating in_progress finalizing cancelling canceling queued pending running created processing submitted scheduled
    starting started active in_queue new
"""
_RUNNING = frozenset(_RUNS.split())


def _word(status: object) -> str:
    return _PREFIX.sub("", str(status).lower().replace("-", "_"), count=1)


class Expired(Retryable):
    """The provider's batch ran out of time before this request's turn."""


class Cancelled(Fault):
    """Somebody stopped the batch."""


@dataclass(frozen=True)
class State:
    """The state of a batch. `failed`: why it was not accepted as a whole; `full`: because too much is enqueued now.

    doubt: what the provider says that cannot be the last word, as an end without results or an unknown state.
    """

    ended: bool
    done: int = 0
    failed: str = ""
    full: bool = False
    cancelled: bool = False
    doubt: str = ""


def state_of(status: object, done: int, has_results: bool) -> State:
    """Judge a batch by the provider's word for its state, by how many requests are done, and by its results."""
    word = _word(status)
    cancelled = word in _STOPPED
    ended = cancelled or word in _COMPLETE or word in _EXPIRED or word in _FAILED
    if has_results and word not in _RUNNING:
        return State(True, done, cancelled=cancelled)
    if not ended:
        return State(False, done, doubt="" if word in _RUNNING else f"its state {status!r} is unknown")
    # One that was stopped before anything was done has no results; others may have them a moment later.
    missing = not has_results and (done or word in _COMPLETE)
    return State(
        True, done, cancelled=cancelled, doubt=f"it is {status} and names no results" if missing else ""
    )


class BatchService(Protocol):
    """What the batch transport needs of a provider."""

    most_requests: int
    most_bytes: int

    def line(self, key: str, body: dict) -> str:
        """Write one request as it stands in a batch."""

    async def send(self, entry: Entry, lines: list[str]) -> str:
        """Send a batch and return its id."""

    async def find(self, entry: Entry, known: set[str]) -> str | None:
        """Find the id of a batch that was sent but not noted; `known` are the ids of other batches."""

    async def look(self, batch_id: str) -> State:
        """Ask how far a batch is."""

    def results(self, batch_id: str) -> AsyncIterator[tuple[str, Answer | Fault]]:
        """Yield (request hash, answer or fault) for every request with a result."""

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch; requests that are done keep their results."""


def service(endpoint: Endpoint, api: str) -> BatchService:
    """Return the batch service for a protocol. Errors: UserError where there is none."""
    if api == "messages":
        return AnthropicBatches(endpoint)
    if api in ("chat", "responses"):
        return OpenAIBatches(endpoint, api)
    raise UserError(
        f"transport: the {api} protocol cannot be asked in batches; use --config.transport=online"
    )


class OpenAIBatches:
    """OpenAI's batches: an uploaded JSONL file in, a file of outputs and a file of errors out."""

    most_requests, most_bytes = 50_000, int(200e6 * _MARGIN)

    def __init__(self, endpoint: Endpoint, api: str) -> None:
        self._endpoint, self._client, self._api = endpoint, endpoint.client, api
        self._url = "/v1" + PATHS[api]

    def line(self, key: str, body: dict) -> str:
        """Write a line of the input file."""
        request = {"custom_id": key, "method": "POST", "url": self._url, "body": body}
        # Compact and in UTF-8: \u escapes would make a text in Chinese or Russian two or three times as long.
        return json.dumps(request, ensure_ascii=False, separators=(",", ":")) + "\n"

    async def send(self, entry: Entry, lines: list[str]) -> str:
        """Upload the file, then create the batch with its name in the metadata."""
        data = "".join(lines).encode()
        file = await self._client.files.create(file=(f"{entry.name}.jsonl", data), purpose="batch")
        batch = await self._client.batches.create(
            input_file_id=_id(file.id),
            endpoint=self._url,
            completion_window="24h",
            metadata={"name": entry.name},
        )
        return _id(batch.id)

    async def find(self, entry: Entry, known: set[str]) -> str | None:
        """Find a batch by the name in its metadata."""
        async for batch in self._client.batches.list(limit=100):
            # Lists are newest first: all further ones are older than the entry.
            if batch.created_at < entry.at - _CLOCK_S:
                break
            if (batch.metadata or {}).get("name") == entry.name and batch.id not in known:
                return batch.id
        return None

    async def look(self, batch_id: str) -> State:
        """How far a batch is. One that failed without results was not accepted: `full` says that it may be later."""
        # OpenAI accepts a batch first and fails it later, when it has counted the enqueued tokens.
        batch = await self._client.batches.retrieve(batch_id)
        done = _sum(batch.request_counts, "completed", "failed")
        files = batch.output_file_id or batch.error_file_id
        if _word(batch.status) in _FAILED and not files:
            words = reasons_of(batch.errors)
            return State(True, 0, self._endpoint.clean(words), "token_limit_exceeded" in words)
        return state_of(batch.status, done, bool(files))

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Answer | Fault]]:
        """The results of both files; a batch that is complete may have an error file only."""
        batch = await self._client.batches.retrieve(batch_id)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            async with self._client.files.with_streaming_response.content(file_id) as response:
                async for told in results_in(response.iter_bytes(), self._outcome):
                    yield told

    def _outcome(self, item: dict) -> Answer | Fault:
        response, error = item.get("response"), item.get("error")
        status = _status_in(response) if isinstance(response, dict) else 0
        if 200 <= status < 300 and (body := body_of(response)) is not None:
            return _read(self._endpoint, self._api, body)
        code, message = said({"error": error} if error else "")
        # An error beside the response is the batch's own (expired, cancelled); one inside it is the
        # provider's, read as if it had come online.
        if response is None or code or message:
            words = ": ".join(part for part in (code, message) if part)
            return _of_batch(self._endpoint.clean(words or "no answer"))
        if 200 <= status < 300:
            return Retryable("no answer", may_cost=True, of_row=True)
        return _as_fault(self._endpoint.fault(status, response.get("body"), {}))

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch."""
        await self._client.batches.cancel(batch_id)


class AnthropicBatches:
    """Anthropic's batches: all requests in one message, all results in one stream."""

    most_requests, most_bytes = 100_000, int(256e6 * _MARGIN)

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._client = endpoint, endpoint.client
        self._batches = endpoint.client.messages.batches

    def line(self, key: str, body: dict) -> str:
        """Write an entry of the message."""
        return json.dumps({"custom_id": key, "params": body}, ensure_ascii=False, separators=(",", ":"))

    async def send(self, entry: Entry, lines: list[str]) -> str:
        """Send the lines as one message, byte by byte as they were counted against the limit."""
        data = ('{"requests":[' + ",".join(lines) + "]}").encode()
        batch = await self._endpoint.post_json("/v1/messages/batches", data)
        return _id(batch["id"])

    async def find(self, entry: Entry, known: set[str]) -> str | None:
        """Anthropic's batches carry no name: take one of the same size, made since, that the ledger does not know."""
        async for batch in self._batches.list(limit=100):
            if batch.created_at.timestamp() < entry.at - _CLOCK_S:
                break
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if total == len(entry.keys) and batch.id not in known:
                return batch.id
        return None

    async def look(self, batch_id: str) -> State:
        """How far a batch is. Anthropic counts no request as done before the whole batch has ended."""
        batch = await self._batches.retrieve(batch_id)
        done = _sum(batch.request_counts, "succeeded", "errored", "canceled", "expired")
        # The client finds the results of a batch that has ended by itself.
        status = batch.processing_status
        return state_of(status, done, bool(batch.results_url) or _word(status) in _COMPLETE)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Answer | Fault]]:
        """Stream the results, one line per request."""
        async with self._batches.with_streaming_response.results(batch_id) as response:
            async for told in results_in(response.iter_bytes(), lambda item: self._outcome(item["result"])):
                yield told

    def _outcome(self, result: dict) -> Answer | Fault:
        kind = result["type"]
        if kind == "succeeded" or isinstance(result.get("message"), dict):
            return _read(self._endpoint, "messages", result["message"])
        if kind == "expired":
            return Expired("the batch ran out of time")
        if kind == "canceled":
            return Cancelled("the batch was cancelled")
        error: Any = result.get("error") or {}
        code, message = said(error)
        words = self._endpoint.clean(f"{code}: {message}")
        # Anthropic reports a bad parameter per request, after the batch has ended; other errors may pass.
        if code not in _NEVER:
            return Retryable(words)
        return _as_fault(self._endpoint.fault(400, error, {}))

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch."""
        await self._batches.cancel(batch_id)


# What became of the whole batch, in a code or in words.
_RAN_OUT = re.compile(r"batch.{0,60}expired|^expired\b|completion window", re.IGNORECASE)
_WAS_STOPPED = re.compile(r"batch.{0,60}cancell?ed|^cancell?ed\b", re.IGNORECASE)


def _of_batch(words: str) -> Fault:
    """The fault of a request whose batch ran out of time, was cancelled by somebody, or lost it."""
    if _RAN_OUT.search(words):
        return Expired(words)
    return Cancelled(words) if _WAS_STOPPED.search(words) else Retryable(words)


def _status_in(response: dict) -> int:
    """The HTTP status in a line of results, also of "200 OK"; a line that tells none has an answer."""
    found = re.match(r"\s*(\d{3})\b", str(response.get("status_code") or 200))
    return int(found[1]) if found else 200


_NEVER = frozenset({"invalid_request_error", "request_too_large"})


def _id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no id")
    return value


def _sum(counts: object, *names: str) -> int:
    """How many requests are in these states, as far as the provider tells."""
    found = (getattr(counts, name, 0) for name in names)
    return sum(count for count in found if isinstance(count, int))


def _read(endpoint: Endpoint, api: str, payload: dict) -> Answer | Fault:
    try:
        return endpoint.read(api, payload, {})
    except (Fault, EndpointError) as error:
        return _as_fault(error)


def _as_fault(error: Exception) -> Fault:
    """An error as the fault of one request: what would end an online run costs only its own row in a batch."""
    return error if isinstance(error, Fault) else Rejected(str(error))


# The results, line by line.

# Finds the request even in a line that is no JSON, so that only this one is asked again.
_NAMED = re.compile(r'"custom_id"\s*:\s*"([^"]+)"')


async def results_in(
    chunks: AsyncIterator[bytes], outcome: Callable[[dict], Answer | Fault]
) -> AsyncIterator[tuple[str, Answer | Fault]]:
    """Yield (request hash, answer or fault) line by line; a line that cannot be read is a fault of its request."""
    first = True
    async for line in _lines(chunks):
        # A login page under status 200. Read as results, it would mark every request as lost.
        if first and line.lstrip(b"\xef\xbb\xbf \t\r").startswith(b"<"):
            raise Retryable("a web page stands in the place of the results")
        first = False
        try:
            items = read_json(line)
        except (ValueError, RecursionError):
            items = None
        # Some gateways send one JSON list instead of lines.
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, dict) and "custom_id" in item:
                yield str(item["custom_id"]), _outcome_of(item, outcome)
            elif named := _NAMED.search(line.decode("utf-8", "replace")):
                yield named[1], _unreadable("the line of its result is broken")


def _outcome_of(item: dict, outcome: Callable[[dict], Answer | Fault]) -> Answer | Fault:
    try:
        return outcome(item)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return _unreadable(f"malformed result ({type(error).__name__})")


def _unreadable(reason: str) -> Retryable:
    return Retryable(reason, may_cost=True, of_row=True)


def body_of(response: dict) -> object:
    """Find the provider's answer in a line: under "body", there as JSON text, or the line's response itself."""
    if "body" not in response:
        return response if error_in(response) or "choices" in response or "output" in response else None
    body = response["body"]
    return read_json(body.encode()) if isinstance(body, str) else body


def reasons_of(errors: object) -> str:
    """Read why a batch failed, in whichever form the provider gives it."""
    told = getattr(errors, "data", None) or errors
    told = told if isinstance(told, list) else [told] if told else []
    words = []
    for one in told[:3]:
        one = one if isinstance(one, dict | str) else {n: getattr(one, n, None) for n in ("code", "message")}
        words.append(one if isinstance(one, str) else ": ".join(str(part) for part in said(one) if part))
    return "; ".join(filter(None, words)) or "no reason given"


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream of bytes, split at line feeds only."""
    # Not str.splitlines, nor the client's iter_lines: those also split at U+2028 and the like, which JSON
    # texts may hold as they are.
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest
