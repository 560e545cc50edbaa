"""A server that speaks both providers' batch protocols; each request's fate is told by a function."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from annotation_fake_server import anthropic_payload, openai_payload, verdict

EXPIRED, ERRORED, INVALID, MISSING = "expired", "errored", "invalid", "missing"


def succeed(key: str, body: dict, nth: int) -> object:
    """Every request is answered; a payload or one of the words above. nth counts the sendings of a request."""
    anthropic = "max_tokens" in body
    return anthropic_payload(verdict(body)) if anthropic else openai_payload(verdict(body))


class BatchServer:
    """Serves while the block runs.

    fate: what becomes of a request. looks: how often a batch is looked at before it has ended. refuse(n) is
    asked about the n-th batch (from 1): "" or the code of the error it fails with as a whole.
    drop_replies: so many replies to the making of batches are lost after the batch was made.
    """

    def __init__(self, fate: Callable = succeed, looks: int = 1, refuse: Callable = lambda n: "") -> None:
        self.fate, self.looks, self.refuse = fate, looks, refuse
        self.sent: Counter = Counter()
        self.batches: dict[str, dict] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.headers: list[str] = []
        self.drop_replies = 0
        self.stuck = False
        self.flaky: set[str] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "BatchServer":
        # It looks for the end of the block so often: half a second, as is usual, adds up over all tests.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def made(self) -> list[dict]:
        return list(self.batches.values())

    def answer(self, method: str, path: str, raw: bytes) -> object:
        """A payload, (status, payload), or None for a reply that is lost."""
        self.calls.append((method, path))
        path = path.split("?")[0]
        if path in self.flaky:
            self.flaky.discard(path)
            return 503, {"error": {"message": "try later"}}
        if path == "/v1/files":
            return self._upload(raw)
        if match := re.fullmatch(r"/v1/files/(\S+)/content", path):
            return self.files[match[1]]
        match = re.fullmatch(r"/v1/(messages/)?batches(?:/(\w+))?(/cancel|/results)?", path)
        anthropic, name, what = bool(match[1]), match[2], match[3]
        if name is None and method == "POST":
            return self._make(json.loads(raw), anthropic)
        if name is None:
            made = [self._shown(batch) for batch in reversed(self.made()) if batch["anthropic"] == anthropic]
            return {"object": "list", "data": made, "has_more": False, "first_id": None, "last_id": None}
        if name not in self.batches:
            return 404, {"error": {"message": f"No batch found with id '{name}'."}}
        batch = self.batches[name]
        if what == "/cancel":
            batch["cancelled"], batch["looks"] = True, 0
        elif what == "/results":
            return batch["results"]
        elif not self.stuck:
            batch["looks"] -= 1
        if batch["looks"] < 0 and not batch["ended"]:
            self._end(batch)
        return self._shown(batch)

    def _upload(self, raw: bytes) -> dict:
        body = raw.split(b"\r\n\r\n", 2)
        data = next(part for part in body if part.lstrip().startswith(b'{"custom_id"')).rsplit(b"\r\n--", 1)[
            0
        ]
        data = data.split(b"\r\n--")[0]
        name = f"file_{len(self.files)}"
        self.files[name] = data
        return {"id": name, "object": "file", "bytes": len(data), "created_at": 1, "filename": "x",
                "purpose": "batch", "status": "processed"}  # fmt: skip

    def _make(self, given: dict, anthropic: bool) -> object:
        if anthropic:
            requests = [(item["custom_id"], item["params"]) for item in given["requests"]]
        else:
            lines = [json.loads(line) for line in self.files[given["input_file_id"]].split(b"\n") if line]
            assert {(item["method"], item["url"]) for item in lines} == {("POST", given["endpoint"])}
            requests = [(item["custom_id"], item["body"]) for item in lines]
        assert len({body["model"] for _, body in requests}) == 1 or anthropic, "one model per batch"
        batch = {
            "id": f"b{len(self.batches)}",
            "anthropic": anthropic,
            "requests": requests,
            "metadata": given.get("metadata"),
            "created": time.time(),
            "looks": self.looks,
            "ended": False,
            "cancelled": False,
            "failed": self.refuse(len(self.batches) + 1),
        }
        with self._lock:
            self.batches[batch["id"]] = batch
            if not batch["failed"]:
                self.sent.update(key for key, _ in requests)
        if self.drop_replies:
            self.drop_replies -= 1
            return None
        return self._shown(batch)

    def _end(self, batch: dict) -> None:
        batch["ended"] = True
        if batch["failed"]:
            return
        half = len(batch["requests"]) // 2
        good, bad = [], []
        for i, (key, body) in enumerate(reversed(batch["requests"])):
            fate = MISSING if batch["cancelled"] and i < half else self.fate(key, body, self.sent[key])
            batch.setdefault("fates", Counter())[fate if isinstance(fate, str) else "ok"] += 1
            line = self._anthropic_line(key, fate) if batch["anthropic"] else self._openai_line(key, fate)
            if line is not None:
                (good if isinstance(fate, dict) else bad).append(json.dumps(line, ensure_ascii=False))
        batch["results"] = "\n".join(good + bad).encode() + b"\n"
        batch["files"] = {}
        for kind, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                name = f"file_{batch['id']}_{kind}"
                self.files[name] = "\n".join(lines).encode()
                batch["files"][kind] = name

    def _openai_line(self, key: str, fate: object) -> dict | None:
        if fate == MISSING:
            return None
        if isinstance(fate, dict):
            return {
                "id": "r",
                "custom_id": key,
                "response": {"status_code": 200, "body": fate},
                "error": None,
            }
        if fate == EXPIRED:
            error = {"code": "batch_expired", "message": "This request could not be executed in time."}
            return {"id": "r", "custom_id": key, "response": None, "error": error}
        status = {ERRORED: 500, INVALID: 400}[fate]
        body = {"error": {"message": f"it was {fate}", "code": fate}}
        return {"id": "r", "custom_id": key, "response": {"status_code": status, "body": body}, "error": None}

    def _anthropic_line(self, key: str, fate: object) -> dict | None:
        if isinstance(fate, dict):
            return {"custom_id": key, "result": {"type": "succeeded", "message": fate}}
        if fate == MISSING:
            return {"custom_id": key, "result": {"type": "canceled"}}
        if fate == EXPIRED:
            return {"custom_id": key, "result": {"type": "expired"}}
        kind = {ERRORED: "api_error", INVALID: "invalid_request_error"}[fate]
        error = {"type": "error", "error": {"type": kind, "message": f"it was {fate}"}, "request_id": "x"}
        return {"custom_id": key, "result": {"type": "errored", "error": error}}

    def _shown(self, batch: dict) -> dict:
        fates, total = batch.get("fates", {}), len(batch["requests"])
        if batch["anthropic"]:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch["created"]))
            counts = {
                "succeeded": fates.get("ok", 0),
                "errored": fates.get(ERRORED, 0) + fates.get(INVALID, 0),
            }
            counts |= {"canceled": fates.get(MISSING, 0), "expired": fates.get(EXPIRED, 0)}
            counts["processing"] = total - sum(counts.values())
            ended = "ended" if batch["ended"] else "canceling" if batch["cancelled"] else "in_progress"
            results = f"{self.url}/v1/messages/batches/{batch['id']}/results" if batch["ended"] else None
            return {"id": batch["id"], "type": "message_batch", "processing_status": ended, "created_at": moment,
                    "expires_at": moment, "request_counts": counts,
                    "results_url": results}  # fmt: skip
        status = "in_progress" if not batch["ended"] else "cancelled" if batch["cancelled"] else "completed"
        shown = {"id": batch["id"], "object": "batch", "endpoint": "/v1/chat/completions", "status": status,
                 "completion_window": "24h", "created_at": int(batch["created"]), "input_file_id": "x",
                 "metadata": batch["metadata"], **batch.get("files", {}),
                 "request_counts": {"total": total, "completed": fates.get("ok", 0),
                                    "failed": total - fates.get("ok", 0) if batch["ended"] else 0}}  # fmt: skip
        if batch["failed"]:
            error = {"code": batch["failed"], "message": "Enqueued token limit reached", "line": None}
            shown |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
        return shown

    def _handler(fake) -> type:  # noqa: N805 - the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve("GET")

            def do_POST(self) -> None:
                self._serve("POST")

            def _serve(self, method: str) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                fake.headers.append(str(self.headers))
                said = fake.answer(method, self.path, raw)
                if said is None:
                    self.close_connection = True
                    return
                status, payload = said if isinstance(said, tuple) else (200, said)
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        return Handler
