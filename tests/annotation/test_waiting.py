"""While nothing comes, the progress line says what is waited for and how long, ever less often."""

import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import judge_spec, make_rows, pool_of

from rlhf_jax.annotation import RetryPolicy, annotate_pairs
from rlhf_jax.annotation.calls import engine
from rlhf_jax.annotation.costs import run_costs
from rlhf_jax.feedback.judging import JudgingLine


@pytest.mark.parametrize("limited", [True, False])
def test_what_is_waited_for_is_told(monkeypatch: pytest.MonkeyPatch, limited: bool) -> None:
    monkeypatch.setattr(run_costs, "_SILENCE_S", 0.02)
    monkeypatch.setattr(engine, "_TELL_S", 0.01)
    told: list[str] = []

    def respond(body: dict, nth: int) -> object:
        busy = 429, {"Retry-After": "0.2"}, {"error": {"message": "slow down"}}
        return busy if limited and nth == 1 else openai_payload("a")

    with FakeServer(respond, delay_s=0.0 if limited else 0.2) as server:
        annotate_pairs(
            make_rows(1), pool_of(judge_spec()), base_urls={"local": server.url}, retry=RetryPolicy(base_s=0.01),
            progress=lambda done, rows, counts: told.append(counts["waiting"]),
        )  # fmt: skip
    words = "429 slow down" if limited else "an answer of"
    assert any(words in line and server.url in line and line.startswith("waiting 0 s") for line in told)
    assert told[-1] == ""


def test_a_long_wait_is_told_ever_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr("rlhf_jax.feedback.judging.time.monotonic", lambda: clock[0])
    line = JudgingLine()
    counts = {"asked": 0, "failed": 0, "cached": 0, "unsettled": 0, "cost_usd": 0.0, "seconds_left": None}
    for second in range(600):
        clock[0] = float(second)
        line(0, 3, counts | {"waiting": f"waiting {second} s for x"})
    lines = capsys.readouterr().out.splitlines()
    assert "waiting 5 s for x" in lines[0] and 10 <= len(lines) <= 16
