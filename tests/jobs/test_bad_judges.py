"""Judges that answer nonsense are counted; those that do not answer end the run in one line."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny_farm

from rlhf_jax.data.records.records import read_table


class Banana(BaseHTTPRequestHandler):
    """A judge that answers every question with "banana"."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "banana"}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = json.dumps({"id": "1", "model": "m", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def judge_at(url, folder):
    path = folder / "judge.yaml"
    fields = {"name": "j", "provider": "openai", "base_url": url, "model": "m", "api_key_env": ""}
    fields |= {"template": "pairwise_choice", "parser": "choice", "max_tokens": 1}
    path.write_text(
        "".join(
            f'{name}: "{value}"\n' if value == "" else f"{name}: {value}\n" for name, value in fields.items()
        )
    )
    return str(path)


def test_a_judge_that_answers_nonsense_is_counted(front_door, refused, farm, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Banana)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        judge = judge_at(f"http://127.0.0.1:{server.server_address[1]}/v1", tmp_path)
        changes = {"judges": judge, "p_label_flip": 0.0}
        status, printed, errors = front_door(
            *tiny_farm.arguments("annotate", farm, tmp_path / "labels", **changes)
        )
    finally:
        server.shutdown()
    assert status == 0, errors
    rows = read_table(tmp_path / "labels/labels.parquet")
    assert len(rows) == 12 and {row["preference"] for row in rows} == {None}
    (reason,) = {row["status"] for row in rows}
    assert f"12 {reason}" in printed
    line = refused(
        *tiny_farm.arguments(
            "dpo", farm, tmp_path / "dpo", **{"data.train": f"{tmp_path}/labels/labels.parquet"}
        )
    )
    assert re.search(rf"none of its 12 rows can be used; skipped 12: .*{reason}", line), line


@pytest.mark.timeout(120)
def test_a_dead_judge_endpoint_ends_the_run(refused, farm, tmp_path):
    judge = judge_at("http://127.0.0.1:9/v1", tmp_path)
    line = refused(*tiny_farm.arguments("annotate", farm, tmp_path / "labels", judges=judge))
    assert "127.0.0.1:9" in line, line
