"""A server with every fault at once, and kill -9 in between: each row is answered once, and its status is exact.

The suite runs a small version; RLHF_JAX_FULL_FAULTS=1 runs 5,000 pairs and five kills.
"""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from annotation_fake_server import RESET, FakeServer, openai_payload, verdict
from annotation_helpers import ENVIRONMENT, judge_spec

from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.requests import Judge

FULL = bool(os.environ.get("RLHF_JAX_FULL_FAULTS"))
ROWS, KILLS = (5000, 5) if FULL else (400, 2)
CONCURRENCY, TIMEOUT_S = 16, 2.0

PROGRAM = """
import json, sys
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of
from rlhf_jax.annotation import annotate_pairs
url, cache, out, rows, concurrency, timeout_s = sys.argv[1:]
labelled, summary = annotate_pairs(
    make_rows(int(rows)), pool_of(judge_spec()), base_urls={"local": url}, cache_path=cache,
    max_concurrency=int(concurrency), timeout_s=float(timeout_s), retry=QUICK,
)
with open(out, "w") as file:
    json.dump([[{name: row[name] for name in NAMES} for row in labelled], summary], file)
""".replace("NAMES", '("instruction", "status", "preference", "order", "request_hash", "n_attempts")')


def busy(status: int, **headers: str) -> tuple:
    return status, headers, {"error": {"message": "busy"}}


# What a request meets when it is asked for the first time; its next asking is answered.
PASSING = {
    "429, wait": lambda text: busy(429, **{"Retry-After": "0.02"}),
    "429": lambda text: busy(429),
    "500": lambda text: busy(500),
    "503": lambda text: busy(503),
    "reset": lambda text: RESET,
    "slow": lambda text: (time.sleep(0.2), openai_payload(text))[1],
    "malformed": lambda text: b'{"choices": [{"message": {"content": "a"',
    "no body": lambda text: b"",
    "no choices": lambda text: {"id": "x", "choices": [], "usage": {}},
}
# What it is answered whenever it is asked, and the status that is for.
LASTING = {
    "truncated": (lambda text: openai_payload("Both outputs are", "length"), "truncated"),
    "refusal": (lambda text: _refusal(), "refused"),
    "empty": (lambda text: openai_payload(""), "parse_error"),
    "wrong count": (lambda text: openai_payload("a\nb"), "parse_error"),
    "rejected": (lambda text: (400, {}, {"error": {"message": "too long"}}), "api_error"),
}
KINDS = [*PASSING, *LASTING, "too slow", *["fine"] * 16]


def _refusal() -> dict:
    payload = openai_payload("")
    payload["choices"][0]["message"] |= {"content": None, "refusal": "I will not."}
    return payload


def instruction_of(body: dict) -> str:
    return body["messages"][-1]["content"].split("<instruction>\n")[1].split("\n</instruction>")[0]


def kind_of(instruction: str) -> str:
    number = int.from_bytes(hashlib.sha256(f"fault {instruction}".encode()).digest()[:4], "big")
    kind = KINDS[number % len(KINDS)]
    # So slow that it times out: few, for each costs a client's timeout.
    return "fine" if kind == "too slow" and number % 7 else kind


def respond(body: dict, nth: int) -> object:
    kind, text = kind_of(instruction_of(body)), verdict(body)
    if kind in LASTING:
        return LASTING[kind][0](text)
    if nth == 1 and kind in PASSING:
        return PASSING[kind](text)
    if nth == 1 and kind == "too slow":
        time.sleep(TIMEOUT_S * 1.5)
    return openai_payload(text)


def expected(row: dict) -> tuple[str, float | None]:
    """Status and preference as the server's answers mean them, worked out from the row alone."""
    kind = kind_of(row["instruction"])
    if kind in LASTING:
        return LASTING[kind][1], None
    i = row["instruction"].removeprefix("Say ").removesuffix(".")
    shown = (f"first {i}", f"second {i}")
    switched = random_choices.is_switched(row["instruction"], 0)
    body = JUDGE.body([(row["instruction"], *(shown[::-1] if switched else shown))])
    return "ok", 2.0 if (verdict(body) == "b") != switched else 1.0


JUDGE = Judge(judge_spec(), {"local": "http://127.0.0.1:9"})


class Run:
    """The program as a process of its own, whose words are read while it runs."""

    def __init__(self, server: FakeServer, cache: Path, out: Path) -> None:
        env = ENVIRONMENT | {
            "PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(Path(__file__).parent)])
        }
        arguments = [server.url, cache, out, ROWS, CONCURRENCY, TIMEOUT_S]
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.said = self.process.stderr.read()

    def wait(self, seconds: float) -> int:
        status = self.process.wait(timeout=seconds)
        self._reader.join()
        return status


def answered_keys(cache: Path) -> set[str]:
    database = sqlite3.connect(cache)
    keys = {key for (key,) in database.execute("SELECT request_hash FROM answers")}
    database.close()
    return keys


@pytest.mark.timeout(1500)
def test_every_row_is_answered_once_through_faults_and_kills(tmp_path: Path) -> None:
    rng, cache, out = random.Random(11), tmp_path / "answers.sqlite", tmp_path / "out.json"
    known: set[str] = set()
    with FakeServer(respond) as server:
        for kill in range(KILLS):
            start = len(server.bodies)
            run = Run(server, cache, out)
            target = start + rng.randint(10, ROWS // (KILLS + 1))
            deadline = time.monotonic() + 300
            while len(server.bodies) < target:
                assert run.process.poll() is None and time.monotonic() < deadline, f"{kill}: {run.said}"
                time.sleep(0.001)
            os.kill(run.process.pid, signal.SIGKILL)
            run.wait(30)
            time.sleep(0.2)  # The server hands out what was in flight.
            asked = {JUDGE.request_hash(body) for body in list(server.bodies)[start:]}
            assert not asked & known, "an answer that was kept was asked for again"
            now = answered_keys(cache)
            assert known < now, "an answer was lost"
            known = now
        start = len(server.bodies)
        last = Run(server, cache, out)
        assert last.wait(1200) == 0, last.said
        assert not {JUDGE.request_hash(body) for body in server.bodies[start:]} & known
    rows, summary = json.loads(out.read_text())
    assert [row["instruction"] for row in rows] == [f"Say {i}." for i in range(ROWS)]
    wrong = [row for row in rows if (row["status"], row["preference"]) != expected(row)]
    assert not wrong, wrong[:3]
    kinds = {kind_of(row["instruction"]) for row in rows}
    assert kinds == set(KINDS), "a fault was never tried"
    assert summary["status"] == dict(Counter(expected(row)[0] for row in rows))
    assert summary["cached"] == len(known) and summary["cached"] + summary["asked"] == ROWS
    kept = answered_keys(cache)
    assert kept == {row["request_hash"] for row in rows if row["status"] != "api_error"}
    # Each fault that passes cost an attempt or was met by a run that was killed.
    retried = sum(row["n_attempts"] > 1 for row in rows)
    passing = sum(kind_of(row["instruction"]) in {*PASSING, "too slow"} - {"slow"} for row in rows)
    assert passing - KILLS * CONCURRENCY <= retried <= passing + KILLS * CONCURRENCY + ROWS // 50
