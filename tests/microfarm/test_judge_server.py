"""The judge server on the wire, and how it lives and dies."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import rlhf_jax
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm.judges.judge_server import JudgeServer

CLEAN = "micro-judge-clean"
DATA = """<instruction>
Name three colors.
</instruction>
<output_a>
ugh no
</output_a>
<output_b>
Sure! Here are three colors:
- red
- blue
- green
</output_b>
"""
CHOICE = DATA + "Answer with exactly one token: a or b."
SENTENCE = DATA + "Answer with exactly: Output (a) or Output (b)."


@pytest.fixture(scope="module")
def server():
    with JudgeServer() as running:
        yield running


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def connect(server: JudgeServer, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=timeout)


def raw_request(server: JudgeServer, data: bytes, timeout: float = 5.0) -> bytes:
    """Everything the server sends until it closes the connection."""
    with connect(server, timeout) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(1 << 20):
            received += chunk
        return received


def post(text: str, headers: str = "") -> bytes:
    body = json.dumps({"model": CLEAN, "messages": user(text)}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer k\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}\r\n".encode() + body


def test_pipelined_requests_are_answered_in_order_on_one_connection(server):
    last = post(SENTENCE, "Connection: close\r\n")
    received = raw_request(server, post(CHOICE) + post("Hello") + last)
    contents = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    said = [content["choices"][0]["message"]["content"] for content in contents]
    assert said[0] == "b" and "could not find" in said[1] and said[2] == "Output (b)"
    assert received.count(b"connection: keep-alive") == 2


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/messages HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 66_000, 431),
        (post("x", "Connection: close\r\n").replace(b"Bearer k", b""), 401),
        (post("x", "Connection: close\r\n").replace(b'"messages"', b"messages::"), 400),
        (post("x", "Connection: close\r\n").replace(b'"x"', b'"\xff"'), 400),
        (post("x", "Connection: close\r\n").replace(b'"x"', b"123"), 400),
        (b"GET /v1/chat/completions HTTP/1.0\r\nx-api-key: k\r\n\r\n", 404),
    ],
)
def test_malformed_requests_get_an_error_body_and_a_closed_connection(server, data, status):
    received = raw_request(server, data)
    assert received.startswith(f"HTTP/1.1 {status} ".encode())
    assert (
        b"connection: close" in received
        and "message" in json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    )


def test_lone_surrogates_and_deep_nesting_are_survived(server):
    body = b'{"model": "micro-judge-clean:flaky", "messages": [{"role": "user", "content": "\\ud800"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer k\r\nConnection: close\r\n"
    assert b" 500 " in raw_request(server, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b" 200 " in raw_request(server, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b" 400 " in raw_request(server, head + b"Content-Length: 50000\r\n\r\n" + b"[" * 50_000)


def test_a_body_announced_with_expect_is_asked_for(server):
    whole = post(CHOICE, "Expect: 100-continue\r\nConnection: close\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert b'"content": "b"' in connection.recv(65536)


# ------------------------------------------------------------------------------- life and death


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/stats", timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def wait_until_down(url: str, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_up(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(rlhf_jax.__file__).parents[1])}


def test_stats_close_and_a_taken_port(capfd):
    with JudgeServer() as server:
        assert b" 200 OK" in raw_request(server, post(CHOICE, "Connection: close\r\n"))
        assert server.stats() == {"requests": 1, f"model {CLEAN}": 1, "status 200": 1}
        with pytest.raises(UserError, match="judge server: exited with status 2"):
            JudgeServer(port=int(server.url.rpartition(":")[2]))
        assert "--port" in capfd.readouterr().err
    assert not is_up(server.url)
    server.close()


def test_the_server_dies_with_its_parent_even_by_kill_9(tmp_path):
    # A second child inherits everything the parent has open and outlives it.
    code = (
        "import os, time\nfrom rlhf_jax.microfarm.judges.judge_server import JudgeServer\n"
        "server = JudgeServer()\nheir = os.fork()\n"
        "if heir:\n    print(server.url, heir, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    ) as parent:
        url, heir = parent.stdout.readline().split()
        assert is_up(url)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        try:
            assert wait_until_down(url)
        finally:
            os.kill(int(heir), signal.SIGKILL)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_url_and_serves_until_told_to_stop(end):
    command = [sys.executable, "-m", "rlhf_jax.microfarm.judges.judge_server", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert is_up(url)
            process.send_signal(end)
            assert process.wait(20) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_throughput_over_keep_alive():
    """At least 500 requests per second of the server's own processor time, its start included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with JudgeServer() as server:
        data = b"".join(post(CHOICE.replace("blue", f"blue {k}")) for k in range(1500))
        received = raw_request(server, data + post(CHOICE, "Connection: close\r\n"), timeout=20)
        assert received.count(b"HTTP/1.1 200 OK") == 1501
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 1500 / (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) > 500
