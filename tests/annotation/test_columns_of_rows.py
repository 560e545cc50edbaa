"""The rows' own columns beside the labels': what cannot be stored is told before anything is asked and paid for."""

from pathlib import Path

import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import QUICK, judge_spec, pool_of
from test_ratings_and_rankings import shipped

from rlhf_jax.annotation import (
    annotate_completions,
    annotate_pairs,
    annotate_rankings,
    annotate_ratings,
    annotate_samples,
    read_labels,
    write_labels,
)
from rlhf_jax.annotation.labels.labels_file import schema
from rlhf_jax.errors import UserError

PAIR = {"output_1": "x", "output_2": "y"}
KINDS = {
    "pairs": (annotate_pairs, PAIR, judge_spec(), "a"),
    "samples": (annotate_samples, {"outputs": ["x", "y"]}, judge_spec(), "a"),
    "pairs of outputs": (annotate_rankings, {"outputs": ["x", "y"]}, judge_spec(), "a"),
    "ratings": (annotate_ratings, {"output": "x"}, shipped("sparse_ratings"), "3"),
    "rankings": (annotate_rankings, {"outputs": ["x", "y"]}, shipped("order"), "1 2"),
    "completions": (annotate_completions, {}, shipped("baseline_gpt4"), "fine"),
}
OF_NUMBERS = [field.name for field in schema() if str(field.type) != "string"]


def annotate(kind: str, server: FakeServer, *columns: dict) -> list[dict]:
    ask, row, judge, _ = KINDS[kind]
    rows = [{"instruction": f"Say {i}.", **row, **more} for i, more in enumerate(columns)]
    return ask(rows, pool_of(judge), base_urls={"local": server.url}, retry=QUICK).rows


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("value", ["s1", ["x", "y"], 70_000.5], ids=str)
def test_a_column_of_the_rows_never_costs_paid_labels(tmp_path: Path, kind: str, value: object) -> None:
    with FakeServer(lambda body, nth: openai_payload(KINDS[kind][3])) as server:
        for name in OF_NUMBERS:
            asked = len(server.bodies)
            try:
                rows = annotate(kind, server, {}, {name: value})
            except UserError as error:
                words = rf"rows[1]: {name}: found {value!r}; the labels have a column of this name"
                assert str(error).startswith(words) and str(error).endswith("; rename yours or drop it")
                assert len(server.bodies) == asked
            else:
                assert len(server.bodies) > asked
                write_labels(tmp_path / "labels.parquet", rows, {})


@pytest.mark.parametrize(
    ("column", "kind"),
    [({"rating": "good"}, "ratings"), ({"completions": ["x"]}, "rankings"), ({"preference": "first"}, "pairs"),
     ({"sample_index": "s1"}, "completions"), ({"p_label_flip": "x"}, "pairs"), ({"seed": "x"}, "ratings"),
     ({"latency_ms": "x"}, "pairs")],
)  # fmt: skip
def test_a_column_that_the_labels_write_anew_is_no_obstacle(column: dict, kind: str) -> None:
    with FakeServer(lambda body, nth: openai_payload(KINDS[kind][3])) as server:
        assert {row["status"] for row in annotate(kind, server, column)} <= {"ok", "parse_error"}


@pytest.mark.parametrize(
    "column", [{"sample_index": 70_000}, {"completions": [{"model": "m", "output": "x"}]}]
)
def test_values_out_of_range_and_keys_that_would_be_lost_are_told(column: dict) -> None:
    name = next(iter(column))
    with FakeServer() as server, pytest.raises(UserError, match=rf"rows\[1\]: {name}: found .*rename yours"):
        annotate("pairs", server, {}, column)
    assert server.bodies == []


def test_columns_that_fit_are_kept(tmp_path: Path) -> None:
    ranked = [{"output": "x", "rank": 1}, None]
    own = {"rating": 3.5, "sample_index": 7, "completions": ranked, "split": 3, "note": ["n"], "tie": None}
    with FakeServer() as server:
        write_labels(tmp_path / "labels.parquet", annotate("pairs", server, own, {}), {})
    row = read_labels(tmp_path / "labels.parquet").rows[0]
    assert (row["rating"], row["sample_index"], row["split"], row["note"]) == (3.5, 7, "3", ["n"])
    assert row["completions"][0]["rank"] == 1
