"""The results of a provider's batch, line by line: what can be read is taken, whatever stands around it.

What came is paid for. A line costs at most its own request, and gateways write the lines in their own way.
"""

import re
from collections.abc import AsyncIterator, Callable

from rlhf_jax.annotation.answers import Answer
from rlhf_jax.annotation.faults import error_in
from rlhf_jax.annotation.readers import read_json
from rlhf_jax.annotation.retries import Fault, Retryable
from rlhf_jax.annotation.wording import said

_NAMED = re.compile(r'"custom_id"\s*:\s*"([^"]+)"')


async def results_in(
    chunks: AsyncIterator[bytes], outcome: Callable[[dict], Answer | Fault]
) -> AsyncIterator[tuple[str, Answer | Fault]]:
    """(request hash, what became of it) line by line; a line that cannot be read costs its own request."""
    first = True
    async for line in _lines(chunks):
        if first and line.lstrip(b"\xef\xbb\xbf \t\r").startswith(b"<"):
            raise Retryable("a web page stands in the place of the results")
        first = False
        try:
            items = read_json(line)
        except (ValueError, RecursionError):
            items = None
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
    """What the provider answered: under "body", as text of JSON, or without a place of its own."""
    if "body" not in response:
        return response if error_in(response) or "choices" in response or "output" in response else None
    body = response["body"]
    return read_json(body.encode()) if isinstance(body, str) else body


def reasons_of(errors: object) -> str:
    """Why a batch failed, in whichever form a provider tells."""
    told = getattr(errors, "data", None) or errors
    told = told if isinstance(told, list) else [told] if told else []
    words = []
    for one in told[:3]:
        one = one if isinstance(one, dict | str) else {n: getattr(one, n, None) for n in ("code", "message")}
        words.append(one if isinstance(one, str) else ": ".join(str(part) for part in said(one) if part))
    return "; ".join(filter(None, words)) or "no reason given"


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines that end in a line feed; nothing else ends one, whatever an answer holds."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest
