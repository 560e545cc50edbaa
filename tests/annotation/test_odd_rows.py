"""Rows with values of other kinds than they should have: one line that names the row, and no label is lost for them."""

import math

import pytest

from rlhf_jax.annotation import join_outputs, pair_samples, read_labels, write_labels
from rlhf_jax.annotation.kinds.pairs import outputs_of
from rlhf_jax.errors import UserError

LONG = pytest.param(10**5000, id="more digits than Python writes")
ODD = [math.nan, 3, 1.25, True, {"a": 1}, [None, "a", 3], 10**400, LONG]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("column", ["instruction", "input", "outputs", "generators"])
def test_samples(column, value):
    row = {"instruction": "i", "input": "", "outputs": ["a", "b"]} | {column: value}
    with pytest.raises(UserError, match=rf"^rows\[0\]: {column}: ") as error:
        outputs_of(row, 0)
    assert len(str(error.value)) < 160 and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [[], {}])
def test_an_empty_list_is_no_instruction(value):
    with pytest.raises(UserError, match=r"^rows\[0\]: instruction: found "):
        pair_samples([{"instruction": value, "outputs": ["a", "b"]}])


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("column", ["instruction", "input", "output"])
def test_head_to_head(column, value):
    row = {"instruction": "i", "input": "", "output": "a"}
    with pytest.raises(UserError, match=rf"^outputs_2\[0\]: {column}: found "):
        join_outputs([row], [row | {column: value}])


def test_further_columns_of_several_kinds_do_not_cost_labels(tmp_path):
    rows = [
        {"instruction": "i", "preference": 1.0, "note": x, "dataset": x}
        for x in ("a", 3, math.nan, {"b": [1]})
    ]
    write_labels(tmp_path / "labels.parquet", rows, {})
    found = read_labels(tmp_path / "labels.parquet").rows
    assert [row["note"] for row in found] == ["a", "3", None, '{"b": [1]}']
    assert [row["dataset"] for row in found] == ["a", "3", None, '{"b": [1]}']
    with pytest.raises(UserError, match=r"labels column 'preference': cannot be stored"):
        write_labels(tmp_path / "labels.parquet", [*rows, rows[0] | {"preference": "x"}], {})
