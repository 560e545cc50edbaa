"""Asking judges from the annotate job: dry run, answers in and out, Ctrl-C, cancelling, and the progress line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "annotation"))
from annotation_batch_server import BatchServer
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import ENVIRONMENT, make_rows

from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.labels.labels_file import read_labels
from rlhf_jax.errors import StoppedError, UserError
from rlhf_jax.feedback.judging import JudgingLine, describe_judges
from rlhf_jax.jobs import annotate
from rlhf_jax.jobs.evaluate import leaderboard_job
from rlhf_jax.settings import load_page

ROOT = Path(__file__).parents[2]


def judge_file(folder: Path, url: str, **fields: object) -> str:
    judge = {
        "name": "tester",
        "provider": "openai",
        "base_url": f"{url}/v1",
        "model": "m",
        "template": "pairwise_choice",
        "parser": "choice",
        "max_tokens": 5,
        "price": {"input": 10.0, "output": 50.0},
    }
    (folder / "judge.yaml").write_text(yaml.safe_dump(judge | fields))
    return str(folder / "judge.yaml")


def pairs_file(folder: Path, n: int) -> str:
    (folder / "pairs.json").write_text(json.dumps(make_rows(n)))
    return str(folder / "pairs.json")


def run(folder: Path, server: object, n: int = 12, **settings: object) -> None:
    page = load_page(str(ROOT / "configs/annotate.py"))
    page.update({"samples": "", "pairs": pairs_file(folder, n), "p_label_flip": 0.0})
    page.update({"judges": judge_file(folder, server.url), **settings})
    annotate.run(page, str(folder / "work"))


def test_a_dry_run_asks_nobody_and_a_run_says_what_it_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with FakeServer() as server:
        run(tmp_path, server, dry_run=True)
        assert server.bodies == [] and not (tmp_path / "work/labels.parquet").exists()
        said = capsys.readouterr().out
        assert re.search(
            r"dry run: 0 answers are cached; to ask: 12 calls · [\d,]+ tokens in, unknown out", said
        )
        assert "cost unknown · at most $0." in said and "time unknown" in said
        run(tmp_path, server)
        assert "12 ok; cost $0.0180" in capsys.readouterr().out
        run(tmp_path, server, n=20, dry_run=True)
    said = capsys.readouterr().out
    assert "12 answers are cached; to ask: 8 calls" in said and re.search(
        r"40 out · \$0\.\d+ · at most", said
    )


def test_answers_travel_by_file_and_replay_needs_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with FakeServer() as server:
        run(tmp_path / "a", server, export_answers=str(tmp_path / "answers.parquet"))
    labels = read_labels(tmp_path / "a/work/labels.parquet").rows
    run(tmp_path / "b", server, transport="replay", import_answers=str(tmp_path / "answers.parquet"))
    assert read_labels(tmp_path / "b/work/labels.parquet").rows == labels
    assert "12 answers of" in capsys.readouterr().out


def test_ctrl_c_keeps_the_answers_and_says_how_to_go_on(tmp_path: Path) -> None:
    with FakeServer(delay_s=0.05) as server:
        flags = {
            "samples": "",
            "pairs": pairs_file(tmp_path, 300),
            "p_label_flip": 0,
            "judges": judge_file(tmp_path, server.url),
            "max_concurrency": 4,
        }
        arguments = ["--config=configs/annotate.py", f"--workdir={tmp_path}/work"]
        arguments += [f"--config.{name}={value}" for name, value in flags.items()]
        command = [sys.executable, "-m", "rlhf_jax.main", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **pipes)
        deadline = time.monotonic() + 60
        while len(server.bodies) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert err == "" and "Traceback" not in out
        kept = int(re.search(r"stopped: (\d+) answers are kept in .*answers.sqlite", out)[1])
        command = out.strip().splitlines()[-1].strip()
        assert command == "python -m rlhf_jax.main " + " ".join(arguments)
        with AnswerCache(tmp_path / "work/answers.sqlite") as cache:
            assert cache.count() == kept >= 10
        done = subprocess.run([sys.executable, *command.split()[1:]], env=ENVIRONMENT, cwd=ROOT, timeout=120)
        assert done.returncode == 0
    # What was in flight when it stopped is asked again, and nothing else.
    assert len(read_labels(tmp_path / "work/labels.parquet").rows) == 300
    assert len(server.bodies) <= 300 + 4


def test_batches_are_cancelled_and_what_they_finished_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchServer() as server:
        server.stuck = True
        monkeypatch.setattr(JudgingLine, "__call__", _stop_when_sent)
        with pytest.raises(StoppedError) as stopped:
            run(tmp_path, server, transport="batch")
        monkeypatch.undo()
        assert "answers are kept in" in str(stopped.value)
        run(tmp_path, server, transport="cancel")
        said = capsys.readouterr().out
        assert "cancelled batch b0: 12 requests to m" in said and "1 batches cancelled" in said
        server.stuck = False
        run(tmp_path, server, transport="batch")
        rows = read_labels(tmp_path / "work/labels.parquet").rows
        assert [row["status"] for row in rows].count("ok") == 6 and len(server.made()) == 1
        assert {row["status_detail"] for row in rows} == {None, "the batch was cancelled"}
        # Nothing is under way any more.
        run(tmp_path, server, transport="cancel")
        assert "0 batches cancelled" in capsys.readouterr().out


def _stop_when_sent(self: JudgingLine, done: int, total: int, counters: dict) -> None:
    if counters["unsettled"]:
        raise KeyboardInterrupt


def test_the_progress_line_tells_all_there_is_to_know(capsys: pytest.CaptureFixture) -> None:
    line = JudgingLine(every_s=0.0)
    counters = {"asked": 0, "failed": 0, "cached": 0, "unsettled": 0, "cost_usd": 0.0, "seconds_left": None}
    line(10, 100, counters)
    time.sleep(0.1)
    line(30, 100, counters | {"asked": 20, "failed": 2, "cached": 7, "cost_usd": 0.25, "seconds_left": 9.6})
    line(30, 100, counters | {"unsettled": 70, "cost_usd": None, "seconds_left": 5.0})
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"  judged 30/100 rows · (1\d\d|200) rows/s · 18 answered · 7 cached · 2 failed · \$0.25 · 10 s left",
        said[1],
    )
    assert said[2].endswith("0 answered · 70 in batches · cost unknown")


def test_the_last_word_tells_failed_attempts() -> None:
    summary = {"asked": 9, "cached": 3, "cost_usd": 1.0, "cost_failed_usd": 0.125, "unpriced_attempts": 2}
    assert describe_judges(summary, [("ok", 12)]) == (
        "9 asked, 3 from the cache; 12 ok; cost $1.0000 ($0.1250 of it for attempts that failed) and that of "
        "2 failed attempts, which nobody told"
    )


def test_money_stops_a_job_in_one_line(tmp_path: Path) -> None:
    with FakeServer(lambda body, nth: openai_payload("a")) as server:
        with pytest.raises(UserError, match=r"^max_usd: \$0.\d+ of \$0.015 are spent"):
            run(tmp_path, server, max_usd=0.015)
        run(tmp_path, server)
    assert len(server.bodies) == 12


def test_evaluate_tells_the_cost_of_all_methods_before_it_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("base", "one", "two"):
        rows = [{"instruction": f"Say {i}.", "output": f"{name} {i}", "generator": name} for i in range(9)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    page = load_page(str(ROOT / "configs/evaluate.py") + ":outputs")
    page.update({"outputs": f"one={tmp_path}/one.json,two={tmp_path}/two.json", "title": "t"})
    page.update({"baseline": f"{tmp_path}/base.json", "dry_run": True})
    with FakeServer() as server:
        page.judges = judge_file(tmp_path, server.url)
        leaderboard_job.run(page, str(tmp_path / "work"))
        said = capsys.readouterr().out
        assert server.bodies == [] and said.count("to ask: 9 calls") == 2
        # The money is for all methods together: the second one finds it gone.
        page.update({"dry_run": False, "max_usd": 0.026, "max_concurrency": 1})
        with pytest.raises(UserError, match=r"max_usd: \$0.01[4-9]\d* of \$0.026 are spent"):
            leaderboard_job.run(page, str(tmp_path / "work"))
        assert 9 < len(server.bodies) < 18
