"""The specs of judges and pools, read from YAML and checked field by field.

The fields, the providers' differences and the shipped files are described in configs/judges/README.md.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_jax.annotation.costs.prices import Price, read_price
from rlhf_jax.annotation.judges.addresses import check_way, public
from rlhf_jax.annotation.judges.fields import YamlFields, read_yaml
from rlhf_jax.annotation.judges.prompts import PromptTemplate, read_template
from rlhf_jax.annotation.parsing.contracts import KINDS, ORDERS, PAIRWISE, SEEDED
from rlhf_jax.annotation.parsing.parsers import ONE_EXAMPLE, PARSER_VERSION, ParserSpec, read_parser
from rlhf_jax.errors import UserError
from rlhf_jax.ranges import number, whole

PROVIDERS = ("openai", "anthropic")
APIS = {"openai": ("chat", "responses", "decisions"), "anthropic": ("messages",)}  # The first is the default.
# Every sampling field that some protocol takes, and its type; `_SAMPLING` says which takes which.
_KINDS_OF_SAMPLING = {
    "temperature": (int, float),
    "top_p": (int, float),
    "seed": int,
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "logit_bias": dict,
    "reasoning_effort": str,
}
_RANGES_OF_SAMPLING = {
    "temperature": number(0, 2),
    "seed": whole(-(2**63), 2**63 - 1),
    "top_p": number(0, 1, above=True),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
}
_BIAS = number(-100, 100)
# Anthropic refuses any sampling parameter since its API version of 2026-10-21, even at its default.
_SAMPLING = {
    "chat": tuple(_KINDS_OF_SAMPLING),
    "responses": ("temperature", "top_p", "reasoning_effort"),
    "decisions": (),
    "messages": (),
}
_WITHOUT_SAMPLING = {"messages": "Claude's API", "decisions": "the Decisions API"}
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


@dataclass(frozen=True)
class JudgeSpec:
    """One LLM configuration: what it is asked, in which form, and how its answer is read.

    kind: pairwise (which of two outputs is better), rating, ranking (of k outputs) or completion (an answer).
    protocol: the api spoken; "" is the provider's first (`api` says which that is).
    order: pairwise only; which orders of the two outputs are shown, one of `ORDERS`.
    batch_size: how many examples one request holds.
    output_schema: a JSON schema the answer must follow, where the endpoint can promise that.
    question: decisions only; what is asked about each example.
    base_url: "" is the provider's own address; an http(s) address; or a symbolic name such as "local", whose
        address the caller gives at run time (`base_urls={"local": url}`).
    api_key_env: the environment variable that holds the key; "" for endpoints that want none.
    sampling, top_logprobs: OpenAI only. extra_body: further request fields, sent as they are.
    """

    name: str
    provider: str
    model: str
    prompt: PromptTemplate
    parser: ParserSpec
    base_url: str = ""
    api_key_env: str = ""
    max_tokens: int | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    top_logprobs: int | None = None
    extra_body: Mapping[str, object] = field(default_factory=dict)
    price: Price | None = None
    kind: str = PAIRWISE
    protocol: str = ""
    order: str = SEEDED
    batch_size: int = 1
    output_schema: Mapping[str, object] = field(default_factory=dict)
    question: str = ""

    @property
    def api(self) -> str:
        """The protocol spoken: chat, responses, decisions or messages."""
        return self.protocol or APIS[self.provider][0]

    @property
    def judge_id(self) -> str:
        """16 hex digits of a hash over all that can change a label; name, key and price cannot."""
        # The id is a name for "would label alike": an entry that is added here gives every judge a new id.
        identity = {
            "provider": self.provider,
            "base_url": public(self.base_url)
            if "@" in self.base_url or "?" in self.base_url
            else self.base_url,
            "model": self.model,
            "template": self.prompt.sha,
            "template_vars": dict(self.prompt.variables),
            # The version, since a new reading of the same answer may give another label.
            "parser": [PARSER_VERSION, repr(self.parser)],
            "max_tokens": self.max_tokens,
            "sampling": dict(self.sampling),
            "top_logprobs": self.top_logprobs,
            "extra_body": dict(self.extra_body),
            "kind": self.kind,
            "api": self.api,
            "order": self.order,
            "batch_size": self.batch_size,
            "output_schema": dict(self.output_schema),
            "question": self.question,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PoolSpec:
    """Judges that share the rows among them; `weights` need not sum to 1."""

    name: str
    judges: tuple[JudgeSpec, ...]
    weights: tuple[float, ...]


def load_pool(path: str | Path) -> PoolSpec:
    """Read a pool file, or a judge file as a pool of one.

    Errors: UserError that names the file, the field, what was found and the closest thing that would work.
    """
    path = Path(path)
    fields = YamlFields(str(path), read_yaml(path))
    # A judge file is a pool of one, so that every job takes either.
    if "judges" not in fields:
        judge = _judge(fields, path.parent)
        return PoolSpec(judge.name, (judge,), (1.0,))
    name = fields.text("name", default=path.stem)
    defaults = fields.mapping("defaults", default={})
    entries = fields.take("judges", list, default=[])
    fields.done()
    if not entries:
        raise UserError(f"{path}: judges: the pool is empty; list judge files or judges")
    loaded = [_entry(f"{path}: judges[{i}]", entry, defaults, path.parent) for i, entry in enumerate(entries)]
    judges, weights = zip(*loaded, strict=True)
    names = [judge.name for judge in judges]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{path}: judges: two judges are named {doubled!r}; give each its own name")
    if not sum(weights) > 0:
        raise UserError(f"{path}: judges: all weights are 0; give at least one judge a positive weight")
    return PoolSpec(name, judges, weights)


def load_judge(path: str | Path) -> JudgeSpec:
    """Read one judge file. Errors as `load_pool`."""
    path = Path(path)
    return _judge(YamlFields(str(path), read_yaml(path)), path.parent)


def _entry(where: str, entry: object, defaults: dict, folder: Path) -> tuple[JudgeSpec, float]:
    """One item of a pool's list: a file name, {judge: file, weight: w}, or a judge's fields and a weight."""
    if isinstance(entry, str):
        entry = {"judge": entry}
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r} is not a judge; give a file name or a judge's fields")
    entry = dict(entry)
    weight = YamlFields(where, {"weight": entry.pop("weight", 1.0)}).number("weight", low=0.0)
    if "judge" not in entry:
        return _judge(YamlFields(where, {**defaults, **entry}), folder), weight
    fields = YamlFields(where, entry)
    file = folder / fields.text("judge")
    fields.done()
    return load_judge(file), weight


def _judge(fields: YamlFields, folder: Path) -> JudgeSpec:
    # First: `done` would only call these unknown, and not say where they belong.
    _check_places(fields, tuple(_KINDS_OF_SAMPLING))
    provider = fields.choice("provider", PROVIDERS)
    kind = fields.choice("kind", KINDS, default=PAIRWISE)
    api = fields.choice("api", APIS[provider], default=APIS[provider][0])
    parser = read_parser(fields, kind)
    source, origin = read_template(fields.text("template"), folder, fields.where)
    variables = fields.mapping("template_vars", default={})
    spec = JudgeSpec(
        name=fields.text("name"),
        provider=provider,
        model=fields.text("model"),
        prompt=PromptTemplate(source, origin, variables, kind, _offered(parser)),
        parser=parser,
        base_url=fields.text("base_url", default="", empty=True).rstrip("/"),
        api_key_env=fields.text("api_key_env", default="", empty=True),
        max_tokens=fields.integer("max_tokens", low=1, default=None),
        sampling=_sampling(fields, api),
        top_logprobs=fields.integer("top_logprobs", low=1, high=20, default=None),
        extra_body=fields.mapping("extra_body", default={}),
        price=read_price(fields.where, fields.take("price", (dict, type(None)), default=None)),
        kind=kind,
        protocol=api,
        order=fields.choice("order", ORDERS, default=SEEDED),
        batch_size=fields.integer("batch_size", low=1, high=100, default=1),
        output_schema=fields.mapping("output_schema", default={}),
        question=fields.text("question", default="", empty=True),
    )
    fields.done()
    check_way(spec, fields.where)
    _check_together(spec, fields.where)
    return spec


def _offered(parser: ParserSpec) -> dict:
    """The parser's options that a template may show, so that the prompt and the parser cannot disagree."""
    return {"low": f"{parser.low:g}", "high": f"{parser.high:g}", "aspects": list(parser.aspects)}


def _sampling(fields: YamlFields, api: str) -> dict:
    given = fields.mapping("sampling", default={})
    if given and api in _WITHOUT_SAMPLING:
        raise UserError(
            f"{fields.where}: sampling.{next(iter(given))}: {_WITHOUT_SAMPLING[api]} takes no sampling settings; "
            "remove it, the answer cache is what makes a rerun repeat"
        )
    inner = YamlFields(f"{fields.where}: sampling", given)
    _check_servers(given, inner.where)
    # `done` below refuses names that the protocol does not take.
    taken = {name: inner.take(name, _KINDS_OF_SAMPLING[name], default=None) for name in _SAMPLING[api]}
    inner.done()
    found = {name: value for name, value in taken.items() if name in given}
    # Each bias is checked like a field of its own.
    bias = {f"logit_bias.{token}": value for token, value in found.get("logit_bias", {}).items()}
    for name, value in {**found, **bias}.items():
        limits = _BIAS if name in bias else _RANGES_OF_SAMPLING.get(name)
        if limits and not limits.fits(value):
            raise UserError(f"{inner.where}: {name}: found {value!r}; it must be {limits.says}")
    return found


# Checks of the fields against one another, and that settings stand where they belong.


def _check_places(fields: YamlFields, of_sampling: tuple[str, ...]) -> None:
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


def _check_servers(sampling: dict, where: str) -> None:
    """Refuse sampling settings that only some servers know. Errors: UserError."""
    for name in sampling:
        if name in _OF_SERVERS:
            raise UserError(f"{where}: {name}: not in every server's API; write it below extra_body instead")


def _check_together(spec: JudgeSpec, where: str) -> None:
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
