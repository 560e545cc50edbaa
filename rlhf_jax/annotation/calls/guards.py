"""Guards around the clients: what they are given, where requests may go, and what messages may tell.

Of the environment the clients get proxies and certificates, which are checked before any request is sent. They would
also read addresses, organizations, headers and further keys from it and send those wherever a judge is asked. These are
hidden from them: only what the judge's own file says is sent. A hook of the HTTP client checks every request: keys and
questions go to the judge's own address only. Messages, logs and labels show no key or password.
"""

import base64
import contextlib
import importlib.util
import logging
import os
import re
import ssl
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from rlhf_jax.annotation.judges.addresses import Address, masked
from rlhf_jax.data.files.tables import valid_text
from rlhf_jax.errors import UserError

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_CERTIFICATES = {"SSL_CERT_FILE": "cafile", "SSL_CERT_DIR": "capath"}
_OF_CLIENTS = ("OPENAI_", "ANTHROPIC_")
# os.environ belongs to the whole process: two threads that hide and restore at once would lose variables.
_hiding = threading.Lock()


@contextlib.contextmanager
def hidden_from_clients() -> Iterator[None]:
    """Hide the variables from which the SDKs would take settings by themselves, while the block runs."""
    with _hiding:
        kept = {name: value for name, value in os.environ.items() if name.upper().startswith(_OF_CLIENTS)}
        for name in kept:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(kept)


def check_connections() -> None:
    """Check the proxies and certificates of the environment.

    Errors: UserError naming the variable that cannot be used; a password in it is not repeated.
    """
    # httpx and curl read the lower-case names too.
    for name in (*_PROXIES, *(name.lower() for name in _PROXIES)):
        if wrong := _wrong_proxy(os.environ.get(name, "").strip()):
            raise UserError(f"{name}: the proxy in this environment variable {wrong}, or unset it")
    for name, argument in _CERTIFICATES.items():
        path = os.environ.get(name)
        if path and (wrong := _wrong_certificates(argument, path)):
            raise UserError(
                f"{name}: {path} in this environment variable {wrong}; give a file or folder of PEM certificates, "
                "or unset it"
            )


def proxy_variable(url: str) -> str:
    """Name the environment variable whose proxy a request to `url` goes through, "" for none."""
    parts = urlsplit(url)
    # NO_PROXY goes before all of the variables below.
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    # urllib's order, which httpx follows: lower case first, the scheme's own variable before ALL_PROXY.
    names = [f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    return next((name for name in names if os.environ.get(name)), "")


def _wrong_proxy(url: str) -> str:
    """What is wrong with a proxy's address and how to mend it, "" for nothing."""
    if not url:
        return ""
    # httpx takes a proxy without a scheme for an http one.
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "has no usable address; write it like http://HOST:PORT"
    if parts.scheme.lower() not in _PROXY_SCHEMES:
        return f"has the scheme {parts.scheme!r}; use one of {', '.join(_PROXY_SCHEMES)}"
    if not host or port == 0:
        return "names no host and port; write it like http://HOST:PORT"
    if parts.scheme.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "is a SOCKS proxy, which needs the package socksio; pip install socksio"
    return ""


def _wrong_certificates(argument: str, path: str) -> str:
    if not os.path.exists(path):
        return "does not exist"
    try:
        # Loading is the only full check. Otherwise every connection would fail, as if the server were down.
        ssl.create_default_context(**{argument: path})
    # ssl.SSLError is an OSError.
    except (OSError, ValueError) as error:
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not certificates"
        return f"cannot be used ({said})"
    return ""


# The hook of the HTTP client.

# Headers that say nothing about the user; all others (Authorization, x-api-key, ...) stay at our own address.
_FOR_ANYBODY = frozenset({"accept", "accept-encoding", "connection", "host", "user-agent"})
_AZURE = ".azure.com"
_ASKED_BY = "rlhf_jax.asked_by"


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
            # A redirect's request takes these along: it tells a question that became a GET from a download.
            request.extensions.setdefault(_ASKED_BY, request.method)
            if self._query:
                request.url = request.url.copy_merge_params(self._query)
            for name, value in self._headers.items():
                request.headers.pop(name, None)
                if value:
                    request.headers[name] = value
            return
        # A GET, such as a redirected download of batch results, may go elsewhere without our headers. Any
        # other request carries questions.
        if request.method != "GET" or request.extensions.get(_ASKED_BY, "GET") != "GET":
            target = request.url
            raise Elsewhere(
                f"it sends requests on to {target.scheme}://{target.netloc.decode()}{target.path}"
            )
        for name in set(request.headers) - _FOR_ANYBODY:
            del request.headers[name]


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


# Masking of keys and passwords in messages, files and labels, whole or abridged as servers quote them.

MASK = "***"
_LONGEST = 300
# Secrets up to this length are placeholders ("none") or parts of ordinary words.
_SHORT = 4
# This many characters of a secret in a row give part of it away.
_PIECE = 8
_IN_URL = re.compile(r"(?<=://)[^\s/@]+@")
# As servers quote a key that they refuse: "sk-abcd...", "sk-proj-****wxyz", "****wxyz".
_ABRIDGED = re.compile(r"\bsk-[\w*.-]{4,}|\b[\w-]{2,}\*{3,}[\w*-]*|\*{3,}[\w-]+")


class Mask:
    """Hides the secrets of one address. `secrets`: the key, the password, and whatever else must not be told."""

    def __init__(self, secrets: Iterable[str]) -> None:
        plain = {secret for secret in secrets if len(secret) > _SHORT}
        # A key in a query travels percent-encoded, a login in base64.
        coded = {form for secret in plain for form in (quote(secret, safe=""), _base64(secret))}
        # Longest first: a password that is part of "user:password" must not be replaced before the whole.
        self._whole = sorted(plain | coded, key=len, reverse=True)
        # A short secret has no pieces: eight characters of twelve may be a word.
        self._pieces = {
            secret[i : i + _PIECE] for secret in plain if len(secret) >= 2 * _PIECE for i in _starts(secret)
        }

    def text(self, text: str) -> str:
        """Replace every secret, and what gives part of one away, by "***" in a text of any length."""
        for secret in self._whole:
            text = text.replace(secret, MASK)
        return self._without_pieces(text) if any(piece in text for piece in self._pieces) else text

    def line(self, text: str) -> str:
        """Make `text` one short line for a message: no secret, no part of one, no password of any address."""
        text = _IN_URL.sub(f"{MASK}@", self.text(" ".join(valid_text(text).split())))
        return _ABRIDGED.sub(MASK, text)[:_LONGEST]

    def _without_pieces(self, text: str) -> str:
        hidden = [i for i in range(len(text) - _PIECE + 1) if text[i : i + _PIECE] in self._pieces]
        # From the end of the text, so that the earlier positions stay valid.
        for start, end in reversed(_joined(hidden)):
            text = text[:start] + MASK + text[end:]
        return text


def _starts(secret: str) -> range:
    return range(len(secret) - _PIECE + 1)


def _joined(starts: list[int]) -> list[tuple[int, int]]:
    """Where the pieces that begin at `starts` cover the text, as (start, end)."""
    spans: list[tuple[int, int]] = []
    for start in starts:
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], start + _PIECE
        else:
            spans.append((start, start + _PIECE))
    return spans


def _base64(secret: str) -> str:
    return base64.b64encode(valid_text(secret).encode()).decode()


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
