"""The annotation layer against an endpoint that is not ours: the real model behind `transformers serve`.

The model is small and its verdicts are weak, so what is checked is that every row comes to a status and that an
answer is what the model says; the numbers are not.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf", reason="the package gguf is not installed")
for _name in ("fastapi", "uvicorn"):
    pytest.importorskip(_name, reason=f"{_name} is not installed (pip install transformers[serving])")

import package  # noqa: E402
import texts  # noqa: E402

from rlhf_jax.annotation import annotate_completions, annotate_pairs, annotate_ratings  # noqa: E402
from rlhf_jax.models.gguf import gguf_files  # noqa: E402

pytestmark = pytest.mark.timeout(600)
STATUSES = {"ok", "parse_error", "truncated", "refused"}
START_S = 240.0


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """http://127.0.0.1:PORT/v1 of a server with the model."""
    folder = gguf_files.as_folder(str(package.model_file()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from transformers.cli.transformers import main; main()",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("endpoint") / "log"
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | threads)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        server.terminate()
        server.wait(30)


def _wait(server, url, log):
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            pytest.fail(f"transformers serve ended with {server.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"transformers serve did not answer in {START_S:.0f} s: {log.read_text()[-2000:]}")


def judge(address, path, **fields):
    """A judge file of the served model."""
    url, folder = address
    spec = {"name": path.stem, "provider": "openai", "base_url": url, "model": folder, "api_key_env": ""}
    path.write_text(json.dumps(spec | {"sampling": {"temperature": 0}} | fields))
    return path


def test_completions_are_what_the_model_says(address, tmp_path):
    teacher = judge(
        address,
        tmp_path / "teacher.yaml",
        kind="completion",
        template="completion_bare",
        parser="text",
        max_tokens=24,
    )
    rows = [{"instruction": text} for text in (texts.INSTRUCTIONS[1], texts.INSTRUCTIONS[5])]
    found, _ = annotate_completions(rows, teacher, cache_path=tmp_path / "answers.sqlite", timeout_s=240.0)
    assert [row["status"] for row in found] == ["ok", "ok"], found
    assert "Tokyo" in found[0]["output"] and found[1]["output"]
    again, _ = annotate_completions(rows, teacher, cache_path=tmp_path / "answers.sqlite")
    assert [row["output"] for row in again] == [row["output"] for row in found]


def test_an_answer_that_was_cut_is_truncated(address, tmp_path):
    teacher = judge(
        address,
        tmp_path / "short.yaml",
        kind="completion",
        template="completion_bare",
        parser="text",
        max_tokens=3,
    )
    [row], _ = annotate_completions([{"instruction": texts.INSTRUCTIONS[6]}], teacher, timeout_s=240.0)
    assert (row["status"], row["output"]) == ("truncated", None)


def test_pairs_and_ratings_come_to_a_status(address, tmp_path):
    pairwise = judge(
        address, tmp_path / "pairs.yaml", template="pairwise_choice", parser="choice", max_tokens=4
    )
    rows = [
        {"instruction": texts.INSTRUCTIONS[i], "output_1": texts.ANSWERS[i], "output_2": texts.BAD[i]}
        for i in (0, 1)
    ]
    found, _ = annotate_pairs(rows, pairwise, timeout_s=240.0)
    for row in found:
        assert row["status"] in STATUSES, row
        assert (row["preference"] in (1, 2)) == (row["status"] == "ok")
    rating = {"name": "rating", "low": 1, "high": 7}
    rater = judge(
        address, tmp_path / "rater.yaml", kind="rating", template="rating_scale", parser=rating, max_tokens=8
    )
    rows = [{"instruction": texts.INSTRUCTIONS[i], "output": texts.ANSWERS[i]} for i in (0, 1)]
    found, _ = annotate_ratings(rows, rater, timeout_s=240.0)
    for row in found:
        assert row["status"] in STATUSES, row
        assert (row["rating"] is not None) == (row["status"] == "ok")
