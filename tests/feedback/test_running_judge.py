"""A judge that is asked during a run: what it keeps, what it costs, and what happens when it does not answer."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "annotation"))
from annotation_fake_server import FakeServer, openai_payload

from rlhf_jax.annotation.parsing.contracts import RATING
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.asked_rows import questions
from rlhf_jax.feedback.running_judge import RunningJudge

YAML = """
name: rater
kind: rating
provider: openai
base_url: {url}/v1
api_key_env: ""
model: test-model
template: rating_scale
parser: {{name: rating, low: 1, high: 7}}
max_tokens: 10
sampling: {{temperature: 0}}
price: {{input: 1000, output: 10000}}
"""
ASKING = {
    "max_usd": 0.0,
    "max_concurrency": 4,
    "cache": "",
    "requests_per_minute": 0.0,
    "tokens_per_minute": 0.0,
    "timeout_s": 10.0,
}
PROMPTS = [{"instruction": f"Say {i}.", "input": ""} for i in range(4)]
# 100 tokens in at $1000 a million, 10 out at $10000 (see the fake server).
PRICE = 0.2


def length(body, nth):
    """Rates a response by its length, as the fixed place of the response in the question."""
    text = body["messages"][-1]["content"]
    said = text.split("<output>\n")[1].split("\n</output>")[0]
    return openai_payload("none" if said == "odd" else str(len(said)))


def judge(folder, url, **asking):
    path = Path(folder) / "judge.yaml"
    path.write_text(YAML.format(url=url))
    return RunningJudge(str(path), ASKING | asking, str(folder), group="reward", seed=0)


def rated(opened, texts):
    return opened.ask(questions(RATING, PROMPTS[: len(texts)], texts), len(texts))


def test_answers_are_kept_and_cost_once(tmp_path):
    with FakeServer(length) as server:
        opened = judge(tmp_path, server.url)
        assert opened.priced
        first = rated(opened, ["a", "bb", "odd", "a"])
        assert first.scores == [1.0, 2.0, 0.0, 1.0] and first.readable == [True, True, False, True]
        assert first.usd == pytest.approx([PRICE] * 4) and opened.spent_usd == pytest.approx(4 * PRICE)
        assert len(server.bodies) == 4
        # As after kill -9: another process, the same folder.
        again = judge(tmp_path, server.url)
        assert rated(again, ["a", "bb", "odd", "a"]) == first
        assert again.spent_usd == 0.0 and len(server.bodies) == 4


def test_the_money_stops_it_and_more_goes_on(tmp_path):
    with FakeServer(length) as server:
        with pytest.raises(
            UserError, match=r"^reward\.max_usd: \$.* of \$1.2 are spent and .*raise max_usd"
        ) as told:
            # A request is held at a token per byte, about a dollar, until its answer tells less.
            rated(judge(tmp_path, server.url, max_usd=1.2, max_concurrency=1), ["a", "bb", "ccc", "dddd"])
        assert "\n" not in str(told.value)
        paid = len(server.bodies)
        assert 0 < paid < 4
        found = rated(judge(tmp_path, server.url), ["a", "bb", "ccc", "dddd"])
        assert found.scores == [1.0, 2.0, 3.0, 4.0] and len(server.bodies) == 4


def test_spent_money_counts_from_one_asking_to_the_next(tmp_path):
    with FakeServer(length) as server:
        opened = judge(tmp_path, server.url, max_usd=2.0)
        opened.spent_usd = 1.9
        with pytest.raises(UserError, match=r"^reward\.max_usd: \$1.9000 of \$2"):
            rated(opened, ["a"])
        assert not server.bodies


def test_a_question_without_an_answer_stays_without_one(tmp_path, capsys):
    def refuses_b(body, nth):
        text = body["messages"][-1]["content"]
        return (400, {}, {"error": {"message": "too rude"}}) if "bb" in text else length(body, nth)

    with FakeServer(refuses_b) as server:
        first = rated(judge(tmp_path, server.url), ["a", "bb", "ccc"])
        assert first.readable == [True, False, True]
        assert "1 questions brought no answer" in capsys.readouterr().out
    lines = (tmp_path / "answers.unanswered.jsonl").read_text().splitlines()
    assert [json.loads(x)["status"] for x in lines] == ["api_error"]
    # Now it would be answered; but the iteration that is done again has to learn from the same scores.
    with FakeServer(length) as server:
        (tmp_path / "answers.unanswered.jsonl").open("a").write('{"question": "hal')
        again = judge(tmp_path, server.url)
        found = again.ask(questions(RATING, PROMPTS[1:2], ["bb"]), 1)
        assert found.readable == [False] and not server.bodies


def test_the_price_is_estimated_by_past_answers_and_nobody_is_asked(tmp_path):
    with FakeServer(length) as server:
        opened = judge(tmp_path, server.url)
        asked = questions(RATING, PROMPTS, ["p", "q", "r", "s"])
        said = opened.estimate(asked, 10)
        assert (
            "40 calls" in said and "cost unknown" in said and "at most $" in said and "by 0 answers" in said
        )
        assert not server.bodies
        rated(opened, ["a", "bb"])
        said = opened.estimate(asked, 10)
        assert "40 calls" in said and "by 2 answers" in said
        # 40 questions of about 100 tokens, 10 tokens each out.
        assert float(said.split("$")[1].split()[0]) == pytest.approx(40 * PRICE, rel=0.1)


def test_the_embedded_judges_need_no_key(tmp_path):
    opened = RunningJudge("configs/judges/micro_rating.yaml", ASKING, str(tmp_path), group="reward", seed=0)
    found = rated(opened, ["A short answer.", "", "Yes.", "No!"])
    assert all(found.readable) and all(1 <= x <= 7 for x in found.scores) and found.usd == [0.0] * 4


def test_a_store_of_objects_cannot_hold_the_answers():
    with pytest.raises(UserError, match=r"^reward\.cache: gs://b/run is no folder"):
        RunningJudge("configs/judges/micro_rating.yaml", ASKING, "gs://b/run", group="reward", seed=0)
