"""Rows that are kept on disk: the same as made anew, and never those of something else or of half a file."""

import json
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import tiny_farm
from chat_tokenizers import CHATML, build

from rlhf_jax.data.batches import pad
from rlhf_jax.data.files.tables import write_jsonl
from rlhf_jax.data.records.label_columns import about_label, with_margin
from rlhf_jax.programs import load_program
from rlhf_jax.training.rows import kept_tokens, labelled_rows
from rlhf_jax.training.run import encoded_rows

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Say {i}."}],
        "chosen": f"the cat {i}",
        "rejected": f"a dog {i}" + " and" * (i % 3 * 30),
        "output": f"word {i}",
        "rating": i % 5,
        "label": bool(i % 2),
        "responses": [f"word {i}", "cat", "the dog"],
        "scores": [1.0, float(i), 0.5],
    }
    for i in range(30)
]
COLUMNS = {
    "instructions": ("prompt", "output"),
    "pairs": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
    "candidates": ("prompt", "responses", "scores"),
    "rated": ("prompt", "output", "rating"),
    "unpaired": ("prompt", "output", "label"),
    "single": ("prompt", "chosen", "rejected"),
}
SCALE = {"low": 0, "high": 4, "whole": True}


@pytest.fixture
def tokenizer():
    return build(CHATML, ["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """(kind of rows, settings of data) -> a page's data whose files are there; small files are kept, too."""
    monkeypatch.setattr(kept_tokens, "SMALLEST", 1)
    monkeypatch.setattr(encoded_rows, "keepers", [kept_tokens.rows_from_disk])

    def page(kind, **settings):
        file = tmp_path / f"{kind}.jsonl"
        if not file.exists():
            write_jsonl(file, [{name: row[name] for name in COLUMNS[kind]} for row in ROWS])
        job = {"prompts": "ppo", "candidates": "rrhf", "unpaired": "kto"}.get(kind, "sft")
        about = {"train": str(file), "eval": "", "template": "chat", "token_cache": str(tmp_path / "kept")}
        about |= {"eval_rows": 6} | settings
        return tiny_farm.settings(job, tmp_path, **{f"data.{name}": x for name, x in about.items()}).data

    return page


def rows_of(kind, data, tokenizer, seed=0):
    about = (data, tokenizer, seed, "")
    return {
        "instructions": partial(encoded_rows.instructions, *about),
        "pairs": partial(
            encoded_rows.pairs, *about, with_margin("margin") if "m" in data.train[-3:] else about_label
        ),
        "prompts": partial(encoded_rows.prompts, *about),
        "candidates": partial(labelled_rows.candidates, *about),
        "rated": partial(labelled_rows.rated, *about, SCALE),
        "unpaired": partial(labelled_rows.unpaired, *about),
        "single": partial(
            labelled_rows.single_responses, data, {"chosen": tokenizer, "rejected": tokenizer}, seed, ""
        ),
    }[kind]()


def leaves(value):
    """All arrays and records of rows as plain Python."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: leaves(x) for name, x in vars(value).items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: leaves(x) for name, x in value._asdict().items()}
    return repr(list(value)) if value is not None else None


def kept_files(data):
    return sorted(kept_tokens.Path(data.token_cache).glob("*"))


@pytest.mark.parametrize("kind", COLUMNS)
def test_read_again_they_are_the_same(kind, page_of, tokenizer, capsys, monkeypatch):
    data = page_of(kind)
    first, said = rows_of(kind, data, tokenizer), capsys.readouterr().out.splitlines()
    assert said[-1].startswith("tokens of ") and "rows: kept in " in said[-1]
    # Nothing is read or encoded again.
    for module in (encoded_rows, labelled_rows):
        monkeypatch.setattr(module, "two_files", None)
    again, said_again = rows_of(kind, data, tokenizer), capsys.readouterr().out.splitlines()
    assert leaves(again) == leaves(first)
    assert said_again[:-1] == said[:-1] and "rows: read from " in said_again[-1]
    assert [file.suffix for file in kept_files(data)] == [".tokens"]


def test_batches_of_mapped_rows(page_of, tokenizer):
    data = page_of("instructions")
    first, again = (rows_of("instructions", data, tokenizer).train for _ in range(2))
    assert type(again.tokens) is np.ndarray and not again.tokens.flags.owndata
    index = np.array([3, 0, 7])
    for name, x in pad(first, index, 96, 0).items():
        assert np.array_equal(x, pad(again, index, 96, 0)[name])
        assert x.dtype == pad(again, index, 96, 0)[name].dtype


def test_whatever_decides_the_rows_names_them(page_of, tokenizer, tmp_path, monkeypatch):
    other = build(CHATML.replace("\\n", " "), ["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>")
    further = build(CHATML, ["<|endoftext|>", "<|im_end|>", "<x>"], eos_token="<|im_end|>")
    ways = [({}, tokenizer, 0), ({}, tokenizer, 1), ({}, other, 0), ({}, further, 0)]
    settings = (
        ("max_length", 45),
        ("eval_rows", 4),
        ("train_rows", 9),
        ("template", "brief"),
        ("too_long", "drop"),
    )
    ways += [({name: value}, tokenizer, 0) for name, value in settings]
    for way, (changes, one, seed) in enumerate(ways, 1):
        rows_of("instructions", page_of("instructions", **changes), one, seed)
        assert len(kept_files(page_of("instructions"))) == way, (changes, seed)
    for module, name, value in (
        (kept_tokens, "code_version", lambda: "x"),
        (kept_tokens, "version", lambda _: "0"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
            rows_of("instructions", page_of("instructions"), tokenizer)
        way += 1
        assert len(kept_files(page_of("instructions"))) == way
    # Packing is decided after the tokens.
    rows_of("instructions", page_of("instructions", packing="on"), tokenizer)
    assert len(kept_files(page_of("instructions"))) == way
    # The same functions with other values bound to them, and a file of the same size, are others, too.
    names = [
        kept_tokens._named(f) for f in (about_label, with_margin("p_2"), with_margin("margin"), lambda x: way)
    ]
    assert len({str(name) for name in names}) == 4 and names[3] is None


def test_a_changed_file_is_read_again(page_of, tokenizer, tmp_path):
    data = page_of("instructions")
    before = rows_of("instructions", data, tokenizer)
    file = tmp_path / "instructions.jsonl"
    file.write_text(file.read_text().replace("word 7", "word 8"))
    after = rows_of("instructions", data, tokenizer)
    assert leaves(after) != leaves(before)
    data.token_cache = kept_tokens.NONE
    assert leaves(after) == leaves(rows_of("instructions", data, tokenizer))


def test_a_file_that_changes_while_it_is_read_is_not_kept(page_of, tokenizer, tmp_path, monkeypatch):
    data, read = page_of("instructions"), encoded_rows.two_files

    def changing(*given):
        found = read(*given)
        file = tmp_path / "instructions.jsonl"
        file.write_text(file.read_text().replace("word 7", "word 8"))
        return found

    monkeypatch.setattr(encoded_rows, "two_files", changing)
    rows_of("instructions", data, tokenizer)
    assert kept_files(data) == []


def test_a_file_that_is_not_whole_or_of_others_is_never_read(page_of, tokenizer, capsys):
    data = page_of("instructions")
    wanted = leaves(rows_of("instructions", data, tokenizer))
    (file,) = kept_files(data)
    whole = file.read_bytes()
    middle = len(whole) // 2
    broken = [whole[:n] for n in (0, 7, 20, middle, len(whole) - 1)]
    broken += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in (0, middle, len(whole) - 30)]
    broken += [bytes(len(whole)), whole + b"x", whole.replace(b'"seed": 0', b'"seed": 1')]
    for content in broken:
        file.write_bytes(content)
        capsys.readouterr()
        assert leaves(rows_of("instructions", data, tokenizer)) == wanted
        assert "kept in" in capsys.readouterr().out and file.read_bytes() == whole


def test_a_process_that_is_killed_leaves_nothing_that_is_read(page_of, tokenizer, tmp_path):
    data = page_of("instructions")
    wanted = rows_of("instructions", data, tokenizer)
    (file,) = kept_files(data)
    code = f"""
import os, signal, sys
from pathlib import Path
from rlhf_jax.training.rows import kept_tokens
path = Path({str(file)!r})
kept_tokens._write_rows = lambda file, *_: file.write(b"half") and file.flush() or os.kill(os.getpid(), signal.SIGKILL)
with kept_tokens._alone(path):
    kept_tokens._write(path, {{}}, None, [])
"""
    whole = file.read_bytes()
    file.unlink()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (part,) = kept_tokens.Path(data.token_cache).glob(".*.part")
    kept_tokens.os.utime(part, (0, 0))
    # Its lock is gone with it, and what it had written goes, too.
    assert leaves(rows_of("instructions", data, tokenizer)) == leaves(wanted)
    assert kept_files(data) == [file] and file.read_bytes() == whole and not part.exists()


def test_who_comes_second_waits_and_reads(page_of, tokenizer, capsys, monkeypatch):
    data, read, made = page_of("instructions"), encoded_rows.two_files, []
    inside, go_on = threading.Event(), threading.Event()

    def slow(*given):
        made.append(1)
        inside.set()
        assert go_on.wait(60)
        return read(*given)

    monkeypatch.setattr(encoded_rows, "two_files", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(rows_of("instructions", data, tokenizer)))
        for _ in range(2)
    ]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    while "waiting for another process" not in capsys.readouterr().out:
        assert threads[1].is_alive()
        # Asking without a pause would keep the thread from going on.
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert made == [1] and leaves(found[0]) == leaves(found[1])


def test_what_cannot_be_kept_is_made_all_the_same(page_of, tokenizer, tmp_path, capsys, monkeypatch):
    wanted = leaves(rows_of("pairs", page_of("pairs", token_cache="none"), tokenizer))
    assert not (tmp_path / "kept").exists()
    (tmp_path / "file").write_text("")
    for field, value in (("token_cache", str(tmp_path / "file")), ("token_cache", "/proc/none")):
        assert leaves(rows_of("pairs", page_of("pairs", **{field: value}), tokenizer)) == wanted
        assert "notice: data.token_cache: " in capsys.readouterr().out
    # A number of NumPy's would come back as another.
    odd = [{"a": np.float64(1)}, {"a": (1,)}, {1: "a"}, {"a": {"b": [np.int64(1)]}}]
    assert [kept_tokens._is_json(x) for x in odd] == [False] * 4 and kept_tokens._is_json(
        json.loads(json.dumps(ROWS))
    )
    monkeypatch.setattr(kept_tokens, "_is_json", lambda _: False)
    assert leaves(rows_of("pairs", page_of("pairs"), tokenizer)) == wanted
    assert list((tmp_path / "kept").glob("*")) == []
    monkeypatch.setattr(kept_tokens, "SMALLEST", 1 << 20)
    rows_of("pairs", page_of("pairs"), tokenizer)
    assert list((tmp_path / "kept").glob("*")) == []


def test_files_that_nobody_reads_go(page_of, tokenizer):
    data = page_of("instructions")
    rows_of("instructions", data, tokenizer)
    (old,) = kept_files(data)
    kept_tokens.os.utime(old, (0, 0))
    rows_of("instructions", data, tokenizer)
    assert old.stat().st_mtime > 1e9, "a file that is read is in use"
    kept_tokens.os.utime(old, (0, 0))
    rows_of("instructions", data, tokenizer, seed=1)
    assert len(kept_files(data)) == 1 and not old.exists()


def test_the_front_door_keeps_the_rows_of_methods(monkeypatch):
    monkeypatch.delitem(sys.modules, "rlhf_jax.training.rows.kept_tokens")
    monkeypatch.setattr(encoded_rows, "keepers", [])
    load_program(tiny_farm.settings("sft", "farm"))
    assert len(encoded_rows.keepers) == 1
