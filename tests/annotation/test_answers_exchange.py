"""Answers as a parquet file and back, caches of the first version, and replay from recorded answers."""

import sqlite3
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of
from test_answer_cache import FULL, WHERE

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.answers.answers import NOT_RECORDED, Answer
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.answers.cache_files import export_answers, import_answers
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.errors import UserError

# The tables as the first version made them.
VERSION_1 = """
    CREATE TABLE answers (
        request_hash TEXT PRIMARY KEY, provider TEXT NOT NULL, origin TEXT NOT NULL, requested TEXT NOT NULL,
        text, finish_reason, refusal, top_logprobs, model, tokens_in, tokens_cached, tokens_out, tokens_reasoning,
        system_fingerprint, request_id, latency_ms, n_attempts, created_at
    ) WITHOUT ROWID;
    CREATE TABLE failures (request_hash TEXT NOT NULL, at INTEGER NOT NULL, reason TEXT);
    INSERT INTO answers VALUES ('k', 'openai', 'local', 'm', 'a', 'stop', NULL, '[[["a", -0.1]]]', 'm', 3, 1, 2, 0,
                                'fp', 'r', 1.5, 2, 17);
    INSERT INTO failures VALUES ('f', 1, '500');
    PRAGMA user_version = 1;
"""


def test_there_and_back_is_the_same(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("full", FULL, **WHERE, body_bytes=77)
        cache.put("bare", Answer("b", transport="batch", batch_id="x"), **WHERE)
        assert export_answers(cache, tmp_path / "deep" / "answers.parquet") == 2
        before = cache.db.execute("SELECT * FROM answers").fetchall()
    with AnswerCache(tmp_path / "b") as cache:
        cache.put("bare", Answer("mine"), **WHERE)
        assert import_answers(cache, tmp_path / "deep" / "answers.parquet") == 1
        assert cache.get("full") == FULL and cache.get("bare").text == "mine"
        assert import_answers(cache, tmp_path / "deep" / "answers.parquet") == 0
        assert cache.db.execute("SELECT * FROM answers WHERE request_hash = 'full'").fetchall() == before[1:]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["answers.parquet"]


def test_many_answers_travel_in_parts(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a") as cache:
        rows = cache.put("0", Answer("0"), **WHERE) and cache.db.execute("SELECT * FROM answers").fetchall()
        cache.insert((f"{i:06}", *rows[0][1:5], f"text {i}", *rows[0][6:]) for i in range(1, 45_000))
        assert export_answers(cache, tmp_path / "p") == 45_000
    with AnswerCache(tmp_path / "b") as cache:
        assert import_answers(cache, tmp_path / "p") == 45_000
        assert cache.get("044999").text == "text 44999"


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text").write_text("no parquet")
    pq.write_table(pa.table({"request_hash": ["k"]}), tmp_path / "other")
    with AnswerCache(None) as cache:
        for name, words in [("none", "no such file"), ("text", "not a readable"), ("other", "version none")]:
            with pytest.raises(UserError, match=rf"{name}: .*{words}"):
                import_answers(cache, tmp_path / name)
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            export_answers(cache, tmp_path / "file" / "answers.parquet")


def test_a_cache_of_the_first_version_keeps_its_answers(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "c")
    old.executescript(VERSION_1)
    old.close()
    for _ in range(2):
        with AnswerCache(tmp_path / "c") as cache:
            answer = cache.get("k")
            assert (answer.text, answer.top_logprobs, answer.n_attempts) == ("a", ((("a", -0.1),),), 2)
            assert (answer.transport, answer.batch_id, answer.created_at) == ("online", None, 17)
            cache.put("new", FULL, **WHERE, body_bytes=3)
            cache.note_failure("f", "429", 0.5)
            assert cache.get("new") == FULL


def test_replay_asks_nobody_and_says_what_is_not_recorded(tmp_path: Path) -> None:
    pool, replay = pool_of(judge_spec()), Limits(transport="replay")
    with FakeServer() as server:
        urls = {"local": server.url}
        online, _ = annotate_pairs(
            make_rows(10), pool, base_urls=urls, cache_path=tmp_path / "c", retry=QUICK
        )
    with AnswerCache(tmp_path / "c") as cache:
        export_answers(cache, tmp_path / "recorded.parquet")
    with AnswerCache(tmp_path / "d") as cache:
        import_answers(cache, tmp_path / "recorded.parquet")
    # The symbolic address is the same, the server is gone.
    urls = {"local": "http://127.0.0.1:9"}
    rows, summary = annotate_pairs(
        make_rows(12), pool, base_urls=urls, cache_path=tmp_path / "d", limits=replay
    )
    assert rows[:10] == online
    assert [row["status"] for row in rows[10:]] == [NOT_RECORDED] * 2 and rows[10]["preference"] is None
    assert "replay" in rows[10]["status_detail"] and summary["cost_usd"] == 0.0
    # A later run online asks for those two only.
    with FakeServer() as server:
        urls = {"local": server.url}
        _, summary = annotate_pairs(
            make_rows(12), pool, base_urls=urls, cache_path=tmp_path / "d", retry=QUICK
        )
    assert (summary["cached"], summary["asked"]) == (10, 2)
