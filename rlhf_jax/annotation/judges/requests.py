"""From a judge's spec to the request it sends: address, request body, and the hash that names the answer.

The hash covers the provider, the endpoint's origin and every byte of the body, so an answer is found again
exactly when the same question would be asked. A symbolic address ("local") is hashed by its name: the port
of an embedded server changes, its judges do not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_jax.annotation.judges.addresses import Address, resolve_address
from rlhf_jax.annotation.judges.prompts import Data
from rlhf_jax.annotation.judges.specs import JudgeSpec
from rlhf_jax.annotation.parsing.contracts import RATING

# Request bodies: a judge's spec as the JSON of each of the four protocols.
#
# chat is OpenAI's chat completions, spoken by vLLM, llama.cpp and most gateways; responses is OpenAI's newer form;
# decisions is its endpoint for judgments, which answers with probabilities; messages is Anthropic's. Field names are
# those of the openai 3 and anthropic 2 clients.

# OpenAI has replaced max_tokens by max_completion_tokens, which counts reasoning too.
_LIMIT = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}


def body_settings(spec: JudgeSpec) -> dict:
    """Build the part of a request's body that is the same for all questions of a judge."""
    made: dict = {"model": spec.model, **spec.sampling}
    if spec.max_tokens is not None:
        made[_LIMIT[spec.api]] = spec.max_tokens
    made |= _LOGPROBS[spec.api](spec.top_logprobs) if spec.top_logprobs is not None else {}
    made |= _SCHEMA[spec.api](dict(spec.output_schema)) if spec.output_schema else {}
    if spec.api == "responses":
        # OpenAI stores responses for 30 days unless told not to; reruns read our own cache.
        made["store"] = False
        if "reasoning_effort" in made:
            made["reasoning"] = {"effort": made.pop("reasoning_effort")}
    # Last, so that extra_body can override any field above.
    return made | dict(spec.extra_body)


_LOGPROBS = {
    "chat": lambda top: {"logprobs": True, "top_logprobs": top},
    "responses": lambda top: {"top_logprobs": top, "include": ["message.output_text.logprobs"]},
}
_SCHEMA = {
    "chat": lambda schema: {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    },
    "responses": lambda schema: {
        "text": {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": schema}}
    },
    "messages": lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
}


def request_body(spec: JudgeSpec, made: dict, messages: list[dict[str, str]], n: int) -> dict:
    """Build the whole body: `made` (see `body_settings`), the messages and, for decisions, a question per example."""
    if spec.api == "chat":
        return {**made, "messages": messages}
    if spec.api == "messages":
        # Anthropic takes the system text as a field of its own, not as a message.
        if messages[0]["role"] == "system":
            return {**made, "system": messages[0]["content"], "messages": messages[1:]}
        return {**made, "messages": messages}
    if spec.api == "responses":
        return {**made, "input": messages}
    return {**made, "input": messages, "questions": [_question(spec, i, n) for i in range(n)]}


def _question(spec: JudgeSpec, i: int, n: int) -> dict:
    about = f"About example {i + 1}: {spec.question}" if n > 1 else spec.question
    question = {"name": f"example_{i + 1}", "instructions": about}
    if spec.kind == RATING:
        return {"type": "score", **question, "levels": [{"label": level} for level in spec.parser.levels]}
    sides = (spec.parser.first[0], spec.parser.second[0])
    return {"type": "choice", **question, "choices": [{"value": side} for side in sides]}


__all__ = ["Address", "Job", "Judge", "resolve_address"]


class Judge:
    """A judge with its address and the fixed part of its requests."""

    def __init__(self, spec: JudgeSpec, base_urls: Mapping[str, str]) -> None:
        self.spec = spec
        self.id = spec.judge_id
        self.address = resolve_address(spec, base_urls)
        self._settings = body_settings(spec)
        self.settings_json = json.dumps(self._settings, sort_keys=True)

    def body(self, examples: Sequence[Data]) -> dict:
        """Build the JSON body that asks about `examples`, each the data of this judge's kind (prompts.DATA_NAMES)."""
        return request_body(self.spec, self._settings, self.spec.prompt.messages(examples), len(examples))

    def request_hash(self, body: dict, sample: int = 0) -> str:
        """Hash provider, origin, body and the sample's number as canonical JSON (SHA-256, hex)."""
        request = {"provider": self.spec.provider, "origin": self.address.origin, "body": body}
        # Not for sample 0: the first of several answers is the one that a single sample would have.
        if sample:
            request["sample"] = sample
        # Canonical JSON: the hash must not depend on the order in which fields were set.
        text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """One distinct request. The body is made again when it is sent, so that 100,000 jobs fit in memory."""

    judge: Judge
    key: str
    examples: tuple[Data, ...]

    def body(self) -> dict:
        """Build the request's JSON body."""
        return self.judge.body(self.examples)
