"""A tiny HTTP server that speaks both judge protocols, counts what it is asked and misbehaves as told."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RESET = "reset"


def verdict(body: dict) -> str:
    """ "a" or "b" as a fixed function of the whole question."""
    digest = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).digest()
    return "ab"[digest[0] % 2]


def openai_payload(text: str, finish_reason: str = "stop", top_logprobs: dict | None = None) -> dict:
    choice: dict = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text},
    }
    if top_logprobs is not None:
        tops = [{"token": token, "logprob": value} for token, value in top_logprobs.items()]
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "x1", "model": "served-model", "choices": [choice], "usage": usage}


def anthropic_payload(text: str, stop_reason: str = "end_turn", category: str | None = None) -> dict:
    return {
        "id": "m1",
        "type": "message",
        "model": "served-model",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_details": {"type": "refusal", "category": category} if category else None,
        "usage": {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 10},
    }


def answer_plainly(body: dict, nth: int) -> dict:
    """The verdict as one token, in the protocol the request was written in."""
    return anthropic_payload(verdict(body)) if "max_tokens" in body else openai_payload(verdict(body))


class FakeServer:
    """Serves while the block runs. `respond(body, nth)` gives a payload, (status, headers, payload) or RESET.

    nth counts the askings of the same body from 1; a payload may be a dict or raw bytes.
    """

    def __init__(self, respond: Callable = answer_plainly, delay_s: float = 0.0, port: int = 0) -> None:
        self.asked: Counter = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._respond, self._delay_s = respond, delay_s
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeServer":
        # It looks for the end of the block so often: half a second, as is usual, adds up over all tests.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, raw: bytes, headers: dict) -> object:
        body = json.loads(raw)
        with self._lock:
            self.asked[raw] += 1
            nth = self.asked[raw]
            self.bodies.append(body)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self._delay_s)
        with self._lock:
            self._at_once -= 1
        return self._respond(body, nth)

    def _handler(fake) -> type:  # noqa: N805 - the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                fake.paths.append(self.path)
                raw = self.rfile.read(int(self.headers["content-length"]))
                said = fake._answer(raw, {name.lower(): value for name, value in self.headers.items()})
                status, headers, payload = said if isinstance(said, tuple) else (200, {}, said)
                data = b"x" if payload == RESET else payload
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(1000 if payload == RESET else len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
                if payload == RESET:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                """Quiet."""

        return Handler
