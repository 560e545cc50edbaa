"""Judges are data: one YAML file per judge, checked field by field, and pools of weighted judges.

The fields, the providers' differences and the shipped files are described in configs/judges/README.md.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from rlhf_jax.annotation.costs import Price, read_price
from rlhf_jax.annotation.fields import Fields
from rlhf_jax.annotation.parsing import PARSER_VERSION, PARSERS, ParserSpec
from rlhf_jax.annotation.prompts import PromptTemplate, read_template
from rlhf_jax.errors import UserError

PROVIDERS = ("openai", "anthropic")
APIS = {"openai": "chat", "anthropic": "messages"}

_SAMPLING = {
    "temperature": (int, float),
    "top_p": (int, float),
    "seed": int,
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "logit_bias": dict,
    "reasoning_effort": str,
}


@dataclass(frozen=True)
class JudgeSpec:
    """One LLM configuration that compares two outputs.

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

    @property
    def api(self) -> str:
        """The protocol spoken: "chat" (OpenAI chat completions) or "messages" (Anthropic)."""
        return APIS[self.provider]

    @property
    def judge_id(self) -> str:
        """16 hex digits of a hash over all that can change a label; name, key and price cannot."""
        identity = {
            "provider": self.provider,
            "base_url": self.base_url,
            "model": self.model,
            "template": self.prompt.sha,
            "template_vars": dict(self.prompt.variables),
            "parser": [PARSER_VERSION, repr(self.parser)],
            "max_tokens": self.max_tokens,
            "sampling": dict(self.sampling),
            "top_logprobs": self.top_logprobs,
            "extra_body": dict(self.extra_body),
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
    fields = Fields(str(path), _read_yaml(path))
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
    return _judge(Fields(str(path), _read_yaml(path)), path.parent)


def _read_yaml(path: Path) -> dict:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"there is {', '.join(others)}" if others else "no .yaml file is there"
        raise UserError(f"{path}: no such judge or pool file; in {path.parent} {there}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a judge or pool file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({problem}); mend the line it names") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds {type(loaded).__name__}, not fields; start with `name: ...`")
    return loaded


def _entry(where: str, entry: object, defaults: dict, folder: Path) -> tuple[JudgeSpec, float]:
    """One item of a pool's list: a file name, {judge: file, weight: w}, or a judge's fields and a weight."""
    if isinstance(entry, str):
        entry = {"judge": entry}
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r} is not a judge; give a file name or a judge's fields")
    entry = dict(entry)
    weight = Fields(where, {"weight": entry.pop("weight", 1.0)}).number("weight", low=0.0)
    if "judge" not in entry:
        return _judge(Fields(where, {**defaults, **entry}), folder), weight
    fields = Fields(where, entry)
    file = folder / fields.text("judge")
    fields.done()
    return load_judge(file), weight


def _judge(fields: Fields, folder: Path) -> JudgeSpec:
    provider = fields.choice("provider", PROVIDERS)
    parser = _parser(fields)
    source, origin = read_template(fields.text("template"), folder, fields.where)
    variables = fields.mapping("template_vars", default={})
    spec = JudgeSpec(
        name=fields.text("name"),
        provider=provider,
        model=fields.text("model"),
        prompt=PromptTemplate(source, origin, variables),
        parser=parser,
        base_url=fields.text("base_url", default="", empty=True).rstrip("/"),
        api_key_env=fields.text("api_key_env", default="", empty=True),
        max_tokens=fields.integer("max_tokens", low=1, default=None),
        sampling=_sampling(fields, provider),
        top_logprobs=fields.integer("top_logprobs", low=1, high=20, default=None),
        extra_body=fields.mapping("extra_body", default={}),
        price=read_price(fields.where, fields.take("price", (dict, type(None)), default=None)),
    )
    fields.done()
    _check_provider(spec, fields.where)
    return spec


def _check_provider(spec: JudgeSpec, where: str) -> None:
    if spec.provider == "anthropic" and spec.top_logprobs is not None:
        raise UserError(f"{where}: top_logprobs: Claude's API gives no log-probabilities; remove the field")
    if spec.provider == "anthropic" and spec.max_tokens is None:
        raise UserError(f"{where}: max_tokens: not given; Claude's API requires it, e.g. 1024")
    if spec.parser.name == "logprob" and spec.top_logprobs is None:
        raise UserError(f"{where}: top_logprobs: not given; the logprob parser needs it, e.g. 5")


def _parser(fields: Fields) -> ParserSpec:
    """`parser: choice`, or a mapping with the name and options."""
    value = fields.take("parser", (str, dict))
    inner = Fields(f"{fields.where}: parser", {"name": value} if isinstance(value, str) else value)
    name = inner.choice("name", tuple(PARSERS))
    options: dict = {side: inner.texts(side, default=(letter,)) for side, letter in _SIDES}
    if name == "logprob":
        options["min_mass"] = inner.number("min_mass", low=0.0, high=1.0, default=0.9)
        options["position"] = inner.integer("position", default=0)
    inner.done()
    if set(options["first"]) & set(options["second"]):
        raise UserError(f"{inner.where}: first and second share a name; give each output its own")
    return ParserSpec(name, **options)


_SIDES = (("first", "a"), ("second", "b"))


def _sampling(fields: Fields, provider: str) -> dict:
    given = fields.mapping("sampling", default={})
    if provider == "anthropic" and given:
        raise UserError(
            f"{fields.where}: sampling.{next(iter(given))}: Claude's API takes no sampling settings; "
            "remove it, the answer cache is what makes a rerun repeat"
        )
    inner = Fields(f"{fields.where}: sampling", given)
    taken = {name: inner.take(name, kind, default=None) for name, kind in _SAMPLING.items()}
    inner.done()
    return {name: value for name, value in taken.items() if name in given}
