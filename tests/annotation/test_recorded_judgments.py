"""AlpacaEval's recorded judgments, read from the folder that RLHF_JAX_SHARED_DATA names.

The recorded answers go through a local server, the real client, the cache and the shipped judges' parsers; the
preferences that come out are the published ones, row by row.
"""

import gzip
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer
from annotation_helpers import QUICK, pool_of

from rlhf_jax.annotation import (
    annotate_head2head,
    annotate_rankings,
    annotate_samples,
    load_judge,
    read_feedback,
    write_feedback,
)
from rlhf_jax.annotation.judges.prompts import unescape
from rlhf_jax.data.files.tables import read_table

FOLDER = os.environ.get("RLHF_JAX_SHARED_DATA", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="RLHF_JAX_SHARED_DATA does not name the folder of recorded data"
)
DATA = Path(FOLDER)
JUDGES = Path(__file__).parents[2] / "configs" / "judges"
MODELS = [("alpaca-7b", 2.5914505402), ("vicuna-13b", 5.8311031845)]


def recorded(model: str, judge: str) -> list[dict]:
    path = DATA / "alpaca_eval/results" / model / judge / "annotations.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def replay(rows: list[dict], judge: str, answer: object, **changes: object) -> list[dict]:
    """The labels that come of the recorded answers; output_1 is the baseline's, as recorded."""
    by_outputs = {(row["instruction"], row["output_1"], row["output_2"]): row for row in rows}
    by_shown = {key[:1] + key[:0:-1]: row for key, row in by_outputs.items()} | by_outputs

    def respond(body: dict, nth: int) -> dict:
        text = body["messages"][-1]["content"]
        parts = [
            unescape(text.split(f"<{tag}>\n", 1)[1].split(f"\n</{tag}>", 1)[0])
            for tag in ("instruction", "output_m", "output_M")
        ]
        return answer(by_shown[tuple(parts)])

    sides = [
        [{"instruction": row["instruction"], "output": row[f"output_{k}"]} for row in rows] for k in (1, 2)
    ]
    spec = replace(load_judge(JUDGES / f"{judge}.yaml"), base_url="local", api_key_env="", **changes)
    with FakeServer(respond) as server:
        done = annotate_head2head(*sides, pool_of(spec), base_urls={"local": server.url}, retry=QUICK)
    assert done.summary["asked"] > 700
    return done.rows


def _chat(row: dict) -> dict:
    raw = row["raw_completion"]
    usage = {"prompt_tokens": int(raw["total_tokens"]), "completion_tokens": 0}
    choice = {name: raw[name] for name in ("index", "finish_reason", "logprobs")}
    message = {"role": "assistant", "content": raw["text"]}
    return {"id": "r", "model": "recorded", "choices": [choice | {"message": message}], "usage": usage}


@pytest.mark.parametrize(("model", "win_rate"), MODELS)
def test_weighted_judgments_replay_to_the_published_preferences(model: str, win_rate: float) -> None:
    rows = recorded(model, "weighted_alpaca_eval_gpt4_turbo")
    parser = replace(load_judge(JUDGES / "gpt4_weighted.yaml").parser, min_mass=0.0)
    labelled = replay(rows, "gpt4_weighted", _chat, parser=parser)
    for row, label in zip(rows, labelled, strict=True):
        assert label["preference"] == pytest.approx(row["preference"], abs=1e-9)
    mean = math.fsum(row["preference"] - 1 for row in labelled) / len(labelled)
    assert 100 * mean == pytest.approx(win_rate, abs=1e-9)


def test_chain_of_thought_judgments_replay_to_the_published_preferences() -> None:
    rows = [
        row
        for row in recorded("alpaca-7b", "alpaca_eval_cot_gpt4_turbo_fn")
        if isinstance(row["raw_completion"], dict)
    ]
    assert len(rows) > 790

    def answer(row: dict) -> dict:
        message = {"role": "assistant", "content": json.dumps(row["raw_completion"])}
        return {"model": "recorded", "choices": [{"finish_reason": "stop", "message": message}]}

    for row, label in zip(rows, replay(rows, "gpt4_cot", answer), strict=True):
        if label["status"] == "ok":
            assert label["preference"] == row["preference"]
            assert label["explanation"] == row["raw_completion"]["concise_explanation"]
        else:
            assert label["status"] == "parse_error"  # Both given the same rank, say; never a number.
            ranked = row["raw_completion"].get("ordered_models") or []
            assert sorted(str(one.get("rank")) for one in ranked) != ["1", "2"]


@pytest.mark.parametrize("judge", ["alpaca_eval_gpt4", "weighted_alpaca_eval_gpt4_turbo"])
@pytest.mark.parametrize("model", ["alpaca-7b", "vicuna-13b"])
def test_alpaca_eval_annotations_round_trip(tmp_path: Path, model: str, judge: str) -> None:
    path = DATA / "alpaca_eval/results" / model / judge / "annotations.json.gz"
    source, rows = recorded(model, judge), read_feedback(path, "alpaca_eval")
    assert write_feedback(tmp_path / "back.json", rows, "alpaca_eval") == len(source) == 805
    again = read_feedback(tmp_path / "back.json", "alpaca_eval")
    same = (*("instruction", "output_1", "output_2", "generator_1", "generator_2", "dataset", "annotator"),)
    for before, row, after in zip(source, rows, again, strict=True):
        assert all(before[name] == row[name] == after[name] for name in same)
        wanted = 1.5 if before["preference"] == 0 else before["preference"]
        assert row["preference"] == after["preference"] == wanted
        assert after["price_usd"] == before["price_per_example"]


def test_alpaca_farm_examples_can_be_judged() -> None:
    farm = DATA / "alpaca_farm/examples_data"
    pairs = read_table(farm / "outputs_pairs.json")
    spec = replace(load_judge(JUDGES / "micro_clean.yaml"), base_url="local")
    choice = {"finish_reason": "stop", "message": {"content": "a"}}
    with FakeServer(lambda body, nth: {"choices": [choice]}) as server:
        options = {"base_urls": {"local": server.url}, "retry": QUICK}
        sampled = annotate_samples(
            read_table(farm / "multisamples_sft.json"), pool_of(spec), one_pair_per_prompt=False, **options
        )
        assert len(sampled.rows) == sum(
            len(set(row["output"])) for row in read_table(farm / "multisamples_sft.json")
        )
        sides = [read_table(farm / f"outputs_{name}.json") for name in ("baseline", "rlhf")]
        assert len(annotate_head2head(*sides, pool_of(spec), **options).rows) >= 250
    assert {"instruction", "input", "output_1", "output_2"} <= set(pairs[0])


def test_sparse_feedback_samples_can_be_ranked() -> None:
    rows = read_table(DATA / "preferences/sparse_feedback/sample_generation.json")
    rows = [{"instruction": r["instruction"], "input": r["input"], "outputs": r["responses"]} for r in rows]
    spec = replace(load_judge(JUDGES / "sparse_rankings.yaml"), base_url="local", api_key_env="")
    answer = {"choices": [{"finish_reason": "stop", "message": {"content": "Output (a)"}}]}
    with FakeServer(lambda body, nth: answer) as server:
        done = annotate_rankings(rows, pool_of(spec), base_urls={"local": server.url}, retry=QUICK)
    assert len(done.rows) == 200
    # Always the one shown first: the order decides, so it is a tie.
    assert {row["preference"] for row in done.rows} == {1.5} and done.summary["flips"] == pytest.approx(
        1.0, abs=0.1
    )


@pytest.mark.parametrize(
    ("path", "least"),
    [
        ("preferences/llama-factory/dpo_en_demo.json", 250),
        ("preferences/hh-rlhf/harmless-base_test.jsonl.gz", 2000),
    ],
)
@pytest.mark.parametrize("name", ["trl", "trl_conversational", "alpaca_farm"])
def test_real_preferences_round_trip(tmp_path: Path, path: str, least: int, name: str) -> None:
    rows = read_feedback(DATA / path, "trl")
    assert len(rows) >= least
    assert write_feedback(tmp_path / "back", rows, name) == len(rows)
    (tmp_path / "back").rename(tmp_path / ("back.json" if name == "alpaca_farm" else "back.jsonl"))
    again = read_feedback(next(tmp_path.iterdir()), name)
    columns = ("instruction", "input", "output_1", "output_2", "preference")
    assert [[row[c] for c in columns] for row in again] == [[row[c] for c in columns] for row in rows]
