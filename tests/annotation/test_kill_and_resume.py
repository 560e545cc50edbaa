"""kill -9 at random moments: the same command again asks for nothing it has, and ends with the same rows."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer
from annotation_helpers import ENVIRONMENT

ROWS, CONCURRENCY, KILLS = 160, 8, 2

# A program of its own, as a user's job is: reads nothing from the test but its arguments.
PROGRAM = """
import json, sys
from rlhf_jax.annotation import annotate_pairs
url, pool, cache, out, rows, concurrency = sys.argv[1:]
rows = [
    {"instruction": f"Say {i}.", "input": "", "output_1": f"first {i}", "output_2": f"second {i}"}
    for i in range(int(rows))
]
labelled, summary = annotate_pairs(
    rows, pool, base_urls={"local": url}, cache_path=cache, max_concurrency=int(concurrency), p_label_flip=0.1
)
for row in labelled:
    del row["created_at"], row["latency_ms"]
with open(out, "w") as file:
    json.dump([labelled, summary], file)
"""
POOL = """
name: two
defaults: {base_url: local, template: pairwise_choice, parser: choice, max_tokens: 3}
judges:
  - {name: gpt, provider: openai, model: m1}
  - {name: other, provider: openai, model: m2}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def start(folder: Path, server: FakeServer, cache: str, out: str) -> subprocess.Popen:
    paths = [folder / name for name in ("program.py", "pool.yaml", cache, out)]
    command = [sys.executable, paths[0], server.url, *paths[1:], str(ROWS), str(CONCURRENCY)]
    return subprocess.Popen(
        [str(part) for part in command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def test_killed_and_continued_equals_uninterrupted_and_asks_nothing_twice(program: Path) -> None:
    rng = random.Random(5)
    with FakeServer(delay_s=0.02) as server:
        for kill in range(KILLS):
            process = start(program, server, "cache", "killed.json")
            before = server.asked.total()
            # Within the run's requests, at a moment of no particular kind.
            target = before + rng.randint(10, ROWS // (KILLS + 1))
            deadline = time.monotonic() + 120
            while server.asked.total() < target:
                assert process.poll() is None and time.monotonic() < deadline, f"run {kill} never got going"
                time.sleep(rng.uniform(0.001, 0.004))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.1)  # the server finishes what was in flight
        interrupted = server.asked.total()
        assert not (program / "killed.json").exists()
        finish(start(program, server, "cache", "killed.json"))
        asked_again = server.asked.total() - len(server.asked)
        most = max(server.asked.values())
    with FakeServer() as server:
        finish(start(program, server, "other_cache", "whole.json"))
        distinct = len(server.asked)
        assert server.asked.total() == distinct
    killed, summary = json.loads((program / "killed.json").read_text())
    whole, _ = json.loads((program / "whole.json").read_text())
    assert 0 < interrupted < distinct + KILLS * CONCURRENCY
    assert asked_again <= KILLS * CONCURRENCY, "an answer that had come was asked for again"
    assert most <= 1 + KILLS
    assert summary["cached"] + summary["asked"] == distinct and summary["cached"] > 0
    assert len(killed) == ROWS and killed == whole


def test_two_processes_on_one_cache_label_alike_and_complete(program: Path) -> None:
    with FakeServer(delay_s=0.01) as server:
        both = [start(program, server, "cache", f"{name}.json") for name in ("one", "two")]
        for process in both:
            finish(process)
        distinct = len(server.asked)
        assert server.asked.total() < 1.5 * distinct, "they did not see each other's answers"
    (rows_1, sum_1), (rows_2, sum_2) = (
        json.loads((program / f"{n}.json").read_text()) for n in ("one", "two")
    )
    assert rows_1 == rows_2 and len(rows_1) == ROWS
    for summary in (sum_1, sum_2):
        assert summary["cached"] + summary["asked"] == distinct and summary["failed"] == 0
