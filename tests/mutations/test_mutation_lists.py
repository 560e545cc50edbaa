"""The lists of changes that tests must notice still fit the package: run_mutations.py beside this file runs them."""

import ast
from pathlib import Path

import pytest
from run_mutations import ROOT, mutated, mutations

ALL = mutations()


def test_no_two_have_one_name():
    assert len({one["name"] for one in ALL}) == len(ALL) > 300


@pytest.mark.parametrize("one", ALL, ids=lambda one: one["name"])
def test_it_changes_the_code_of_a_file_and_names_its_tests(one):
    """Fails where the code moved on: the change is then written anew, or goes with what it guarded."""
    was = (ROOT / "rlhf_jax" / one["file"]).read_text()
    assert ast.dump(ast.parse(mutated(one))) != ast.dump(ast.parse(was))
    for test in one["tests"]:
        file, _, function = test.partition("::")
        text = (ROOT / file).read_text()
        assert (
            f"def {function.partition('[')[0]}(" in text if function else Path(file).name.startswith("test_")
        )
