"""Addresses of judges: resolved and checked here; messages and labels show them without keys and passwords.

That no key stands in a judge's own file is checked here, too (`check_way`).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from rlhf_jax.annotation.judges.fields import closest_name
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.annotation.judges.specs import JudgeSpec

DEFAULT_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
# Names of query parameters whose values are masked. Azure's signed links use `sig`, its functions `code`.
_SECRET_NAME = re.compile(r"key|token|secret|passw|signature|^sig$|auth|credential|^code$", re.IGNORECASE)
# The usual form of a variable's name. What looks different may be the key itself, put in the wrong place, and
# is not repeated in a message.
_VARIABLE = re.compile(r"(?=.{1,40}$)[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|[A-Z]{1,12}")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
# A base_url copied from an example of curl often ends in the path of the call.
_CALLS = ("/chat/completions", "/completions", "/responses", "/messages", "/decisions", "/batches")
# Fields of a request body in which gateways and their plugins take keys, by the last word of the name. A key there
# would be published with the labels, which keep the settings of the request.
_LAST_WORDS = """
    key keys token auth authentication authorization bearer cookie cookies jwt password passwd passphrase pwd secret
    secrets credential credentials signature sig
"""
_SECRETS = frozenset(_LAST_WORDS.split())
_IN_ONE_WORD = re.compile(r".{0,40}(api|access|secret|private|subscription|auth|bearer)(key|token)s?")
# Words before the last that make it another thing: text that marks a place, or a name that groups requests.
_OF_PLACES = """
    eos bos stop pad end start unk mask sep cls special page image think thinking continuation decoder
"""
_NO_SECRETS = {"key": ("cache", "idempotency", "routing", "sort"), "token": tuple(_OF_PLACES.split())}
# Texts that are a key wherever they stand: headers, the prefixes of providers, a login in an address.
_SECRET_TEXT = re.compile(
    r"\s*(?:Bearer\s+\S{8,}|Basic\s+(?=\S*[\d=])[A-Za-z0-9+/]{8,}={0,2}"
    r"|(?:sk-|gsk_|hf_|xai-|pplx-|nvapi-|ghp_|github_pat_|AKIA|AIza)[\w-]{8,}|eyJ[\w-]{8,}\.[\w.-]+)\s*"
)
_LOGIN = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Address:
    """Where a judge is asked. `origin` is what hashes and labels carry: a symbolic address by its name."""

    provider: str
    # Left out of the repr, which may end up in a log: the URL may hold a password.
    url: str = field(repr=False)
    origin: str
    api_key_env: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The URL as messages may show it."""
        return public(self.url)

    @property
    def root(self) -> str:
        """The URL without user, password and query, to which paths are appended."""
        return _root(urlsplit(self.url))

    @property
    def query(self) -> dict[str, str]:
        """The query parameters, which every request carries."""
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password out of the URL, None when there are none."""
        parts = urlsplit(self.url)
        if parts.username is None and parts.password is None:
            return None
        return unquote(parts.username or ""), unquote(parts.password or "")

    def secrets(self) -> list[str]:
        """Return all that must be masked: the key, the password, and query parameters that are named like one."""
        found = [self.key()] if self.api_key_env else []
        parts = urlsplit(self.url)
        if self.login:
            found += [":".join(self.login), self.login[1] or self.login[0], parts.password or ""]
        return found + [value for name, value in self.query.items() if _SECRET_NAME.search(name)]

    def key(self) -> str:
        """Read the key from the environment. Errors: UserError naming the variable when it holds none."""
        # The SDKs refuse an empty key; local servers ignore this one.
        if not self.api_key_env:
            return "none"
        name = shown_variable(self.api_key_env)
        given = os.environ.get(self.api_key_env, "") if "\0" not in self.api_key_env else ""
        key = given.strip()
        if not key:
            what = "is empty" if given or self.api_key_env in os.environ else "is not set"
            raise UserError(
                f"api_key_env: the environment variable {name} {what}; export it with your key for {self.origin}"
            )
        if wrong := _wrong_in(key):
            raise UserError(
                f"api_key_env: the key in the environment variable {name} {wrong}; export it as the provider gave it"
            )
        return key


def shown_variable(name: str) -> str:
    """Return a variable's name as messages may show it: what may be a key in the wrong place is left out."""
    if name in os.environ or _VARIABLE.fullmatch(name):
        return name
    return f"of that name (not repeated here: its {len(name)} characters may be a key itself)"


def _wrong_in(key: str) -> str:
    """What is wrong with a key, without the key; "" when a header can carry it."""
    if key[0] in _QUOTES or key[-1] in _QUOTES:
        return "stands in quotes"
    if any(char in "\r\n\x0b\x0c\x85\u2028\u2029" for char in key):
        return "has a line break in it"
    if any(char.isspace() for char in key):
        return "has a blank in it"
    odd = next((i for i, char in enumerate(key) if not "!" <= char <= "~"), None)
    return (
        "" if odd is None else f"has a character that no key has at place {odd + 1} (U+{ord(key[odd]):04X})"
    )


def resolve_address(spec: "JudgeSpec", base_urls: Mapping[str, str]) -> Address:
    """Resolve the address of a judge; `base_urls` gives those of symbolic names.

    Errors: UserError when a symbolic name has no address, or an address cannot be one.
    """
    where, provider, base_url = f"judge {spec.name}: base_url", spec.provider, spec.base_url
    if not base_url:
        url = origin = DEFAULT_URLS[provider]
    elif base_url in base_urls:
        # One root for both protocols: OpenAI's client wants "/v1" in the base URL, Anthropic's adds it.
        root = base_urls[base_url].rstrip("/").removesuffix("/v1")
        check_url(f"base_urls: {base_url}", root)
        # The origin is the name, not the port of this run's server: cached answers are found again tomorrow.
        url, origin = root + ("/v1" if provider == "openai" else ""), base_url
    elif not is_symbolic(base_url):
        check_url(where, base_url)
        url, origin = base_url, public(base_url)
    else:
        raise UserError(
            f"{where}: {base_url!r} has no address; "
            f"give an http(s) URL or one of base_urls ({closest_name(base_url, list(base_urls))})"
        )
    return Address(provider, url, origin, spec.api_key_env)


def is_symbolic(base_url: str) -> bool:
    """Return whether it is a name such as "local", whose address is given at run time."""
    return not any(char in base_url for char in ":/@?.")


def check_url(where: str, url: str) -> None:
    """Check that `url` is an http(s) URL. Errors: UserError beginning with `where`, without any password."""
    wrong, shown = "", masked(url)
    try:
        parts = urlsplit(url)
        port = parts.port
        if parts.scheme not in ("http", "https") or "://" not in url:
            wrong = "does not begin with http:// or https://"
        elif not parts.hostname:
            wrong = "names no host"
        elif port == 0:
            wrong = "has port 0"
        elif any(char.isspace() or not char.isprintable() for char in url):
            wrong = "has a blank in it"
        elif not _is_host(parts.hostname):
            wrong = "names a host that cannot be one"
        elif parts.fragment:
            wrong = "has a part behind #, which no server is sent"
        elif parts.path.rstrip("/").endswith(_CALLS):
            wrong = "ends with the path of a call, which the client adds"
    except ValueError as error:
        wrong = "has a port that is no number below 65536" if "ort" in str(error) else "is no URL"
    if wrong:
        raise UserError(f"{where}: {shown!r} {wrong}; write it like https://HOST:PORT/v1")


def _is_host(host: str) -> bool:
    # An IPv6 address, which urlsplit has checked.
    if ":" in host:
        return True
    try:
        ascii_host = host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        return False
    labels = ascii_host.removesuffix(".").split(".")
    return len(ascii_host) < 254 and all(re.fullmatch(r"[\w-]{1,63}", label, re.ASCII) for label in labels)


def check_way(spec: "JudgeSpec", where: str) -> None:
    """Check the address and the key's variable. Errors: UserError that repeats no key or password."""
    if spec.base_url and not is_symbolic(spec.base_url):
        check_url(f"{where}: base_url", spec.base_url)
    if spec.api_key_env and not _NAME.fullmatch(spec.api_key_env):
        name = shown_variable(spec.api_key_env).removeprefix("of that name ")
        raise UserError(
            f"{where}: api_key_env: no environment variable can have the name {name}; "
            "put the key into a variable, e.g. OPENAI_API_KEY, and write that name here"
        )
    found = _key_field(spec.extra_body)
    if found:
        raise UserError(
            f"{where}: extra_body.{found}: a key here would be kept with every label; give the judge's by api_key_env, "
            "and let a gateway add any other"
        )


def _key_field(body: object, path: str = "") -> str:
    """The first field of a request that is named like a key or holds what looks like one, "" for none."""
    # Any mapping counts, as the type of `extra_body` allows.
    for name, value in body.items() if hasattr(body, "items") else ():
        values = value if isinstance(value, list | tuple) else [value]
        texts = [one for one in values if isinstance(one, str) and one]
        if texts and (_is_secret_name(str(name)) or any(map(_is_secret_text, texts))):
            return f"{path}{name}"
        for one in values:
            if found := _key_field(one, f"{path}{name}."):
                return found
    if isinstance(body, list | tuple):
        return next((found for item in body if (found := _key_field(item, path))), "")
    return ""


def _is_secret_name(name: str) -> bool:
    """Whether a field's name, in snake_case, kebab-case or camelCase, says that it holds a key."""
    words = re.split(r"[-_.]", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last == "string":
        return before == "connection"
    named = last in _SECRETS and before not in _NO_SECRETS.get(last, ())
    return named or bool(_IN_ONE_WORD.fullmatch(last))


def _is_secret_text(text: str) -> bool:
    """Whether a value is a key by its form, or an address with one."""
    if _SECRET_TEXT.fullmatch(text) or _LOGIN.search(text):
        return True
    query = text.partition("?")[2] if text.startswith(("http://", "https://")) else ""
    return any(_is_secret_name(name) for name, value in parse_qsl(query[:2000]) if value)


def public(url: str) -> str:
    """Return a URL without user, password and the query parameters that are named like a key."""
    parts = urlsplit(url)
    kept = [
        item for item in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET_NAME.search(item[0])
    ]
    return _root(parts) + (f"?{urlencode(kept)}" if kept else "")


def _root(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def masked(url: str) -> str:
    """Mask what may be a password or key in a text that should be a URL but may be none."""
    url = re.sub(r"[^/]*@", "***@", url)
    return re.sub(
        r"([?&][^=&]*)=[^&]*", lambda m: m[1] + "=***" if _SECRET_NAME.search(m[1][1:]) else m[0], url
    )
