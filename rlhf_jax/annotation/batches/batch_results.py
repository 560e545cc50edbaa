"""Reading the results of a provider's batch line by line.

The results are paid for, so whatever can be read is taken: a broken line costs only its own request, and lines in
the odd forms of gateways are read too.
"""

import re
from collections.abc import AsyncIterator, Callable

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.answers.response_readers import read_json
from rlhf_jax.annotation.calls.faults import error_in, said
from rlhf_jax.annotation.calls.retries import Fault, Retryable

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
