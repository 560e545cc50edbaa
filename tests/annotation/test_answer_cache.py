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

from rlhf_jax.annotation.answers import Answer
from rlhf_jax.annotation.cache import AnswerCache
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


WRITER = """
    import sys
    from rlhf_jax.annotation.answers import Answer
    from rlhf_jax.annotation.cache import AnswerCache
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
