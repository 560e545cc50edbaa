"""What a judge's fields may be only because of one another."""

from typing import TYPE_CHECKING

from rlhf_jax.annotation.contracts import PAIRWISE, SEEDED
from rlhf_jax.annotation.parsing import ONE_EXAMPLE
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.annotation.specs import JudgeSpec


def check_together(spec: "JudgeSpec", where: str) -> None:
    """Errors: UserError that begins with `where` and names the field that does not fit another."""
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
