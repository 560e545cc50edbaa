"""The dry run: what it says before anything was answered, after some was, and that it asks nobody."""

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.rates import PerMinute
from rlhf_jax.annotation.costs.prices import Price
from rlhf_jax.annotation.judges.specs import JudgeSpec

PRICE = Price(10.0, 50.0)


def annotate(server: FakeServer, n: int, *judges: JudgeSpec, **options: object) -> tuple[list[dict], dict]:
    pool = pool_of(*(judges or [judge_spec(price=PRICE)]))
    return annotate_pairs(make_rows(n), pool, base_urls={"local": server.url}, retry=QUICK, **options)


def test_without_past_answers_the_unknown_stays_unknown(tmp_path: Path) -> None:
    with FakeServer() as server:
        rows, told = annotate(server, 20, dry_run=True, cache_path=tmp_path / "c")
        assert rows == [] and server.bodies == []
        annotate(server, 20)
    sizes = [len(json.dumps(body, ensure_ascii=False).encode()) for body in server.bodies]
    assert (told["calls"], told["cached"], told["rows"]) == (20, 0, 20)
    assert told["tokens_in"] == round(sum(sizes) / 4)
    assert told["tokens_out"] is told["cost_usd"] is told["seconds"] is None
    assert told["max_cost_usd"] == pytest.approx(sum((size + 100) * 10.0 + 5 * 50.0 for size in sizes) / 1e6)


def test_past_answers_tell_tokens_dollars_and_time(tmp_path: Path) -> None:
    with FakeServer() as server:
        annotate(server, 20, cache_path=tmp_path / "c")
        done = len(server.bodies)
        # Half of the answers took 100 ms and half 300, whatever this machine was busy with.
        with contextlib.closing(sqlite3.connect(tmp_path / "c")) as cache, cache:
            half = "SELECT request_hash FROM answers ORDER BY request_hash LIMIT 10"
            cache.execute(f"UPDATE answers SET latency_ms = iif(request_hash IN ({half}), 100, 300)")
        _, told = annotate(server, 120, dry_run=True, cache_path=tmp_path / "c", max_concurrency=10)
        assert len(server.bodies) == done
        _, actual = annotate(server, 120, cache_path=tmp_path / "c", max_concurrency=10)
    assert (told["calls"], told["cached"]) == (100, 20) == (actual["asked"], actual["cached"])
    # The server bills 100 tokens in and 10 out whatever is asked, of which no more than max_tokens are believed.
    assert told["tokens_in"] == pytest.approx(actual["tokens_in"], rel=0.02)
    assert told["tokens_out"] == 100 * 5
    assert told["cost_usd"] == pytest.approx((100 * 100 * 10.0 + 500 * 50.0) / 1e6, rel=0.02)
    assert told["cost_usd"] < told["max_cost_usd"]
    assert told["seconds"] == pytest.approx(100 * 0.2 / 10)


def test_unknown_prices_batches_replay_and_pace(tmp_path: Path) -> None:
    with FakeServer() as server:
        judges = [judge_spec("a", price=PRICE), judge_spec("b", model="m2", price=None)]
        annotate(server, 20, *judges, cache_path=tmp_path / "c")
        _, told = annotate(server, 60, *judges, cache_path=tmp_path / "c", dry_run=True)
        assert told["cost_usd"] is None and told["max_cost_usd"] is None
        assert 0 < told["price_unknown"] < told["calls"] == 40
        parts = {part["model"]: part for part in told["by_model"]}
        assert parts["test-model"]["cost_usd"] > 0 and parts["m2"]["cost_usd"] is None
        online = annotate(server, 60, judges[0], cache_path=tmp_path / "c", dry_run=True)[1]
        options = {"cache_path": tmp_path / "c", "dry_run": True, "limits": Limits(transport="batch")}
        batch = annotate(server, 60, judges[0], **options)[1]
        assert batch["cost_usd"] == pytest.approx(online["cost_usd"] / 2) and batch["seconds"] is None
        options["limits"] = Limits(per_minute=PerMinute(requests=30.0))
        paced = annotate(server, 60, judges[0], **options)[1]
        assert paced["seconds"] == 2.0 * paced["calls"]
        options["limits"] = Limits(transport="replay")
        assert annotate(server, 60, judges[0], **options)[1]["calls"] == 0
