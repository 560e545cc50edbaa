"""The cache: what goes in comes out, the first answer stays, and many processes may share the file."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from annotation_helpers import ENVIRONMENT

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.errors import UserError

WHERE = {"provider": "openai", "origin": "local", "model": "m"}
FULL = Answer(
    text="a\n\u00e9\U0001f389",
    finish_reason="length",
    refusal="cyber",
    top_logprobs=((("a", -0.1), (" b", -2.3000000000000003)), ()),
    model="m",
    tokens_in=3,
    tokens_cached=1,
    tokens_out=2,
    tokens_reasoning=0,
    system_fingerprint="fp",
    request_id="r",
    latency_ms=1.25,
    n_attempts=2,
    created_at=1_700_000_000_123,
)


def test_an_answer_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.sqlite"
    with AnswerCache(path) as cache:
        assert cache.put("k", FULL, **WHERE) is FULL
        cache.put("bare", Answer("b"), **WHERE)
    with AnswerCache(path) as cache:
        assert cache.get("k") == FULL
        assert cache.get_many(["k", "bare", "none"]) == {"k": FULL, "bare": Answer("b")}
        assert cache.get("none") is None


def test_more_keys_than_a_statement_takes() -> None:
    with AnswerCache(None) as cache:
        for i in range(1203):
            cache.put(f"k{i}", Answer(str(i)), **WHERE)
        found = cache.get_many(f"k{i}" for i in range(2000))
    assert len(found) == 1203
    assert found["k1202"].text == "1202"


def test_the_first_answer_stays(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "c") as one, AnswerCache(tmp_path / "c") as two:
        one.put("k", Answer("first"), **WHERE)
        assert two.put("k", Answer("second"), **WHERE).text == "first"
        assert one.get("k").text == "first"


def test_a_failure_is_no_answer(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "c") as cache:
        cache.note_failure("k", "500")
        assert cache.get("k") is None
    counted = sqlite3.connect(tmp_path / "c").execute("SELECT request_hash, reason FROM failures").fetchall()
    assert counted == [("k", "500")]


@pytest.mark.parametrize("kind", ["text", "foreign", "newer", "folder"])
def test_what_is_no_cache_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c"
    if kind == "text":
        path.write_text("instruction,output\n" * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE t (x)")
        database.execute(f"PRAGMA user_version = {0 if kind == 'foreign' else 99}")
        database.close()
    with pytest.raises(UserError, match=r"cache .*/c: ") as caught:
        AnswerCache(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["gs://bucket/answers.sqlite", "s3://b/c", "a\0b"])
def test_what_is_no_local_path_is_told(path: str) -> None:
    with pytest.raises(UserError, match=r"cache .*; give"):
        AnswerCache(path)


def test_an_empty_file_becomes_a_cache(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    with AnswerCache(tmp_path / "c") as cache:
        cache.put("k", FULL, **WHERE)
        assert cache.count() == 1


def test_a_cache_that_another_process_holds_is_waited_for_aloud_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_jax.annotation.answers.cache._TELL_S", 0.02)
    with AnswerCache(tmp_path / "c") as cache, AnswerCache(tmp_path / "c") as other:
        told: list[str] = []

        def tell(words: str) -> None:
            told.append(words)
            if len(told) == 2:
                other.db.execute("ROLLBACK")

        cache.told = tell
        other.db.execute("BEGIN IMMEDIATE")
        cache.put("k", FULL, **WHERE)
        assert (
            cache.get("k") == FULL and told == [f"another process that writes to the cache {cache.path}"] * 2
        )
        monkeypatch.setattr("rlhf_jax.annotation.answers.cache._LONGEST_LOCK_S", 0.05)
        other.db.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="locked; another process has held it"):
            cache.put("m", FULL, **WHERE)
        other.db.execute("ROLLBACK")


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "c") as cache:
        cache.put("k", FULL, **WHERE)
        cache.db.execute("PRAGMA max_page_count = 20")  # What a disk without space says, too.
        with pytest.raises(UserError, match="is full; free space") as caught:
            for i in range(100):
                cache.put(f"{i}", Answer("x" * 4000), **WHERE)
        assert "\n" not in str(caught.value) and cache.get("k") == FULL
        cache.db.execute("PRAGMA query_only = 1")
        with pytest.raises(UserError, match="it may only be read; give a writable path"):
            cache.put("m", FULL, **WHERE)
        assert cache.get("k") == FULL


WRITER = """
    import sys
    from rlhf_jax.annotation.answers.answers import Answer
    from rlhf_jax.annotation.answers.cache import AnswerCache
    who, path = sys.argv[1:]
    with AnswerCache(path) as cache:
        for i in range(300):
            kept = cache.put(f"shared {i}", Answer(who), provider="p", origin="o", model="m").text
            cache.put(f"{who} {i}", Answer(who), provider="p", origin="o", model="m")
            print(i, kept, flush=True)
"""


def _writer(who: str, path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), who, str(path)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def test_two_processes_lose_and_double_nothing_and_agree(tmp_path: Path) -> None:
    path = tmp_path / "c"
    writers = [_writer(who, path) for who in ("one", "two")]
    said = [writer.communicate(timeout=60)[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert said[0] == said[1]
    with AnswerCache(path) as cache:
        keys = [f"{who} {i}" for who in ("one", "two", "shared") for i in range(300)]
        assert len(cache.get_many(keys)) == 900
        kept = [line.split()[1] for line in said[0]]
        assert [cache.get(f"shared {i}").text for i in range(300)] == kept


def test_every_answer_put_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    path = tmp_path / "c"
    writer = _writer("one", path)
    for _ in range(50):
        last = writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    time.sleep(0.1)
    done = int(last.split()[0])
    with AnswerCache(path) as cache:
        assert len(cache.get_many(f"one {i}" for i in range(done + 1))) == done + 1


def _filled(path: Path, n: int = 400) -> bytes:
    with AnswerCache(path) as cache:
        for i in range(n):
            cache.put(f"k{i:04}", FULL, **WHERE)
    return path.read_bytes()


def test_a_damaged_cache_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c"
    whole = _filled(path)
    (tmp_path / "over").write_bytes(
        whole[:8192] + os.urandom(len(whole) // 2 - 8192) + whole[len(whole) // 2 :]
    )
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 3])
    for name in ("over", "cut"):
        told = pytest.raises(UserError, match=rf"cache .*/{name}: .*restore a copy, or move it away")
        with told as caught, AnswerCache(tmp_path / name) as cache:
            cache.get_many(f"k{i:04}" for i in range(400))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    ["top_logprobs = '{broken'", "top_logprobs = '[1]'", "text = NULL", "created_at = 'x'", "created_at = -1",
     "created_at = 99999999999999999", "tokens_in = 'abc'", "tokens_out = 1.5", "tokens_cached = 3000000000",
     "latency_ms = 'x'", "latency_ms = 9e999", "n_attempts = 100000", "text = x'ff'", "model = 7", "refusal = 0"],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, change: str) -> None:
    _filled(tmp_path / "c", 1)
    with sqlite3.connect(tmp_path / "c") as database:
        database.execute(f"UPDATE answers SET {change}")
    words = rf"/c: the answer k0000 cannot be read \({change.split()[0]}\); delete its row"
    with AnswerCache(tmp_path / "c") as cache, pytest.raises(UserError, match=words):
        cache.get("k0000")


def test_what_a_provider_did_not_tell_may_be_null(tmp_path: Path) -> None:
    _filled(tmp_path / "c", 1)
    names = ("tokens_in", "latency_ms", "model", "finish_reason", "refusal", "top_logprobs", "request_id")
    with sqlite3.connect(tmp_path / "c") as database:
        database.execute(f"UPDATE answers SET {', '.join(f'{name} = NULL' for name in names)}")
    with AnswerCache(tmp_path / "c") as cache:
        assert cache.get("k0000").text == FULL.text


def test_a_broken_ledger_and_a_missing_table_are_told(tmp_path: Path) -> None:
    from rlhf_jax.annotation.batches.ledger import Ledger

    _filled(tmp_path / "c", 1)
    with AnswerCache(tmp_path / "c") as cache:
        Ledger(cache).intend("p", "o", "m", ["k"])
        cache.db.execute("UPDATE batches SET keys = '{'")
        with pytest.raises(UserError, match=r"/c: batch .*never sent.* cannot be read .*table batches"):
            Ledger(cache).unfinished()
        cache.db.execute("DROP TABLE failures")
        with pytest.raises(UserError, match=r"/c: no such table: failures; it is damaged"):
            cache.note_failure("k", "500")


def test_exported_answers_that_are_broken_inside_are_told(tmp_path: Path) -> None:
    from rlhf_jax.annotation.answers.cache_files import export_answers, import_answers

    _filled(tmp_path / "c")
    with AnswerCache(tmp_path / "c") as cache:
        export_answers(cache, tmp_path / "a.parquet")
        cache.db.execute("UPDATE answers SET top_logprobs = '{' WHERE request_hash = 'k0001'")
        export_answers(cache, tmp_path / "b.parquet")
        cache.db.execute("UPDATE answers SET top_logprobs = NULL, created_at = 99999999999999999")
        export_answers(cache, tmp_path / "d.parquet")
    raw = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(raw[:100] + b"\xff" * 400 + raw[500:])
    with AnswerCache(None) as cache:
        for name, words in (
            ("a", r"a\.parquet: broken inside"),
            ("b", r"b\.parquet: the answer k0001 has no usable top_logprobs"),
            ("d", r"d\.parquet: the answer k0000 has no usable created_at"),
        ):
            with pytest.raises(UserError, match=words) as caught:
                import_answers(cache, tmp_path / f"{name}.parquet")
            assert "\n" not in str(caught.value)
