"""Table files: every format read alike, every broken one a one-line error, writing atomic."""

import gzip
import json
import os
import time

import pyarrow.parquet as pq
import pytest

from rlhf_jax.data.files import tables
from rlhf_jax.data.files.tables import read_results, read_table, write_jsonl, write_parquet
from rlhf_jax.errors import UserError

ROWS = [{"instruction": "é日", "input": "", "n": 1}, {"instruction": "b\nc", "input": "x", "n": None}]


def error_of(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def write_json(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def write_json_gz(path, rows):
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))


def write_jsonl_gz(path, rows):
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.parquet", write_parquet),
        ("t.jsonl", write_jsonl),
        ("t.json", write_json),
        ("t.json.gz", write_json_gz),
        ("t.jsonl.gz", write_jsonl_gz),
        ("lines.json", write_jsonl),  # a JSONL file by another name
    ],
)
def test_every_format_reads_back(tmp_path, name, write):
    write(tmp_path / name, ROWS)
    assert read_table(tmp_path / name) == ROWS
    assert read_table(str(tmp_path / name), ["n"]) == [{"n": 1}, {"n": None}]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[1:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text("not a table")
    for name in (".c.jsonl", "_c.jsonl"):
        (tmp_path / name).write_text('{"half": "writ')
    assert read_table(tmp_path) == ROWS
    write_parquet(tmp_path / "c.parquet", ROWS)
    assert "mixes .jsonl, .parquet files" in error_of(read_table, tmp_path)


def test_a_folder_saved_by_datasets(tmp_path):
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    assert read_table(tmp_path / "one") == ROWS
    datasets.DatasetDict({"train": one, "val": one}).save_to_disk(str(tmp_path / "two"))
    assert "several splits (train, val); name one" in error_of(read_table, tmp_path / "two")


def test_a_hub_name_is_asked_for_only_when_it_can_be_one(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        if name == "org/none":
            raise ConnectionError("no\nnetwork")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert read_table("org/data") == ROWS
    assert read_table("org/data:train") == ROWS
    assert "org/data: no split 'test'; it has train" in error_of(read_table, "org/data:test")
    message = error_of(read_table, "org/none", made_by="python -m x")
    assert "(no network); make it with: python -m x" in message
    asked.clear()
    (tmp_path / "runs").mkdir()
    for path in ["runs/sft", "runs/sft.parquet", "other/sft.jsonl", "a/b/c", "/a/b", "sft"]:
        message = error_of(read_table, path, made_by="python -m rlhf_jax.main --config=configs/farm.py")
        expected = f"{path}: no such file; make it with: python -m rlhf_jax.main --config=configs/farm.py"
        assert message == expected
    assert asked == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"", "the file is empty"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n\n", "it has no rows"),
        ("a.json", b"[]", "it has no rows"),
        ("a.parquet", b"PAR1 and then nothing of the kind", "parquet"),
        ("a.parquet", b"not parquet at all, but long enough", "broken parquet"),
        ("a.json", b'[{"a": 1}', "broken JSON at line 1"),
        ("a.json", b'{"a": 1}', "holds one dict; a table is a list of objects"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "broken JSON at line 2"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "row 2 is a list"),
        ("a.jsonl", b'{"a": "\xff\xfe"}', "cannot be read"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9], "cannot be read"),
        ("a.csv", b"a,b", "unknown kind of table '.csv'; use .parquet"),
    ],
)
def test_broken_files(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    message = error_of(read_table, path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_a_truncated_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    assert "parquet" in error_of(read_table, path)


def test_a_missing_column_names_what_is_there(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ROWS)
    message = error_of(read_table, path, ["instruction", "inputs"])
    assert message == f"{path}: no column 'inputs'; did you mean 'input'? it has instruction, input, n"


def test_parquet_keeps_columns_that_only_later_rows_have_and_metadata(tmp_path):
    path = tmp_path / "deep" / "a.parquet"
    write_parquet(path, [{"a": 1}, {"b": ["x"], "a": 2}], metadata={"schema": "1"})
    assert read_table(path) == [{"a": 1, "b": None}, {"a": 2, "b": ["x"]}]
    assert pq.read_schema(path).metadata[b"schema"] == b"1"


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 1}, {"a": object()}])  # fails half way
    assert read_table(path) == ROWS
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    message = error_of(write_parquet, tmp_path / "file" / "a.parquet", ROWS)
    assert "cannot be written" in message
    assert "cannot be written" in error_of(write_jsonl, "/proc/none/a.jsonl", ROWS)


def test_no_jax_and_no_slow_imports():
    import subprocess
    import sys

    code = (
        "import sys, rlhf_jax.data.records.records, rlhf_jax.data.templates, rlhf_jax.data.tokenization;"
        "slow = {'jax', 'flax', 'transformers', 'datasets', 'torch'} & set(sys.modules); print(sorted(slow))"
    )
    began = time.time()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert time.time() - began < 20
    assert tables.read_table is read_table


def test_measured_tables_read_numbers_and_leave_names(tmp_path):
    (tmp_path / "a.csv").write_text("model,score,low\n7,61.5,\nppo,1e2,60\n")
    first, second = read_results(str(tmp_path / "a.csv"), ("model",))
    assert first == {"model": "7", "score": 61.5, "low": ""}
    assert second == {"model": "ppo", "score": 100.0, "low": 60.0}
    write_parquet(tmp_path / "a.parquet", [{"model": "7", "score": 61.5}])
    assert read_results(str(tmp_path / "a.parquet"), ("model",)) == [{"model": "7", "score": 61.5}]
