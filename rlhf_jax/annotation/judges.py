"""From a judge's spec to the request it sends: address, request body, and the hash that names the answer.

The hash covers the provider, the endpoint's origin and every byte of the body, so an answer is found again
exactly when the same question would be asked. A symbolic address ("local") is hashed by its name: the port
of an embedded server changes, its judges do not.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from rlhf_jax.annotation.bodies import body, settings
from rlhf_jax.annotation.fields import closest
from rlhf_jax.annotation.prompts import Data
from rlhf_jax.annotation.specs import JudgeSpec
from rlhf_jax.errors import UserError

DEFAULT_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


@dataclass(frozen=True)
class Address:
    """Where a judge is asked. `origin` is what hashes and labels carry: a symbolic address by its name."""

    provider: str
    url: str
    origin: str
    api_key_env: str

    @property
    def shown(self) -> str:
        """The URL as messages may show it."""
        return _without_credentials(self.url)

    def key(self) -> str:
        """The key from the environment. Errors: UserError naming the variable when it is not set."""
        if not self.api_key_env:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(
                f"api_key_env: the environment variable {self.api_key_env} is not set; "
                f"export it with your key for {self.origin}"
            )
        return key


def resolve(spec: JudgeSpec, base_urls: Mapping[str, str]) -> Address:
    """The address of a judge; `base_urls` gives those of symbolic names.

    Errors: UserError when a symbolic name has no address.
    """
    if not spec.base_url:
        url = origin = DEFAULT_URLS[spec.provider]
    elif "://" in spec.base_url:
        url, origin = spec.base_url, _without_credentials(spec.base_url)
    elif spec.base_url in base_urls:
        # One root for both protocols: the OpenAI client wants "/v1" in the address, Anthropic's adds it.
        root = base_urls[spec.base_url].rstrip("/").removesuffix("/v1")
        url, origin = root + ("/v1" if spec.provider == "openai" else ""), spec.base_url
    else:
        raise UserError(
            f"judge {spec.name}: base_url: {spec.base_url!r} has no address; "
            f"give an http(s) URL or one of base_urls ({closest(spec.base_url, list(base_urls))})"
        )
    return Address(spec.provider, url, origin, spec.api_key_env)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{(parts.hostname or '').lower()}{port}{parts.path.rstrip('/')}"


class Judge:
    """A judge ready to be asked."""

    def __init__(self, spec: JudgeSpec, base_urls: Mapping[str, str]) -> None:
        self.spec = spec
        self.id = spec.judge_id
        self.address = resolve(spec, base_urls)
        self._settings = settings(spec)
        self.settings_json = json.dumps(self._settings, sort_keys=True)

    def body(self, examples: Sequence[Data]) -> dict:
        """The JSON body that asks about `examples`, each the data of this judge's kind (prompts.DATA_NAMES)."""
        return body(self.spec, self._settings, self.spec.prompt.messages(examples), len(examples))

    def request_hash(self, body: dict, sample: int = 0) -> str:
        """SHA-256 (hex) of provider, origin, body and which of several samples, as canonical JSON."""
        request = {"provider": self.spec.provider, "origin": self.address.origin, "body": body}
        if sample:
            request["sample"] = sample
        text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """One distinct request, small enough to hold 100,000 of: the body is made again when it is sent."""

    judge: Judge
    key: str
    examples: tuple[Data, ...]

    def body(self) -> dict:
        """The request's JSON body."""
        return self.judge.body(self.examples)
