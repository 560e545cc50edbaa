"""Bugs that other projects shipped in learning from feedback: each has tests that fail where we have it, or a reason.

The lists are the TOML files beside this one, a table for each bug: `id`, the `bug` in a sentence, `seen` (where: issues
and commits of trl, openrlhf, verl, oi for open-instruct, nemorl for NeMo RL, aligner for NeMo-Aligner, trlx, dse for
DeepSpeed-Chat, tune for torchtune, lf for LLaMA-Factory, liger and others), and either `tests` or `why`: what of the
design rules it out, with its module. Numbers with a letter are one report of several bugs.
"""

import ast
import re
import tomllib
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [Path(__file__).with_name(f"{name}.toml") for name in ("tokens", "losses", "runs", "methods")]
ALL = [one for file in FILES for one in tomllib.loads(file.read_text())["bug"]]
SUITE = "tests/methods/method_suite.py"
# Reports in the order of the lists, and bugs in the released code of RRHF and Quark; other ids are words.
NUMBERED, RELEASED = range(1, 85), range(1, 8)


@cache
def definitions(file: str) -> dict[str, ast.AST]:
    """The functions and classes of a file by name, those of classes as Class::name."""
    found = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{x.name}": x for x in node.body if isinstance(x, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
    return found


def function_of(test: str) -> ast.AST | None:
    """The function that a test's name means; of a method's test class, maybe the suite's."""
    file, _, name = test.partition("::")
    if not (ROOT / file).is_file():
        return None
    found, (owner, _, function) = definitions(file), name.partition("::")
    inherits = function and any(getattr(base, "id", "") == "MethodSuite" for base in found[owner].bases)
    return found.get(name) or (definitions(SUITE).get(f"MethodSuite::{function}") if inherits else None)


def test_no_number_is_missing_and_none_is_there_twice():
    ids = [one["id"] for one in ALL]
    assert len(set(ids)) == len(ids)
    parts = [match.groups() for x in ids if (match := re.fullmatch(r"(R?)(\d+)([a-z]?)", x))]
    for kind, wanted in (("", NUMBERED), ("R", RELEASED)):
        mine = [(int(number), letter) for one, number, letter in parts if one == kind]
        assert [number for number, _ in groupby(mine, key=lambda x: x[0])] == list(wanted)
        for number, of in groupby(mine, key=lambda x: x[0]):
            letters = "".join(letter for _, letter in of)
            assert letters == "abcdefgh"[: len(letters)], f"{kind}{number}"
    assert len(ids) > len(parts) >= 91


@pytest.mark.parametrize("one", ALL, ids=lambda one: one["id"])
def test_it_has_tests_that_are_there_or_a_reason(one):
    assert one.keys() in ({"id", "bug", "seen", "tests"}, {"id", "bug", "seen", "why"})
    assert one["bug"].endswith(".") and one["seen"]
    if "why" in one:
        named = re.findall(r"(?<![\w/])[\w/]+\.py", one["why"])
        assert named and all((ROOT / "rlhf_jax" / file).is_file() for file in named), named
        return
    assert one["tests"] and len(set(one["tests"])) == len(one["tests"])
    found = {test: function_of(test) for test in one["tests"]}
    assert all(found.values()), [test for test, node in found.items() if node is None]
    # What only runs when asked for would let the bug pass every day.
    assert any(
        all(getattr(x, "id", "") != "wide" for x in function.decorator_list) for function in found.values()
    )
