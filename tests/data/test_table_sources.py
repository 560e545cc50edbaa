"""What people have for tables: splits, compression, odd values. Read, or refused in one line that says what to do."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_jax.data.files.splits import local_path
from rlhf_jax.data.files.tables import read_rows, read_table, write_jsonl, write_parquet
from rlhf_jax.data.records.records import read_instructions
from rlhf_jax.errors import UserError

ROWS = [{"instruction": "a", "output": "b"}]


def error_of(source):
    with pytest.raises(UserError) as error:
        read_rows(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def rows_of(split):
    return [{"instruction": split, "output": "x"}]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("my_train_data.ndjson", "my_test_data.ndjson"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/part-0.parquet", "test/part-0.parquet"),
    ],
)
def test_a_folder_with_several_splits_wants_one_named(tmp_path, names):
    for name, split in zip(names, ("train", "test"), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("parquet"):
            write_parquet(tmp_path / name, rows_of(split))
        else:
            (tmp_path / name).write_text(json.dumps(rows_of(split)[0]))
    (tmp_path / "README.md").write_text("a dataset")
    message = error_of(tmp_path)
    assert "it has several splits (test, train); name one, as in " in message
    advised = message.rsplit(" ", 1)[1]
    assert read_rows(advised) == rows_of("test")
    assert read_rows(f"{tmp_path}:train") == rows_of("train")
    assert "no split 'val'; it has test, train" in error_of(f"{tmp_path}:val")


def test_a_saved_dataset_of_several_splits(tmp_path):
    import datasets

    splits = {split: datasets.Dataset.from_list(rows_of(split)) for split in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "dd"))
    advised = error_of(tmp_path / "dd").rsplit(" ", 1)[1]
    assert advised == f"{tmp_path}/dd:train" and read_rows(advised) == rows_of("train")
    assert read_rows(tmp_path / "dd/test") == rows_of("test")
    assert "has no splits" in error_of(f"{tmp_path}/dd/test:train")
    (tmp_path / "dd/test/data-00000-of-00001.arrow").write_bytes(b"broken")
    assert "the saved dataset cannot be read" in error_of(f"{tmp_path}/dd:test")


@pytest.mark.parametrize(
    ("kept", "asked"), [("validation", "dev"), ("val", "validation"), ("val", "dev"), ("eval", "test")]
)
def test_a_split_is_found_by_its_other_names(tmp_path, kept, asked):
    for name in (kept, "train"):
        write_parquet(tmp_path / f"{name}-00000-of-00001.parquet", rows_of(name))
    assert read_rows(f"{tmp_path}:{asked}") == rows_of(kept)


def test_a_folder_of_several_configurations(tmp_path):
    for name in ("main", "socratic"):
        write_parquet(tmp_path / name / "train-00000-of-00001.parquet", rows_of(name))
    advised = error_of(tmp_path).rsplit(" ", 1)[1]
    assert advised == f"{tmp_path}/main" and read_rows(advised) == rows_of("main")


def test_files_of_a_split_and_others_are_not_mixed(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "more.jsonl", ROWS)
    assert "some of its files belong to splits and others do not (more.jsonl, train.jsonl)" in error_of(
        tmp_path
    )


def test_a_split_is_part_of_where_a_run_reads(tmp_path):
    assert local_path(f"{tmp_path}:train") == tmp_path
    assert str(local_path("org/name:train")) == "org/name:train"


def test_a_hub_dataset_of_several_configurations(monkeypatch):
    import datasets

    def load_dataset(name, configuration=None):
        if configuration is None:
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['main', 'x']"
            )
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows_of(configuration))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    advised = error_of("org/data").rsplit(" ", 1)[1]
    assert advised == "org/data:main:train" and read_rows(advised) == rows_of("main")


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
def test_compressed_files_whole_and_corrupt(tmp_path, ending, pack):
    data = "\n".join(json.dumps(rows_of(f"{i} {hash(str(i))}")[0]) for i in range(200)).encode()
    packed = pack(data)
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed)
    (tmp_path / "unsaid.jsonl").write_bytes(packed)
    assert read_rows(tmp_path / f"a.jsonl{ending}") == read_rows(tmp_path / "unsaid.jsonl")
    assert len(read_rows(tmp_path / f"a.jsonl{ending}")) == 200
    for at in range(3, 9):
        broken = bytearray(packed)
        broken[len(broken) * at // 10] ^= 0xFF
        (tmp_path / f"b.jsonl{ending}").write_bytes(broken)
        try:  # A format without a checksum may give other text instead, which is JSON no more.
            read_rows(tmp_path / f"b.jsonl{ending}")
        except UserError as e:
            assert "\n" not in str(e)
    (tmp_path / f"c.jsonl{ending}").write_bytes(packed[: len(packed) // 2])
    assert "cannot be read" in error_of(tmp_path / f"c.jsonl{ending}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 (lists or objects are nested too deeply)"),
        ('{"output": "x", "output": "y"}', "line 2 (the key 'output' twice in one object, with two values)"),
        ('{"output": \n', "broken JSON at line 2"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_text('{"output": "x"}\n' + line)
    assert words in error_of(tmp_path / "a.jsonl")


def test_whatever_is_passed_over_in_a_folder_is_named(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "more/b.jsonl", ROWS)
    (tmp_path / "notes").mkdir()
    for name in (
        "c.JSONL",
        "d.csv.gz",
        "e.jsonl.zip",
        "h.txt",
        "README.md",
        "LICENSE",
        "state.lock",
        "notes/x",
    ):
        (tmp_path / name).write_text("{}")
    assert read_rows(tmp_path) == ROWS
    one, other = capsys.readouterr().out.splitlines()
    assert one.endswith(
        "not read, as they are no .parquet, .jsonl, .ndjson, .json: c.JSONL, d.csv.gz, e.jsonl.zip, h.txt"
    )
    assert other.endswith("not read, as there are tables beside these folders: more/")


def test_partitions_are_named(tmp_path, capsys):
    write_jsonl(tmp_path / "lang=en/a.jsonl", ROWS)
    assert read_rows(tmp_path) == ROWS
    assert "what the names of folders say is no column of their rows: lang=en" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.json",
            '{"version": 1, "data": [{"a": 1}]}',
            "; write what its key 'data' holds to a file of its own",
        ),
        ("a.json", '{"messages": [{"role": "user"}]}', "; if it is a row, put [ ] around it"),
        ("a.json", '{"a": [1]}', "; if it is a row, put [ ] around it"),
        ("a.jsonl", '[{"a": 1}]', "; a list of rows belongs in a .json file, so rename it"),
    ],
)
def test_tables_of_another_form_say_what_to_do(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    assert words in error_of(tmp_path / name)


def test_invalid_utf8_in_parquet_costs_its_row_alone(tmp_path):
    data = pa.array([b"ok", b"\xff"])
    texts = pa.Array.from_buffers(pa.string(), 2, data.buffers())
    user = pa.array(["user", "user"])
    messages = pa.ListArray.from_arrays(
        [0, 1, 2], pa.StructArray.from_arrays([user, texts], ["role", "content"])
    )
    pairs = pa.MapArray.from_arrays([0, 1, 2], user, texts)
    columns = {"messages": messages, "output": pa.array(["x", "y"]), "plain": texts, "map": pairs}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, skipped = read_instructions(tmp_path / "a.parquet")
    assert [row["instruction"] for row in rows] == ["ok"]
    assert skipped == {"text that is not valid Unicode": 1}
    assert read_rows(tmp_path / "a.parquet")[1]["map"] == [("user", "\udcff")]


def test_numbers_and_texts_of_any_size(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + ', "x": NaN}'
    )
    assert read_instructions(tmp_path / "a.jsonl")[0] == [{"instruction": "a", "input": "", "output": "b"}]
    (tmp_path / "b.jsonl").write_bytes('{"output": "é"}'.encode("utf-16"))
    assert read_rows(tmp_path / "b.jsonl") == [{"output": "é"}]
    (tmp_path / "c.jsonl").write_bytes(b'{"output": "a"}\n{"output": "\xe9"}')
    assert "line 2 is not UTF-8" in error_of(tmp_path / "c.jsonl")


def test_parquet_values_that_python_cannot_hold(tmp_path):
    late = pa.array([253402300800000000, None], pa.timestamp("us"))
    nested = pa.StructArray.from_arrays([late], names=["at"])
    table = {"instruction": ["a", "b"], "output": ["c", "d"], "late": late, "nested": nested}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    rows, skipped = read_instructions(tmp_path / "a.parquet")
    assert [row["output"] for row in rows] == ["c", "d"]
    assert skipped.columns["late"] == 1
    assert read_rows(tmp_path / "a.parquet")[0]["late"].startswith("10000-01-01")
    pq.write_table(
        pa.table([["a"], ["b"], ["c"]], names=["instruction", "output", "output"]), tmp_path / "b.parquet"
    )
    assert "two columns are named 'output'; rename one" in error_of(tmp_path / "b.parquet")


def test_invalid_unicode_is_dropped_by_trainers_and_mended_aloud_for_the_others(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"instruction": "hi", "output": "cat \\ud83d"}\n{"instruction": "hi", "output": "dog \\ud83d\\ude00"}\n'
    )
    rows, skipped = read_instructions(path)
    assert len(rows) == 1 and skipped == {"text that is not valid Unicode": 1}
    rows = read_table(path)
    assert [row["output"] for row in rows] == ["cat \ufffd", "dog \U0001f600"]
    assert "1 rows hold text that is not valid Unicode" in capsys.readouterr().out
    write_parquet(tmp_path / "b.parquet", [*rows, {"instruction": 10**30, "output": "the \ud83d"}])
    assert read_rows(tmp_path / "b.parquet")[2] == {"instruction": str(10**30), "output": "the \ufffd"}
