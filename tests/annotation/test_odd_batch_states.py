"""Batches whose end or state is told in odd ways: none is waited for without end, none is paid twice without need."""

import json
from pathlib import Path

import pytest
from annotation_batch_server import EXPIRED, BatchServer
from annotation_helpers import make_rows
from test_odd_batch_services import PROVIDERS, Odd, annotate, changed

from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_clients import state_of
from rlhf_jax.annotation.batches.ledger import Ledger
from rlhf_jax.errors import UserError


class Worded(BatchServer):
    """Shows a batch that has ended with `change` made to it for its first `looks_changed` looks."""

    def __init__(self, change: dict, looks_changed: int = 10**6) -> None:
        super().__init__()
        self.change, self.left = change, looks_changed

    def _shown(self, batch: dict) -> dict:
        shown = super()._shown(batch)
        if not batch["ended"] or self.left <= 0:
            return shown
        self.left -= 1
        return shown | self.change


NO_FILES = {"output_file_id": None, "error_file_id": None}


@pytest.mark.parametrize("status", ["completed", "cancelled", "JOB_STATE_SUCCEEDED"])
def test_files_that_are_named_a_moment_after_the_end_are_waited_for(status: str) -> None:
    with Worded(NO_FILES | {"status": status}, looks_changed=3) as server:
        rows, summary = annotate(server)
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1
    assert summary["failed_attempts"] == 0


def test_a_batch_that_never_names_its_files_is_told_after_some_looks(tmp_path: Path) -> None:
    with Worded(NO_FILES) as server:
        rows, _ = annotate(server, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"api_error"} and len(server.made()) == 2
    assert "batch b1: it is completed and names no results" in rows[0]["status_detail"]
    with AnswerCache(tmp_path / "c") as cache:
        assert Ledger(cache).unfinished() == []


@pytest.mark.parametrize("status", ["cancelled", "JOB_STATE_CANCELLED", "stopped"])
def test_what_somebody_stopped_is_not_sent_again(status: str) -> None:
    with Worded(NO_FILES | {"status": status}) as server:
        rows, _ = annotate(server)
    assert {row["status"] for row in rows} == {"api_error"} and len(server.made()) == 1
    assert "cancelled" in rows[0]["status_detail"]


@pytest.mark.parametrize(
    "status",
    ["success", "complete", "JOB_STATE_SUCCEEDED", "BATCH_STATE_SUCCEEDED", "stopped", "aborted", "deleted", None,
     "reaped"],
)  # fmt: skip
def test_a_batch_with_results_has_ended_in_whatever_words(status: str | None) -> None:
    with Worded({"status": status}) as server:
        rows, _ = annotate(server)
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", ["reaped", None])
def test_an_unknown_state_without_results_is_named_and_the_batch_kept(
    tmp_path: Path, provider: str, status: str | None
) -> None:
    change = NO_FILES | {"status": status, "processing_status": status, "results_url": None}
    with Worded(change) as server:
        with pytest.raises(UserError, match=rf"batch b0: its state '?{status}'? is unknown.*run again"):
            annotate(server, provider=provider, cache_path=tmp_path / "c")
        server.left = 0
        rows, _ = annotate(server, provider=provider, cache_path=tmp_path / "c")
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1


@pytest.mark.parametrize(
    "word", ["in_progress", "JOB_STATE_RUNNING", "BATCH_STATE_PENDING", "cancelling", "IN-PROGRESS"]
)
def test_what_runs_has_not_ended(word: str) -> None:
    assert state_of(word, 2, has_results=True) == state_of(word, 2, has_results=False)
    assert not state_of(word, 2, has_results=True).ended and not state_of(word, 2, has_results=False).doubt


def told(**changes: object) -> object:
    """Every line of the results with `changes` made to it; those of `response` to the response in it."""
    inner = changes.pop("response")

    def change(lines: list[bytes]) -> list[bytes]:
        items = [json.loads(line) | changes for line in lines]
        for item in items:
            item["response"] = item["response"] | inner
        return [json.dumps(item).encode() for item in items]

    return changed(change)


@pytest.mark.parametrize(
    ("error", "status", "sent"),
    [
        ({"code": "batch_cancelled", "message": "x"}, "api_error", 1),
        ({"code": None, "message": "This batch was canceled by its owner"}, "api_error", 1),
        ({"code": None, "message": "The completion window expired"}, EXPIRED, 2),
        ({"message": "the batch has expired"}, EXPIRED, 2),
        ({"code": "server_error", "message": "your key expired"}, "api_error", 2),
    ],
)
def test_what_became_of_a_batch_is_read_in_words(error: dict, status: str, sent: int) -> None:
    def odd(server: BatchServer, method: str, path: str) -> object:
        if not path.endswith("/content"):
            return None
        lines = server.files[path.split("/")[3]].split(b"\n")
        return b"\n".join(
            json.dumps(json.loads(line) | {"response": None, "error": error}).encode() for line in lines
        )

    with Odd(odd) as server:
        rows, _ = annotate(server)
    assert {row["status"] for row in rows} == {status} and len(server.made()) == sent


def test_a_line_without_a_body_is_asked_again_and_a_status_in_words_is_read() -> None:
    with Odd(told(response={"body": None})) as server:
        rows, summary = annotate(server)
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 2
    assert summary["unpriced_attempts"] == len(make_rows(6))
    with Odd(told(response={"status_code": "200 OK"})) as server:
        rows, _ = annotate(server)
    assert {row["status"] for row in rows} == {"ok"} and len(server.made()) == 1
