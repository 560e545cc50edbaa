"""From a judge's spec to the request it sends: address, request body, and the hash that names the answer.

The hash covers the provider, the endpoint's origin and every byte of the body, so an answer is found again
exactly when the same question would be asked. A symbolic address ("local") is hashed by its name: the port
of an embedded server changes, its judges do not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_jax.annotation.addresses import Address, resolve
from rlhf_jax.annotation.bodies import body, settings
from rlhf_jax.annotation.prompts import Data
from rlhf_jax.annotation.specs import JudgeSpec

__all__ = ["Address", "Job", "Judge", "resolve"]


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
