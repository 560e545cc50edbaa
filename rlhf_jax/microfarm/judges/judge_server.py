"""The local judge server: HTTP/1.1 on 127.0.0.1, in a process of its own.

    python -m rlhf_jax.microfarm.judges.judge_server --port 8000     serve until Ctrl-C
    with JudgeServer() as server: ... server.url ...          serve while the block runs

A small protocol class on asyncio, because the standard library's threaded server spends more time per request
than the judges do. asyncio turns Nagle's algorithm off (TCP_NODELAY) on every connection it accepts. No
streaming and no chunked request bodies: neither SDK sends chunks for these calls.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import rlhf_jax
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm.judges.judge_service import ServedReply, Service

HOST = "127.0.0.1"
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
PARENT_CHECK_SECONDS = 0.25

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 411: "Length Required"}
_REASONS |= {
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Headers Too Large",
    500: "Server Error",
}


class JudgeServer:
    """The judge server as a child process. It dies with its parent, however the parent dies.

    port: 0 picks a free one. `url` is the base for Anthropic's SDK; OpenAI's wants `url + "/v1"`.
    Raises UserError when the child cannot serve, with what it said.
    """

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "rlhf_jax.microfarm.judges.judge_server", "--port", str(port)]
        # The child must find the package wherever it is started from, installed or not.
        root = str(Path(rlhf_jax.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # A session of its own: Ctrl-C reaches the parent alone, which may still need answers to finish.
        self._process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
            text=True,
        )
        assert self._process.stdout is not None
        # The child prints its URL once it listens, so this line also waits until requests are served.
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            self._process.stdout.close()
            raise UserError(f"judge server: exited with status {self._process.wait()}; its message is above")

    def stats(self) -> dict[str, int]:
        """Counts since the start: "requests", "model NAME", "status CODE"."""
        # A proxy from the environment (http_proxy) must not be asked for a local address.
        no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with no_proxy.open(f"{self.url}/stats", timeout=10) as response:
            return json.load(response)

    def close(self) -> None:
        """Stop the child; safe to call twice."""
        # The server has no state to save, so nothing is lost by not asking it to stop.
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "JudgeServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Connection(asyncio.Protocol):
    """One client connection: requests are answered one after the other, in the order they came."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        # A delayed reply is due; requests behind it must wait, as HTTP answers in order.
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._answer_what_is_complete()

    def _answer_what_is_complete(self) -> None:
        while self.transport is not None and not self.transport.is_closing() and not self.is_waiting:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self.buffer) > MAX_HEAD_BYTES:
                    self._refuse(431, "the request's headers are too large")
                return
            head = _parse_head(bytes(self.buffer[:end]))
            if head is None:
                return self._refuse(400, "this is not an HTTP/1.1 request")
            method, path, headers = head
            # Bodies are read by their length alone. Neither SDK sends chunks, so a parser for them is spared.
            if "transfer-encoding" in headers:
                return self._refuse(411, "send a Content-Length, not chunks")
            length = headers.get("content-length", "0")
            # isdigit() alone accepts superscripts, for which int() fails.
            if not length.isascii() or not length.isdigit():
                return self._refuse(400, f"Content-Length is {length!r}")
            if int(length) > MAX_BODY_BYTES:
                return self._refuse(413, f"the body is over {MAX_BODY_BYTES} bytes")
            start = end + 4
            if len(self.buffer) < start + int(length):
                # curl sends a large body only after it has been told to go on.
                if headers.get("expect", "").lower() == "100-continue" and len(self.buffer) == start:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self.buffer[start : start + int(length)])
            del self.buffer[: start + int(length)]
            keep = headers.get("connection", "").lower() != "close" and "http/1.0" not in headers
            self._reply(self.service.handle(method, path, headers, body), keep)

    def _reply(self, reply: ServedReply, keep: bool) -> None:
        if reply.drop:
            assert self.transport is not None
            self.transport.abort()
        elif reply.delay:
            self.is_waiting = True
            asyncio.get_running_loop().call_later(reply.delay, self._send_late, reply, keep)
        else:
            self._send(reply, keep)

    def _send_late(self, reply: ServedReply, keep: bool) -> None:
        self.is_waiting = False
        # The transport is gone when the client gave up waiting.
        if self.transport is not None:
            self._send(reply, keep)
            self._answer_what_is_complete()

    def _send(self, reply: ServedReply, keep: bool) -> None:
        assert self.transport is not None
        # json.dumps escapes all but ASCII, lone surrogates included, so encode() cannot fail.
        body = json.dumps(reply.body).encode()
        lines = [
            f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Error')}",
            "content-type: application/json",
        ]
        lines += [f"content-length: {len(body)}", f"connection: {'keep-alive' if keep else 'close'}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
        if not keep:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """For what cannot be routed: say why and close, since where the next request starts is unknown."""
        self._send(
            ServedReply(status, {"error": {"message": message, "type": "invalid_request_error"}}), keep=False
        )


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]] | None:
    """(method, path, headers in lower case) or None when malformed. HTTP/1.0 leaves a mark in headers."""
    first, *lines = head.decode("latin-1").lstrip("\r\n").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.strip().lower()] = value.strip()
    if parts[2] == "HTTP/1.0":
        headers["http/1.0"] = ""
    return parts[0], parts[1], headers


async def _serve(port: int, parent: int | None) -> None:
    service, loop = Service(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(service), HOST, port, backlog=1024)
    print(f"http://{HOST}:{server.sockets[0].getsockname()[1]}", flush=True)
    # Asking who the parent is works for every death of it, kill -9 included, whatever file handles or
    # processes it leaves behind; a pipe would stay open in its other children.
    while parent is None or os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """Command line: serve until Ctrl-C. Status 2 and one line when the port cannot be had."""
    parser = argparse.ArgumentParser(
        prog="judge_server", description="Serve the microfarm's judges on 127.0.0.1."
    )
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one (default 8000)")
    parser.add_argument(
        "--parent", type=int, help="process id of the parent to die with (default: serve until Ctrl-C)"
    )
    options = parser.parse_args(argv)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port: {options.port} is not a port; choose 0 to 65535")
    # SIGINT too: a process that a shell started in the background would ignore it.
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    try:
        asyncio.run(_serve(options.port, options.parent))
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(
            f"error: --port: cannot serve on {options.port} ({error.strerror}); try --port 0", file=sys.stderr
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
