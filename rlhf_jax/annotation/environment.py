"""What the environment says about connections, checked before anybody is asked.

The clients read proxies and certificates from the environment, and so it may. They would also read addresses,
organizations, headers and further keys from it, and send those wherever a judge is asked: that is left out, only
what the judge's own file says goes out.
"""

import contextlib
import importlib.util
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from rlhf_jax.errors import UserError

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_CERTIFICATES = {"SSL_CERT_FILE": "cafile", "SSL_CERT_DIR": "capath"}
_OF_CLIENTS = ("OPENAI_", "ANTHROPIC_")
_hiding = threading.Lock()


@contextlib.contextmanager
def hidden_from_clients() -> Iterator[None]:
    """Within the block the SDKs find none of the variables they would take settings from by themselves."""
    with _hiding:
        kept = {name: value for name, value in os.environ.items() if name.upper().startswith(_OF_CLIENTS)}
        for name in kept:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(kept)


def check_connections() -> None:
    """Errors: UserError naming the variable whose proxy or certificates cannot be used; no password is repeated."""
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
    """The environment variable whose proxy a request to `url` goes through, "" for none."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    names = [f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    return next((name for name in names if os.environ.get(name)), "")


def _wrong_proxy(url: str) -> str:
    """What is wrong with a proxy's address and how to mend it, "" for nothing."""
    if not url:
        return ""
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
        ssl.create_default_context(**{argument: path})
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError.
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not certificates"
        return f"cannot be used ({said})"
    return ""
