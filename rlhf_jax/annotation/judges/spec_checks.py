"""Checks of a judge's fields against one another, and that no key stands in its file."""

import re
from typing import TYPE_CHECKING

from rlhf_jax.annotation.judges.addresses import check_url, is_symbolic, shown_variable
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, SEEDED
from rlhf_jax.annotation.parsing.parsers import ONE_EXAMPLE
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.annotation.judges.fields import YamlFields
    from rlhf_jax.annotation.judges.specs import JudgeSpec


# Sampling settings of vLLM and other servers, or of one provider.
_OF_SERVERS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "n",
    "verbosity",
    "service_tier",
    "chat_template_kwargs",
)
# Settings that other tools keep with a model; here they are the job's, under the name on the right.
_OF_THE_PAGE = {
    **dict.fromkeys(("concurrency", "max_concurrency", "n_concurrent"), "max_concurrency"),
    **dict.fromkeys(("timeout", "timeout_s", "request_timeout"), "timeout_s"),
    **dict.fromkeys(("rpm", "requests_per_minute"), "requests_per_minute"),
    **dict.fromkeys(("tpm", "tokens_per_minute"), "tokens_per_minute"),
    **dict.fromkeys(("retries", "max_retries", "num_retries"), ""),
}


def check_places(fields: "YamlFields", of_sampling: tuple[str, ...]) -> None:
    """Refuse settings that belong elsewhere. Errors: UserError that says where."""
    for name in of_sampling:
        if name in fields:
            raise UserError(
                f"{fields.where}: {name}: stands below `sampling`; write sampling: {{{name}: ...}}"
            )
    for name, page in _OF_THE_PAGE.items():
        if name in fields:
            fix = f"give --config.{page} instead" if page else "failed requests are tried again anyway"
            raise UserError(f"{fields.where}: {name}: is no setting of a judge; {fix}")


def check_servers(sampling: dict, where: str) -> None:
    """Refuse sampling settings that only some servers know. Errors: UserError."""
    for name in sampling:
        if name in _OF_SERVERS:
            raise UserError(f"{where}: {name}: not in every server's API; write it below extra_body instead")


def check_together(spec: "JudgeSpec", where: str) -> None:
    """Check fields that depend on one another. Errors: UserError that begins with `where` and names the field."""
    # The Decisions API takes a question and answers with probabilities, which only its own parser reads.
    decides = spec.api == "decisions"
    if decides != (spec.parser.name == "decision"):
        raise UserError(f"{where}: parser: the api decisions and the parser decision go together only")
    if decides != bool(spec.question):
        raise UserError(
            f"{where}: question: the api decisions needs it, e.g. Which output is better?; no other takes it"
        )
    if decides and (spec.max_tokens is not None or spec.top_logprobs is not None or spec.output_schema):
        raise UserError(
            f"{where}: api: decisions takes no max_tokens, top_logprobs or output_schema; remove them"
        )
    if spec.order != SEEDED and spec.kind != PAIRWISE:
        raise UserError(f"{where}: order: found {spec.order!r}; only pairwise judges are shown two orders")
    if spec.batch_size > 1 and not spec.prompt.takes_many:
        raise UserError(
            f"{where}: batch_size: found {spec.batch_size}, but template {spec.prompt.name} shows one example; "
            "give one that loops over `examples`"
        )
    if spec.batch_size > 1 and spec.parser.name in ONE_EXAMPLE:
        raise UserError(
            f"{where}: batch_size: found {spec.batch_size}, but the parser {spec.parser.name} reads one example; set 1"
        )
    if spec.provider == "anthropic" and spec.top_logprobs is not None:
        raise UserError(f"{where}: top_logprobs: Claude's API gives no log-probabilities; remove the field")
    if spec.provider == "anthropic" and spec.max_tokens is None:
        raise UserError(f"{where}: max_tokens: not given; Claude's API requires it, e.g. 1024")
    if spec.parser.name == "logprob" and spec.top_logprobs is None:
        raise UserError(f"{where}: top_logprobs: not given; the logprob parser needs it, e.g. 5")


# Fields of a request body in which gateways take keys. A key there would be published with the labels, which
# keep the settings of the request.
_KEYS_IN_BODIES = re.compile(
    r"(?i)(api[_-]?|access[_-]?|auth[_-]?)(key|token)|authorization|password|secret|bearer"
)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def check_way(spec: "JudgeSpec", where: str) -> None:
    """Check the address and the key's variable. Errors: UserError that repeats no key or password."""
    if spec.base_url and not is_symbolic(spec.base_url):
        check_url(f"{where}: base_url", spec.base_url)
    if spec.api_key_env and not _NAME.fullmatch(spec.api_key_env):
        raise UserError(
            f"{where}: api_key_env: no environment variable can have the name {_masked(spec.api_key_env)}; "
            "put the key into a variable, e.g. OPENAI_API_KEY, and write that name here"
        )
    found = _key_field(spec.extra_body)
    if found:
        raise UserError(
            f"{where}: extra_body.{found}: a key here would be kept with every label; give it by api_key_env"
        )


def _masked(name: str) -> str:
    return shown_variable(name).removeprefix("of that name ")


def _key_field(body: object, path: str = "") -> str:
    """The first field of a request that is named like a key, "" for none."""
    if isinstance(body, list | tuple):
        return next((found for item in body if (found := _key_field(item, path))), "")
    # Any mapping counts, as the type of `extra_body` allows.
    if not hasattr(body, "items"):
        return ""
    for name, value in body.items():
        if isinstance(value, str) and _KEYS_IN_BODIES.fullmatch(str(name)):
            return f"{path}{name}"
        if found := _key_field(value, f"{path}{name}."):
            return found
    return ""
