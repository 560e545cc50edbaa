"""The batch transport against both providers' protocols: shards, both result files, faults, resuming, stopping."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from annotation_batch_server import ERRORED, EXPIRED, INVALID, MISSING, BatchServer, succeed
from annotation_fake_server import FakeServer, anthropic_payload, openai_payload
from annotation_helpers import ENVIRONMENT, QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_calls import cancel_batches
from rlhf_jax.annotation.batches.batch_transport import BatchPolicy
from rlhf_jax.annotation.batches.ledger import Ledger
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.costs.prices import Price
from rlhf_jax.annotation.judges.specs import JudgeSpec
from rlhf_jax.errors import UserError

PROVIDERS = ("openai", "anthropic")
PRICE = Price(10.0, 50.0)
FAST = {"first_poll_s": 0.01, "longest_poll_s": 0.05, "settle_s": 0.3}


def annotate(
    server: object,
    n: int,
    *judges: JudgeSpec,
    max_usd: float = 0.0,
    policy: dict | None = None,
    **options: object,
) -> tuple[list[dict], dict]:
    limits = Limits(transport="batch", max_usd=max_usd, batch=BatchPolicy(**FAST | (policy or {})))
    options = {"limits": limits, "retry": QUICK} | options
    pool = pool_of(*(judges or [judge_spec(price=PRICE)]))
    return annotate_pairs(make_rows(n), pool, base_urls={"local": server.url}, **options)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_labels_like_the_online_run_and_costs_half(tmp_path: Path, provider: str) -> None:
    judge = judge_spec(provider=provider, price=PRICE)
    with BatchServer(looks=2) as server:
        rows, summary = annotate(server, 30, judge, cache_path=tmp_path / "c")
    with FakeServer() as online_server:
        online, online_summary = annotate(online_server, 30, judge, limits=None)
    assert len(server.made()) == 1 and set(server.sent.values()) == {1}
    assert [row["preference"] for row in rows] == [row["preference"] for row in online]
    assert [row["request_hash"] for row in rows] == [row["request_hash"] for row in online]
    assert {(row["transport"], row["batch_id"]) for row in rows} == {("batch", "b0")}
    assert summary["cost_usd"] == pytest.approx(online_summary["cost_usd"] / 2)
    assert (summary["asked"], summary["unsettled"], summary["failed"]) == (30, 0, 0)
    # The key of a request is its name, and a cached batch answer serves an online run.
    assert sorted(server.sent) == sorted(row["request_hash"] for row in rows)
    with FakeServer() as nobody:
        again, summary = annotate(nobody, 30, judge, limits=None, cache_path=tmp_path / "c")
    assert again == rows and summary["cached"] == 30 and nobody.bodies == []


def test_shards_by_model_count_and_bytes() -> None:
    judges = [judge_spec("a"), judge_spec("b", model="m2"), judge_spec("c", provider="anthropic")]
    with BatchServer() as server:
        rows, _ = annotate(server, 60, *judges, policy={"most_requests": 8})
    by_annotator = Counter(row["annotator"] for row in rows)
    sizes = [(len(batch["requests"]), batch["requests"][0][1]["model"]) for batch in server.made()]
    assert max(size for size, _ in sizes) == 8
    assert len(sizes) == sum(-(-count // 8) for count in by_annotator.values())
    assert set(server.sent.values()) == {1} and len(server.sent) == 60
    with BatchServer() as server:
        annotate(server, 20, policy={"most_bytes": 5000})
    assert len(server.made()) > 2
    assert all(len(data) <= 5000 for name, data in server.files.items() if "b" not in name)
    with BatchServer() as server, pytest.raises(UserError, match="too large for a batch of 100 bytes"):
        annotate(server, 1, policy={"most_bytes": 100})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_fate_of_a_request(tmp_path: Path, provider: str) -> None:
    fates: dict[str, object] = {
        "Say 0.": EXPIRED,
        "Say 1.": ERRORED,
        "Say 2.": INVALID,
        "Say 4.": {"content": 3, "choices": []},
    }

    def fate(key: str, body: dict, nth: int) -> object:
        text = body["messages"][-1]["content"]
        if "Say 3." in text and nth < 3:
            return [EXPIRED, ERRORED][nth - 1]
        if "Say 5." in text:
            refused = anthropic_payload("", "refusal", "cyber"), openai_payload("a", "content_filter")
            return refused[provider == "openai"]
        if "Say 6." in text and nth == 1 and provider == "openai":
            return MISSING
        return next((word for name, word in fates.items() if name in text), succeed(key, body, nth))

    with BatchServer(fate) as server:
        rows, summary = annotate(
            server, 12, judge_spec(provider=provider, price=PRICE), cache_path=tmp_path / "c"
        )
    statuses = [row["status"] for row in rows]
    withheld = "filtered" if provider == "openai" else "refused"
    assert statuses == ["expired", "api_error", "api_error", "ok", "api_error", withheld, *["ok"] * 6]
    assert [row["n_attempts"] for row in rows[:5]] == [3, 3, 1, 3, 3]
    assert "it was invalid" in rows[2]["status_detail"] and "malformed" in rows[4]["status_detail"]
    assert summary["failed"] == 4 and rows[6]["n_attempts"] == (2 if provider == "openai" else 1)
    counts = Counter(server.sent.values())
    assert counts == {3: 4, 1: 8 - (provider == "openai")} | ({2: 1} if provider == "openai" else {})
    # What failed is asked again by the next run, and nothing else.
    with BatchServer() as server:
        rows, summary = annotate(server, 12, judge_spec(provider=provider), cache_path=tmp_path / "c")
    assert (summary["cached"], summary["asked"]) == (8, 4) and len(server.sent) == 4


def test_a_full_queue_is_waited_for_and_a_refused_batch_is_told() -> None:
    with BatchServer(refuse=lambda n: "token_limit_exceeded" if n in (2, 3) else "") as server:
        rows, summary = annotate(server, 20, policy={"most_requests": 10})
    assert {row["status"] for row in rows} == {"ok"} and set(server.sent.values()) == {1}
    assert summary["failed_attempts"] == 0 and {row["n_attempts"] for row in rows} == {1}
    refused = pytest.raises(UserError, match=r"batch b0 was not accepted: invalid_file: Enqueued")
    with BatchServer(refuse=lambda n: "invalid_file") as server, refused:
        annotate(server, 20)
    failed = pytest.raises(UserError, match=r"all 20 requests of batch b0 failed, one with: .*it was invalid")
    with BatchServer(lambda *args: INVALID) as server, failed:
        annotate(server, 20)


def test_calls_that_fail_for_a_while_cost_nothing_but_time() -> None:
    with BatchServer() as server:
        server.flaky = {
            "/v1/files",
            "/v1/batches",
            "/v1/batches/b0",
            "/v1/files/file_b0_output_file_id/content",
        }
        rows, _ = annotate(server, 5)
        assert not server.flaky
    assert {row["status"] for row in rows} == {"ok"} and set(server.sent.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_whose_reply_was_lost_is_found_and_not_sent_twice(provider: str) -> None:
    with BatchServer() as server:
        server.drop_replies = 1
        rows, _ = annotate(server, 12, judge_spec(provider=provider), policy={"most_requests": 7})
    assert {row["status"] for row in rows} == {"ok"}
    assert len(server.made()) == 2 and set(server.sent.values()) == {1}


def test_the_budget_bounds_what_is_in_batches() -> None:
    # Up to 0.006 dollars each in a batch (a token per byte), of which 0.00075 are billed.
    with BatchServer() as server:
        rows, summary = annotate(server, 30, max_usd=0.06)
    sizes = [len(batch["requests"]) for batch in server.made()]
    assert (
        sum(sizes) == 30
        and len(sizes) > 1
        and max(sizes) < 15
        and summary["cost_usd"] == pytest.approx(30 * 1500 / 2e6)
    )
    assert {row["status"] for row in rows} == {"ok"} and summary["cost_usd"] <= 0.06
    with BatchServer() as server, pytest.raises(UserError, match="max_usd"):
        annotate(server, 30, max_usd=0.02)
    assert 0 < len(server.sent) < 30


PROGRAM = """
import sys
from annotation_helpers import judge_spec, make_rows, pool_of
from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.batches.batch_transport import BatchPolicy
url, cache, provider = sys.argv[1:]
policy = BatchPolicy(most_requests=10, first_poll_s=0.01, longest_poll_s=0.02)
annotate_pairs(make_rows(40), pool_of(judge_spec(provider=provider)), base_urls={"local": url}, cache_path=cache,
               limits=Limits(transport="batch", batch=policy))
"""


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_killed_run_finds_its_batches_again(tmp_path: Path, provider: str) -> None:
    env = ENVIRONMENT | {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"] + os.pathsep + str(Path(__file__).parent)}
    command = [sys.executable, "-c", PROGRAM]
    with BatchServer() as server:
        server.stuck = True
        process = subprocess.Popen([*command, server.url, str(tmp_path / "c"), provider], env=env)
        deadline = time.monotonic() + 60
        while len(server.made()) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = len(server.made())
        assert before >= 3
        # Not into an online run: those requests would be asked twice.
        with pytest.raises(UserError, match=r"are in a provider's batch .*transport=batch"):
            annotate(server, 40, judge_spec(provider=provider), limits=None, cache_path=tmp_path / "c")
        server.stuck = False
        judge = judge_spec(provider=provider)
        rows, summary = annotate(server, 40, judge, cache_path=tmp_path / "c", policy={"most_requests": 10})
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == 40
    assert len(server.made()) == 4 and set(server.sent.values()) == {1}
    assert summary["asked"] == 40 and summary["unsettled"] == 0
    with AnswerCache(tmp_path / "c") as cache:
        assert Ledger(cache).unfinished() == []


def test_two_processes_on_one_cache_send_every_request_once(tmp_path: Path) -> None:
    env = ENVIRONMENT | {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"] + os.pathsep + str(Path(__file__).parent)}
    with BatchServer(looks=20) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / "c"), "openai"]
        both = [subprocess.Popen(command, env=env) for _ in range(2)]
        assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(server.made()) == 4 and set(server.sent.values()) == {1} and len(server.sent) == 40
    with AnswerCache(tmp_path / "c") as cache:
        assert cache.count() == 40 and Ledger(cache).unfinished() == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_noted_but_never_sent_is_forgotten(tmp_path: Path, provider: str) -> None:
    judge = judge_spec(provider=provider)
    with FakeServer() as server:
        keys = [row["request_hash"] for row in annotate(server, 6, judge, limits=None)[0]]
    with AnswerCache(tmp_path / "c") as cache:
        Ledger(cache).intend(provider, "local", judge.model, keys)
    with BatchServer() as server:
        rows, _ = annotate(server, 6, judge, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1


def test_protocols_without_batches_are_told() -> None:
    from rlhf_jax.annotation.batches.batch_clients import service

    with pytest.raises(UserError, match="decisions protocol cannot be asked in batches"):
        service(None, "decisions")


def test_the_key_is_in_no_ledger_and_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-123456")
    with BatchServer(
        lambda key, body, nth: INVALID if "Say 3." in str(body) else succeed(key, body, nth)
    ) as server:
        rows, _ = annotate(server, 5, judge_spec(api_key_env="JUDGE_KEY"), cache_path=tmp_path / "c")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir()) + repr(rows).encode()
    assert b"very-secret" not in stored + b"".join(server.files.values())
    assert any("very-secret" in header for header in server.headers)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_requests_of_a_batch_nobody_knows_any_more_are_sent_again(tmp_path: Path, provider: str) -> None:
    judge = judge_spec(provider=provider)
    with FakeServer() as server:
        keys = [row["request_hash"] for row in annotate(server, 6, judge, limits=None)[0]]
    with AnswerCache(tmp_path / "c") as cache:
        ledger = Ledger(cache)
        ledger.sent(ledger.intend(provider, "local", judge.model, keys), "gone")
    with BatchServer() as server:
        rows, _ = annotate(server, 6, judge, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"} and set(server.sent.values()) == {1}


def test_cancelling_forgets_what_was_never_sent_and_needs_the_judges(tmp_path: Path) -> None:
    judge = judge_spec()
    with AnswerCache(tmp_path / "c") as cache:
        Ledger(cache).intend("openai", "local", judge.model, ["k"])
    with BatchServer() as server:
        urls = {"local": server.url}
        with pytest.raises(UserError, match=r"none of the judges of test_pool asks"):
            cancel_batches(pool_of(judge_spec(model="m2")), tmp_path / "c", urls)
        assert cancel_batches(pool_of(judge), tmp_path / "c", urls) == []
    with AnswerCache(tmp_path / "c") as cache:
        assert Ledger(cache).unfinished() == []
