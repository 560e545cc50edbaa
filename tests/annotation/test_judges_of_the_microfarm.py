"""The shipped micro judges end to end: real SDKs, the embedded judge server, every form of answer."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from annotation_helpers import QUICK, judge_spec, make_rows, pool_of

from rlhf_jax.annotation import annotate_pairs, load_pool
from rlhf_jax.annotation.parsing.parsers import ParserSpec
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm import human, world
from rlhf_jax.microfarm.judges.judge_answers import HUMAN, answer_question
from rlhf_jax.microfarm.judges.judge_server import JudgeServer

JUDGES = Path(__file__).parents[2] / "configs" / "judges"


@pytest.fixture(scope="module")
def server() -> JudgeServer:
    with JudgeServer() as running:
        yield running


def rows(n: int) -> list[dict]:
    """Pairs with a clear winner: a complete list against an unfinished one of the wrong kind."""
    things = ["apple", "pear", "plum", "fig", "melon", "grape", "cherry", "peach"]
    made = []
    for i in range(n):
        count = 3 + i % 5
        good = "\n".join(f"{k + 1}. {thing}" for k, thing in enumerate(things[:count]))
        bad = "no idea" if i % 2 else "12 12 12 ???"
        outputs = (good, bad) if i % 3 else (bad, good)
        prompt = {"instruction": f"List {count} fruits. ({i})", "input": ""}
        made.append({**prompt, "output_1": outputs[0], "output_2": outputs[1], "good": 1 if i % 3 else 2})
    return made


@pytest.mark.parametrize("index", range(13))
def test_each_judge_of_the_pool_answers_in_its_form(server: JudgeServer, index: int) -> None:
    spec = load_pool(JUDGES / "micro_pool.yaml").judges[index]
    before = server.stats().get(f"model {spec.model}", 0)
    labelled, summary = annotate_pairs(rows(30), pool_of(spec), base_urls={"local": server.url})
    assert server.stats()[f"model {spec.model}"] == before + 30
    assert set(summary["status"]) <= {"ok", "parse_error", "low_mass"}
    # Weak judges babble now and then; none may be unreadable as a rule.
    assert summary["status"]["ok"] >= 26
    assert {row["provider"] for row in labelled} == {spec.provider}
    fractional = [row for row in labelled if row["preference"] not in (None, 1.0, 2.0)]
    assert bool(fractional) == (spec.parser.name == "logprob")


def test_the_clean_judge_sees_what_is_better_in_either_order(server: JudgeServer) -> None:
    labelled, summary = annotate_pairs(rows(60), JUDGES / "micro_clean.yaml", base_urls={"local": server.url})
    right = sum(row["preference"] == row["good"] for row in labelled)
    assert summary["status"] == {"ok": 60}
    assert right >= 54
    for order in ("12", "21"):
        assert {row["preference"] for row in labelled if row["order"] == order} == {1.0, 2.0}


def test_the_human_prefers_by_the_true_utility_in_either_order(server: JudgeServer) -> None:
    rng = random.Random(3)
    tasks = list(itertools.islice(world.rows(seed=11), 400))
    pairs = [row | {f"output_{k}": world.sample_demonstration(row, rng) for k in (1, 2)} for row in tasks]
    pairs = [row for row in pairs if row["output_1"] != row["output_2"]]
    labelled, summary = annotate_pairs(pairs, JUDGES / "micro_human.yaml", base_urls={"local": server.url})
    assert summary["status"] == {"ok": len(pairs)}
    texts = [[row[name] for name in ("instruction", "input", "output_1", "output_2")] for row in labelled]
    sure = np.array([human.probability(*text) for text in texts])
    first = np.array([row["preference"] == 1 for row in labelled])
    # Labels are drawn with these probabilities: the number of first outputs lies within 4 standard deviations.
    assert abs(first.sum() - sure.sum()) < 4 * np.sqrt((sure * (1 - sure)).sum())
    clear = np.abs(sure - 0.5) > 0.35
    assert clear.sum() > 40 and (first == (sure > 0.5))[clear].mean() > 0.85
    assert (
        first == (sure > 0.5)
    ).mean() < 0.9  # With a human's noise, which no judge of the pool has so small.
    # And it is not the human whom reports hold labels against, or these would be right by construction.
    other = np.array([human.prefer(*text, seed=0) == 1 for text in texts])
    assert 0.5 < (first == other).mean() < 0.85


def test_the_human_does_not_rate() -> None:
    answer = answer_question(
        HUMAN,
        "<instruction>\nList 2 fruits.\n</instruction>\n<output>\nfig, plum\n</output>\n"
        "Answer with one integer from 1 to 7.",
    )
    assert not answer.verdicts and "better" in answer.text


def test_labels_repeat_without_a_cache(server: JudgeServer) -> None:
    runs = [
        annotate_pairs(
            rows(40), JUDGES / "micro_pool.yaml", base_urls={"local": server.url}, max_concurrency=c
        ).rows
        for c in (1, 16)
    ]
    labels = [[(row["label_id"], row["preference"], row["raw_text"]) for row in run] for run in runs]
    assert labels[0] == labels[1]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_faults_on_demand(server: JudgeServer, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def statuses(fault: str, n: int = 2) -> dict:
        judge = judge_spec(
            provider=provider,
            model=f"micro-judge-clean:{fault}",
            template="pairwise_sentence",
            parser=ParserSpec("sentence"),
            max_tokens=60,
        )
        return annotate_pairs(
            make_rows(n), pool_of(judge), base_urls={"local": server.url}, retry=QUICK
        ).summary["status"]

    assert statuses("refuse") == {"refused": 2}
    assert statuses("nonsense") == {"parse_error": 2}
    assert statuses("flaky") == {"ok": 2}
    assert statuses("ratelimit") == {"ok": 2}
    assert statuses("drop") == {"api_error": 2}
    assert statuses("error500") == {"api_error": 2}
    with pytest.raises(UserError, match="404"):
        statuses("no-such-fault")
    monkeypatch.setenv("JUDGE_KEY", "bad-key")
    with pytest.raises(UserError, match=r"401.*set a valid one") as caught:
        judge = judge_spec(provider=provider, model="micro-judge-clean", api_key_env="JUDGE_KEY")
        annotate_pairs(make_rows(2), pool_of(judge), base_urls={"local": server.url})
    assert "bad-key" not in str(caught.value)
