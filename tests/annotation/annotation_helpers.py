"""Judges and rows the annotation tests share."""

import os
from pathlib import Path

from rlhf_jax.annotation.calls.retries import RetryPolicy
from rlhf_jax.annotation.judges.prompts import PromptTemplate, read_template
from rlhf_jax.annotation.judges.specs import JudgeSpec, PoolSpec, Price
from rlhf_jax.annotation.parsing.parsers import ParserSpec

# For child processes: they find the package whether or not it is installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

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
