"""labels.parquet: every column back, whole or not at all, and clear about what it cannot read or store."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs, read_labels, status_counts, write_labels
from rlhf_jax.annotation.labels.labels_file import COLUMNS, schema
from rlhf_jax.annotation.parsing.parsers import ParserSpec
from rlhf_jax.errors import UserError


@pytest.fixture(scope="module")
def labelled() -> list[dict]:
    rows = make_rows(30)
    rows[0]["output_2"] = rows[0]["output_1"]
    judge = judge_spec(parser=ParserSpec("logprob"), top_logprobs=2)
    with FakeServer(lambda body, nth: openai_payload("a", top_logprobs={"a": -0.25, "b": -1.5})) as server:
        return annotate_pairs(rows, pool_of(judge), base_urls={"local": server.url}, p_label_flip=0.1).rows


def test_rows_and_config_come_back(tmp_path: Path, labelled: list[dict]) -> None:
    path = tmp_path / "labels" / "labels.parquet"
    config = {"pool": "p", "seed": 0, "nested": {"x": [1, None]}}
    write_labels(path, labelled, config)
    rows, read_config = read_labels(path)
    assert read_config == config
    for read, row in zip(rows, labelled, strict=True):
        assert set(read) == set(COLUMNS)
        for name, value in row.items():
            expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            if name == "created_at" and value is not None:
                expected = value.replace(microsecond=value.microsecond // 1000 * 1000)
            assert read[name] == expected, name
    assert [path.name for path in path.parent.iterdir()] == ["labels.parquet"]


def test_the_schema_does_not_depend_on_the_rows(tmp_path: Path, labelled: list[dict]) -> None:
    write_labels(tmp_path / "all", labelled, {})
    write_labels(tmp_path / "ties", [row for row in labelled if row["status"] == "tie_identical"], {})
    write_labels(tmp_path / "none", [], {})
    for name in ("all", "ties", "none"):
        assert pq.read_schema(tmp_path / name).remove_metadata().equals(schema())
    assert read_labels(tmp_path / "none").rows == []


def test_the_callers_own_columns_are_kept(tmp_path: Path, labelled: list[dict]) -> None:
    rows = [row | {"family": "listing", "score": i / 2} for i, row in enumerate(labelled)]
    write_labels(tmp_path / "l", rows, {})
    assert [row["score"] for row in read_labels(tmp_path / "l").rows] == [row["score"] for row in rows]


def test_a_status_is_counted(labelled: list[dict]) -> None:
    counts = status_counts(labelled)
    assert counts["tie_identical"] == 1 and sum(counts.values()) == 30 and counts["noise"] > 0


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, labelled: list[dict]) -> None:
    path = tmp_path / "labels.parquet"
    write_labels(path, labelled, {"v": 1})
    with pytest.raises(UserError, match=r"labels column 'rating'"):
        write_labels(path, [labelled[0] | {"rating": 1}, labelled[1] | {"rating": "x"}], {"v": 2})
    assert read_labels(path).config == {"v": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_labels(tmp_path / "file" / "labels.parquet", labelled, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "labels.parquet"]


def test_what_is_no_labels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such file"):
        read_labels(tmp_path / "gone")
    (tmp_path / "broken").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"broken: not a readable parquet file"):
        read_labels(tmp_path / "broken")
    pq.write_table(pa.table({"preference": [1.0]}), tmp_path / "foreign")
    with pytest.raises(UserError, match=r"foreign: labels of version none"):
        read_labels(tmp_path / "foreign")
