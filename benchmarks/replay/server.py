"""A local server that answers with recorded judgments, in OpenAI's chat protocol.

It reads the question as any endpoint must: from the messages. The texts between the tags are looked up among
the recorded rows, whichever of the two outputs is shown first.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from replay.recorded import Recorded, answer_of
from rlhf_jax.annotation.judges.prompts import sendable, unescape

_INSTRUCTION = re.compile(r"<(instruction)>\n(.*)\n</instruction>", re.DOTALL)
_OUTPUTS = re.compile(r"<output_(\w+)>\n(.*?)\n</output_\1>", re.DOTALL)  # the one shown first, the other


class ReplayServer:
    """Serves while the block runs. `asked` counts requests; `url` is the address without /v1."""

    def __init__(self, recorded: Recorded) -> None:
        self.asked = 0
        self._recorded, self._lock = recorded, threading.Lock()
        self._rows: dict[tuple[str, str, str], tuple[dict, bool]] = {}
        for row in recorded.rows:
            one, two, three = (sendable(row[name]) for name in ("instruction", "output_1", "output_2"))
            self._rows.setdefault((one, two, three), (row, False))
            self._rows.setdefault((one, three, two), (row, True))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ReplayServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: dict) -> tuple[int, dict]:
        """Status and payload for a request body; 404 for a question that was never recorded."""
        content = body["messages"][-1]["content"]
        texts = [text for _, text in (*_INSTRUCTION.findall(content), *_OUTPUTS.findall(content))]
        if len(texts) != 3:
            return 400, _error("the last message does not hold an instruction and two outputs in tags")
        found = self._rows.get(tuple(map(unescape, texts)))
        if found is None:
            return 422, _error("no such pair was recorded")
        with self._lock:
            self.asked += 1
        return 200, _payload(body["model"], answer_of(self._recorded, *found))

    def _handler(replay) -> type:  # noqa: N805 - the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                status, payload = replay.answer(
                    json.loads(self.rfile.read(int(self.headers["content-length"])))
                )
                data = json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        return Handler


def _error(message: str) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def _payload(model: str, answer: dict) -> dict:
    message = {"role": "assistant", "content": answer["text"]}
    choice: dict = {"index": 0, "finish_reason": "stop", "message": message}
    if "logprobs" in answer:
        tops = [{"token": token, "logprob": value} for token, value in answer["logprobs"].items()]
        first = max(tops, key=lambda top: top["logprob"])
        choice |= {"finish_reason": "length", "logprobs": {"content": [{**first, "top_logprobs": tops}]}}
    tokens = answer["tokens"]
    usage = {"prompt_tokens": max(tokens - 1, 0), "completion_tokens": min(tokens, 1), "total_tokens": tokens}
    return {
        "id": "replayed",
        "object": "chat.completion",
        "model": model,
        "choices": [choice],
        "usage": usage,
    }
