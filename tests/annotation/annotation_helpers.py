"""Judges and rows the annotation tests share."""

import os
from pathlib import Path

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.calls.retries import RetryPolicy
from rlhf_jax.annotation.judges.prompts import PromptTemplate, read_template
from rlhf_jax.annotation.judges.specs import JudgeSpec, PoolSpec, Price
from rlhf_jax.annotation.parsing.parsers import Parsed, ParserSpec, parse_all

# For child processes: they find the package whether or not it is installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

REFUSED = "refused"

# The shipped numbers of attempts with next to no waiting.
QUICK = RetryPolicy(base_s=0.005, cap_s=0.02)


def judge_spec(name: str = "tester", **changes: object) -> JudgeSpec:
    """A judge that asks for one token at the symbolic address "local", for free."""
    source, origin = read_template(changes.pop("template", "pairwise_choice"), Path(), "test")
    fields: dict = {
        "name": name,
        "provider": "openai",
        "model": "test-model",
        "prompt": PromptTemplate(source, origin),
        "parser": ParserSpec("choice"),
        "base_url": "local",
        "max_tokens": 5,
        "price": Price(0.0, 0.0),
    }
    return JudgeSpec(**{**fields, **changes})


def pool_of(*judges: JudgeSpec) -> PoolSpec:
    return PoolSpec("test_pool", judges, (1.0,) * len(judges))


def make_rows(n: int) -> list[dict]:
    return [
        {"instruction": f"Say {i}.", "input": "", "output_1": f"first {i}", "output_2": f"second {i}"}
        for i in range(n)
    ]


def read(spec: ParserSpec, text: str, finish: str = "stop") -> Parsed:
    """The first column of what a parser makes of an answer to three outputs."""
    return parse_all(Answer(text, finish_reason=finish), spec, 1, 3)[0]


def check_reading(parsed: Parsed, wanted: object, column: str) -> None:
    """`wanted` is a value, REFUSED, or None for an answer that says no single one."""
    if wanted is None or wanted == REFUSED:
        assert (getattr(parsed, column), parsed.status) == (None, wanted or "parse_error") and parsed.detail
    else:
        assert (getattr(parsed, column), parsed.status) == (wanted, "ok")
