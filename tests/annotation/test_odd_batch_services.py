"""Batch services that are not there, or lose things: nothing is sent without end, nothing paid is lost."""

import json
import re
import sqlite3
from pathlib import Path

import pytest
from annotation_batch_server import BatchServer, succeed
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_calls import cancel_batches
from rlhf_jax.annotation.batches.batch_transport import BatchPolicy
from rlhf_jax.annotation.batches.ledger import Ledger
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.costs.prices import Price
from rlhf_jax.errors import UserError

PROVIDERS = ("openai", "anthropic")
FAST = {"first_poll_s": 0.01, "longest_poll_s": 0.02, "settle_s": 0.05}


class Odd(BatchServer):
    """A batch server with `odd(method, path)`: a reply, or None for what the server would say."""

    def __init__(self, odd: object, **options: object) -> None:
        super().__init__(**options)
        self.odd = odd

    def answer(self, method: str, path: str, raw: bytes) -> object:
        said = self.odd(self, method, path.split("?")[0])
        return super().answer(method, path, raw) if said is None else said


def annotate(
    server: object, n: int = 6, provider: str = "openai", online: bool = False, **options: object
) -> tuple[list[dict], dict]:
    limits = Limits(batch=BatchPolicy(**FAST, rounds=2), max_usd=options.pop("max_usd", 0.0))
    limits = limits if online else Limits(**{**vars(limits), "transport": "batch"})
    pool = pool_of(judge_spec(provider=provider, price=Price(1.0, 2.0)))
    return annotate_pairs(
        make_rows(n), pool, base_urls={"local": server.url}, retry=QUICK, limits=limits, **options
    )


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [404, 405, 501, 403, 400])
def test_a_batch_that_was_refused_was_not_sent(tmp_path: Path, status: int, provider: str) -> None:
    refusal = status, {"detail": "Nothing here"}
    with Odd(lambda server, method, path: refusal) as server:
        for _ in range(2):
            with pytest.raises(UserError, match="Nothing here") as caught:
                annotate(server, provider=provider, cache_path=tmp_path / "c")
        assert ("transport=online" in str(caught.value)) == (status in (404, 405, 501))
        pool = pool_of(judge_spec(provider=provider))
        assert cancel_batches(pool, tmp_path / "c", {"local": server.url}) == []
    with FakeServer() as server:
        rows, _ = annotate(server, provider=provider, online=True, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"}


def test_files_without_batches_are_no_batch_service(tmp_path: Path) -> None:
    def odd(server: BatchServer, method: str, path: str) -> object:
        return None if path == "/v1/files" else (404, {"detail": "None"})

    with Odd(odd) as server, pytest.raises(UserError, match="transport=online"):
        annotate(server, cache_path=tmp_path / "c")
    with AnswerCache(tmp_path / "c") as cache:
        assert Ledger(cache).unfinished() == []


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("sent", [False, True])
def test_a_cache_that_was_locked_by_such_a_service_is_set_free(
    tmp_path: Path, sent: bool, provider: str
) -> None:
    judge = judge_spec(provider=provider)
    with FakeServer() as server:
        keys = [row["request_hash"] for row in annotate(server, provider=provider, online=True)[0]]
    for free in ("batch", "cancel"):
        with AnswerCache(tmp_path / "c") as cache:
            ledger = Ledger(cache)
            entry = ledger.intend(provider, "local", judge.model, keys)
            entry = ledger.sent(entry, "b7") if sent else entry
        with Odd(lambda server, method, path: (404, {"detail": "None"})) as server:
            if free == "batch":
                with pytest.raises(UserError, match="None"):
                    annotate(server, provider=provider, cache_path=tmp_path / "c")
            else:
                assert cancel_batches(pool_of(judge), tmp_path / "c", {"local": server.url}) == []
        with AnswerCache(tmp_path / "c") as cache:
            assert Ledger(cache).unfinished() == []


def gone(server: BatchServer, method: str, path: str) -> object:
    return (
        (404, {"error": {"message": "No such File object"}})
        if path.endswith(("/content", "/results"))
        else None
    )


@pytest.mark.parametrize("provider", PROVIDERS)
def test_results_that_cannot_be_had_are_asked_for_again_in_counted_rounds(
    tmp_path: Path, provider: str
) -> None:
    with Odd(gone) as server:
        rows, summary = annotate(server, provider=provider, cache_path=tmp_path / "c")
    assert len(server.made()) == 2 and set(server.sent.values()) == {2}
    assert {row["status"] for row in rows} == {"api_error"} and "No such File" in rows[0]["status_detail"]
    assert summary["unpriced_attempts"] == 12
    with AnswerCache(tmp_path / "c") as cache:
        assert Ledger(cache).unfinished() == []


def test_results_that_cannot_be_had_are_paid_out_of_the_budget() -> None:
    with Odd(gone) as server, pytest.raises(UserError, match=r"max_usd: .*No such File object"):
        annotate(server, max_usd=0.002)
    lines = b"".join(data for name, data in server.files.items() if "_b" not in name)
    # A token per byte of what was sent, at half the price.
    assert 0 < len(lines) * 0.5e-6 <= 0.002


def unknown(server: BatchServer, method: str, path: str) -> object:
    known = method == "GET" and path.rpartition("/")[2].startswith("b") and path[-1].isdigit()
    return (404, {"error": {"message": "No such batch"}}) if known else None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_batches_that_are_forgotten_are_sent_in_counted_rounds(provider: str) -> None:
    with Odd(unknown) as server:
        rows, _ = annotate(server, provider=provider)
    assert len(server.made()) == 2 and "No such batch" in rows[0]["status_detail"]


def changed(change: object) -> object:
    """A reply with the results of the first batch, changed line by line."""

    def odd(server: BatchServer, method: str, path: str) -> object:
        if path.endswith("/content") and "b0" in path:
            lines = server.files[path.split("/")[3]].split(b"\n")
        elif path.endswith("/batches/b0/results"):
            lines = server.batches["b0"]["results"].strip().split(b"\n")
        else:
            return None
        return b"\n".join(change(lines)) + b"\n"

    return odd


BROKEN = {
    "cut": lambda lines: [lines[0], lines[1][:110], *lines[2:]],
    "no name": lambda lines: [lines[0], lines[1].replace(b"custom_id", b"x"), *lines[2:]],
    "no JSON": lambda lines: [lines[0], b"oops", *lines[2:]],
    "missing": lambda lines: [lines[0], *lines[2:]],
    "a list": lambda lines: [lines[0], b"[1, 2]", *lines[2:]],
    "text for an object": lambda lines: [lines[0], _with(lines[1], "boom"), *lines[2:]],
    "null": lambda lines: [lines[0], _with(lines[1], None), *lines[2:]],
    "error first": lambda lines: [_with(lines[1], None), *lines[:1], *lines[2:]],
}


def _with(line: bytes, value: object) -> bytes:
    told = json.loads(line)
    name = "result" if "result" in told else "response"
    return json.dumps(told | {name: value}).encode()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_line_costs_its_own_request(tmp_path: Path, kind: str, provider: str) -> None:
    with Odd(changed(BROKEN[kind])) as server:
        rows, summary = annotate(server, provider=provider, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 2
    assert sorted(server.sent.values()) == [1, 1, 1, 1, 1, 2] and summary["failed_attempts"] == 1


def _of_all(change: object) -> object:
    """Every line as the value it holds, changed."""
    return lambda lines: [json.dumps(change(json.loads(line))).encode() for line in lines]


def _with_response(**changes: object) -> object:
    return _of_all(
        lambda told: told | {"response": told["response"] | changes} if "response" in told else told
    )


# Forms in which gateways write results that say all there is to say.
FORMS = {
    "a file's mark": lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
    "a JSON list": lambda lines: [b"[" + b",".join(lines) + b"]"],
    "line ends of Windows": lambda lines: [line + b"\r" for line in lines],
    "another status of success": _with_response(status_code=201),
    "a status as text": _with_response(status_code="200"),
    "an error without words": _of_all(lambda told: told | {"error": {"code": None, "message": None}}),
    "JSON as text": _of_all(lambda told: told | {"response": told["response"] | {
        "body": json.dumps(told["response"]["body"])}} if "response" in told else told),
    "no body around it": _of_all(lambda told: told | {"response": told["response"]["body"]}
                                 if "response" in told else told),
    "an unknown word": _of_all(lambda told: told | {"result": told["result"] | {"type": "ok"}}
                               if "result" in told else told),
    "digits without end": lambda lines: [re.sub(rb'(put|prompt)_tokens": \d+', lambda m: m[0] + b"9" * 5000, line)
                                         for line in lines],
}  # fmt: skip


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("form", list(FORMS))
def test_results_in_any_form_are_taken_and_not_paid_for_twice(form: str, provider: str) -> None:
    with Odd(changed(FORMS[form])) as server:
        rows, _ = annotate(server, provider=provider)
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_web_page_in_the_place_of_results_keeps_the_batch(tmp_path: Path, provider: str) -> None:
    with Odd(changed(lambda lines: [b"<html><title>Log in</title></html>"])) as server:
        with pytest.raises(
            UserError, match="a web page stands in the place of the results; the batches go on"
        ):
            annotate(server, provider=provider, cache_path=tmp_path / "c")
        server.odd = lambda server, method, path: None
        rows, _ = annotate(server, provider=provider, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1


@pytest.mark.parametrize("errors", ["bad file", [{"message": "bad file"}], {"message": "bad file"}])
def test_why_a_batch_failed_is_read_in_any_form_and_locks_nothing(tmp_path: Path, errors: object) -> None:
    def odd(server: BatchServer, method: str, path: str) -> object:
        told = path.endswith("/batches/b0")
        return server._shown(server.batches["b0"]) | {"status": "failed", "errors": errors} if told else None

    with Odd(odd) as server, pytest.raises(UserError, match="batch b0 was not accepted: bad file"):
        annotate(server, cache_path=tmp_path / "c")
    with FakeServer() as server:
        rows, _ = annotate(server, online=True, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"}


def test_what_a_failed_batch_has_finished_is_taken() -> None:
    def odd(server: BatchServer, method: str, path: str) -> object:
        if not path.endswith("/batches/b0"):
            return None
        if not server.batches["b0"]["ended"]:
            server._end(server.batches["b0"])
        return server._shown(server.batches["b0"]) | {"status": "failed", "errors": None}

    with Odd(odd) as server:
        rows, _ = annotate(server)
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", [None, "", 7])
def test_a_batch_without_a_name_was_not_sent(tmp_path: Path, provider: str, name: object) -> None:
    def odd(server: BatchServer, method: str, path: str) -> object:
        return {"object": "batch", "id": name} if method == "POST" and path.endswith("batches") else None

    with Odd(odd) as server, pytest.raises(UserError, match="the batch could not be sent"):
        annotate(server, provider=provider, cache_path=tmp_path / "c")
    with AnswerCache(tmp_path / "c") as cache:
        assert Ledger(cache).unfinished() == []


def test_what_cannot_be_sent_again_fails_alone() -> None:
    def odd(server: BatchServer, method: str, path: str) -> object:
        if server.made() and method == "POST":
            return 500, {"error": {"message": "no more today"}}
        return changed(BROKEN["cut"])(server, method, path)

    with Odd(odd) as server:
        rows, summary = annotate(server)
    assert summary["status"] == {"ok": 5, "api_error": 1}
    detail = next(row["status_detail"] for row in rows if row["status"] == "api_error")
    assert "broken" in detail and "no more today" in detail


@pytest.mark.parametrize("provider", PROVIDERS)
def test_doubled_and_unknown_names_and_broken_letters_cost_nothing(provider: str) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        stranger = lines[0].replace(json.loads(lines[0])["custom_id"].encode(), b"nobody")
        letters = lines[1].replace(b"served-model", b"served\xff\xfemodel")
        return [lines[0], _with(lines[0], None), lines[0], stranger, letters, *lines[2:]]

    with Odd(changed(change)) as server:
        rows, summary = annotate(server, provider=provider)
    assert {row["status"] for row in rows} == {"ok"} and set(server.sent.values()) == {1}
    assert summary["failed_attempts"] == 0
    assert "served\ufffd\ufffdmodel" in {row["model_returned"] for row in rows}


@pytest.mark.parametrize("word", ["COMPLETED", "Succeeded", "finished"])
def test_states_are_known_in_all_words(word: str) -> None:
    class Worded(BatchServer):
        def _shown(self, batch: dict) -> dict:
            shown = super()._shown(batch)
            return (
                shown | {"status": word, "request_counts": None} if shown["status"] == "completed" else shown
            )

    with Worded() as server:
        rows, _ = annotate(server)
    assert {row["status"] for row in rows} == {"ok"}


def test_a_flagged_request_of_a_batch_is_filtered() -> None:
    def fate(key: str, body: dict, nth: int) -> object:
        return "invalid" if "Say 1." in str(body) else succeed(key, body, nth)

    def odd(server: BatchServer, method: str, path: str) -> object:
        if path.endswith("/content") and "error_file" in path:
            return server.files[path.split("/")[3]].replace(b"it was invalid", b"your input was flagged")
        return None

    with Odd(odd, fate=fate) as server:
        rows, _ = annotate(server)
    assert rows[1]["status"] == "filtered" and len(server.made()) == 1


def test_an_account_without_credit_ends_the_run_and_keeps_what_was_paid(tmp_path: Path) -> None:
    def respond(body: dict, nth: int) -> object:
        broke = len(server.bodies) > 4
        return (402, {}, {"error": {"message": "Out of money"}}) if broke else openai_payload("a")

    with FakeServer(respond) as server:
        with pytest.raises(UserError, match="Out of money"):
            annotate(server, 20, online=True, max_concurrency=1, cache_path=tmp_path / "c")
        assert len(server.bodies) == 5
    assert sqlite3.connect(tmp_path / "c").execute("SELECT count(*) FROM answers").fetchone() == (4,)


def test_a_batch_service_that_asks_to_wait_for_hours_ends_the_run() -> None:
    limited = 429, {"error": {"message": "Please try again in 23h0m0s."}}
    with Odd(lambda *args: limited) as server, pytest.raises(UserError, match="asks to wait 82800 s"):
        annotate(server)
