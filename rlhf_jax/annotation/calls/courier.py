"""A hook of the HTTP client that checks every request: keys and questions go to the judge's own address only."""

import base64
import logging
from typing import Any
from urllib.parse import urlsplit

from rlhf_jax.annotation.judges.addresses import Address, masked

# Headers that say nothing about the user; all others (Authorization, x-api-key, ...) stay at our own address.
_FOR_ANYBODY = frozenset({"accept", "accept-encoding", "connection", "host", "user-agent"})
_AZURE = ".azure.com"


class Elsewhere(Exception):  # noqa: N818 - what a server wants, not a fault of ours
    """A server redirects a request that has content to another host."""


class Courier:
    """A hook of the HTTP client. It sees every request, also those that follow a redirect or a link in an answer."""

    def __init__(self, address: Address) -> None:
        self._query = address.query
        self._own = _origin(address.url)
        self._headers = _credentials(address)

    async def check(self, request: Any) -> None:
        """Add the key and query to a request to the judge's own address; strip our headers from one to another.

        Errors: Elsewhere for a request with content: neither key nor questions go to a host nobody named.
        """
        # Scheme, host and port: a redirect from https to http would send the key in clear text.
        if _origin(str(request.url)) == self._own:
            if self._query:
                request.url = request.url.copy_merge_params(self._query)
            for name, value in self._headers.items():
                request.headers.pop(name, None)
                if value:
                    request.headers[name] = value
            return
        # A GET, such as a redirected download of batch results, may go elsewhere without our headers. Any
        # other request carries questions.
        if request.method != "GET":
            target = request.url
            raise Elsewhere(
                f"it sends requests on to {target.scheme}://{target.netloc.decode()}{target.path}"
            )
        for name in set(request.headers) - _FOR_ANYBODY:
            del request.headers[name]


def keep_out_of_logs() -> None:
    """Mask addresses in the clients' log records: they name the URL of every request, whose query may hold a key."""
    for name in ("httpx2", "openai._base_client", "anthropic._base_client"):
        logging.getLogger(name).addFilter(_without_secrets)


def _without_secrets(record: logging.LogRecord) -> bool:
    # A record keeps its arguments apart until a handler formats it; the URL is one of them.
    if isinstance(record.args, tuple):
        record.args = tuple(masked(str(one)) if _is_url(one) else one for one in record.args)
    return True


def _is_url(value: object) -> bool:
    return str(value).startswith(("http://", "https://")) and " " not in str(value)


def _credentials(address: Address) -> dict[str, str]:
    """Headers that differ from what the client sends by itself; "" is one to leave out."""
    # HTTP has one Authorization header: a user and password in the URL take the place of the key.
    if address.login is not None:
        login = base64.b64encode(":".join(address.login).encode()).decode()
        return {"authorization": f"Basic {login}"}
    host, key = urlsplit(address.url).hostname or "", address.key()
    if address.provider == "openai" and host.endswith(_AZURE) and key.count(".") != 2:
        # Azure takes keys in a header of its own; only tokens, which have three parts, are bearers there.
        return {"authorization": "", "api-key": key}
    return {}


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(parts.scheme),
    )
