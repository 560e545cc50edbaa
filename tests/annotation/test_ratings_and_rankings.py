"""Ratings, rankings and completions against a local server, and what trainers get of them."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import QUICK, judge_spec, pool_of

from rlhf_jax.annotation import (
    annotate_completions,
    annotate_pairs,
    annotate_rankings,
    annotate_ratings,
    load_judge,
    load_pool,
    model_outputs,
    pairs_of,
    read_labels,
    scored_of,
    write_labels,
)
from rlhf_jax.annotation.judges.specs import JudgeSpec
from rlhf_jax.data.records.records import read_instructions, read_pairs
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm.judges.judge_server import JudgeServer

JUDGES = Path(__file__).parents[2] / "configs" / "judges"


def shipped(name: str, **changes: object) -> JudgeSpec:
    """A shipped judge that asks the local server."""
    return replace(load_judge(JUDGES / f"{name}.yaml"), base_url="local", api_key_env="", **changes)


def rows(n: int = 6, k: int = 3) -> list[dict]:
    return [{"instruction": f"Say {i}.", "outputs": [f"<{i}-{j}>" for j in range(k)]} for i in range(n)]


def shown(body: dict) -> list[str]:
    return re.findall(r"<(?:output|output_\w+)>\n(.*)\n</", body["messages"][-1]["content"])


def length_of(output: str) -> int:
    """1 to 5, by the output alone."""
    return 1 + sum(map(ord, output)) % 5


def options(server: FakeServer) -> dict:
    return {"base_urls": {"local": server.url}, "retry": QUICK}


def test_ratings_are_one_row_per_output_and_cost_one_question_each() -> None:
    given = rows() + rows()
    given[0] |= {"generators": ["x", "y", "z"]}
    with FakeServer(lambda body, nth: openai_payload(f"{length_of(shown(body)[0])}\nBecause.")) as server:
        done = annotate_ratings(given, pool_of(shipped("sparse_ratings")), **options(server))
        assert len(server.bodies) == 18
    assert len(done.rows) == 36 and done.summary["status"] == {"ok": 36}
    for row in done.rows:
        assert row["kind"] == "rating" and row["rating"] == length_of(row["output"])
        assert row["annotator"] == "sparse_ratings" and row["raw_text"].endswith("Because.")
    assert [row["sample_id"] for row in done.rows[:4]] == [0, 1, 2, 0]
    assert [row.get("generator") for row in done.rows[:4]] == ["x", "y", "z", None]
    assert done.summary["mean_rating"] == pytest.approx(sum(r["rating"] for r in done.rows) / 36)


def test_criteria_are_kept_and_bad_ratings_are_none() -> None:
    def respond(body: dict, nth: int) -> dict:
        safety = 9 if shown(body)[0].endswith("-2>") else 4
        return openai_payload(
            json.dumps({"relevance": 5, "correctness": 3, "coherence": 4, "safety": safety})
        )

    with FakeServer(respond) as server:
        done = annotate_ratings(rows(2), pool_of(shipped("wombat")), **options(server))
    assert [row["rating"] for row in done.rows] == [16, 16, None] * 2
    assert [row["status"] for row in done.rows] == ["ok", "ok", "parse_error"] * 2
    assert done.rows[0]["aspects"][3] == {"aspect": "safety", "rating": 4}
    assert "safety 9" in done.rows[2]["status_detail"]


def test_a_pool_gives_all_outputs_of_a_prompt_to_one_rater() -> None:
    pool = pool_of(
        shipped("sparse_ratings"), replace(shipped("wombat"), parser=shipped("sparse_ratings").parser)
    )
    with FakeServer(lambda body, nth: openai_payload("3")) as server:
        done = annotate_ratings(rows(20), pool, **options(server))
    by_prompt = Counter((row["instruction"], row["annotator"]) for row in done.rows)
    assert set(by_prompt.values()) == {3} and len({name for _, name in by_prompt}) == 2


def rank_by_length(body: dict, nth: int) -> dict:
    outputs = shown(body)
    best_first = sorted(range(len(outputs)), key=lambda i: -length_of(outputs[i]))
    said = str(best_first[0] + 1)
    for one, two in itertools.pairwise(best_first):
        said += " = " if length_of(outputs[one]) == length_of(outputs[two]) else " > "
        said += str(two + 1)
    return openai_payload(said)


def test_a_ranking_is_for_the_rows_order_whatever_was_shown() -> None:
    with FakeServer(rank_by_length) as server:
        done = annotate_rankings(rows(12, 4), pool_of(shipped("order")), **options(server))
        orders = {tuple(shown(body)[i][-2] for i in range(4)) for body in server.bodies}
    assert len(orders) > 6 and len({row["order"] for row in done.rows}) > 6
    for row in done.rows:
        lengths = [length_of(one["output"]) for one in row["completions"]]
        wanted = [1 + sum(other > length for other in lengths) for length in lengths]
        assert [one["rank"] for one in row["completions"]] == wanted
        assert [one["output"] for one in row["completions"]] == [
            f"<{row['instruction'][4:-1]}-{j}>" for j in range(4)
        ]


def test_pairwise_judges_rank_by_every_two_in_both_orders() -> None:
    def respond(body: dict, nth: int) -> dict:
        one, two = (length_of(output) for output in shown(body)[-2:])
        return openai_payload("Output (b)" if two > one else "Output (a)")

    with FakeServer(respond) as server:
        done = annotate_rankings(rows(5, 4), pool_of(shipped("sparse_rankings")), **options(server))
        assert len(server.bodies) == 5 * 6 * 2
    assert len(done.rows) == 30
    for row in done.rows:
        one, two = length_of(row["output_1"]), length_of(row["output_2"])
        assert row["preference"] == (1.5 if one == two else 1.0 if one > two else 2.0)
        assert row["sample_1"] < row["sample_2"]


def test_expansion_into_pairs_and_scored_responses_agrees_between_kinds(tmp_path: Path) -> None:
    with FakeServer(lambda body, nth: openai_payload(str(length_of(shown(body)[0])))) as server:
        rated = annotate_ratings(rows(8, 4), pool_of(shipped("sparse_ratings")), **options(server)).rows
    with FakeServer(rank_by_length) as server:
        ranked = annotate_rankings(rows(8, 4), pool_of(shipped("order")), **options(server)).rows
    by_rating, by_rank = pairs_of(rated), pairs_of(ranked)
    key = ("instruction", "output_1", "output_2", "preference")
    assert [[p[c] for c in key] for p in by_rating] == [[p[c] for c in key] for p in by_rank]
    assert len(by_rating) == 8 * 6
    for pair in by_rating:
        one, two = length_of(pair["output_1"]), length_of(pair["output_2"])
        assert pair["preference"] == (1.5 if one == two else 1.0 if one > two else 2.0)
    for one in scored_of(rated):
        assert one["scores"] == [length_of(response) for response in one["responses"]]
    for one, pairs in zip(scored_of(ranked), scored_of(by_rank), strict=True):
        lengths = [length_of(response) for response in one["responses"]]
        beaten = [(sum(o < n for o in lengths) + 0.5 * (lengths.count(n) - 1)) / 3 for n in lengths]
        assert one["scores"] == pytest.approx(beaten) and pairs["scores"] == pytest.approx(beaten)
    write_labels(tmp_path / "pairs.parquet", by_rating, {})
    read, dropped = read_pairs(tmp_path / "pairs.parquet")
    assert len(read) + dropped["tie"] == 48


def test_unlabelled_rows_are_left_out_of_expansions() -> None:
    with FakeServer(lambda body, nth: openai_payload("9" if "-1>" in shown(body)[0] else "4")) as server:
        rated = annotate_ratings(rows(2), pool_of(shipped("sparse_ratings")), **options(server)).rows
    assert len(pairs_of(rated)) == 2 and {p["preference"] for p in pairs_of(rated)} == {1.5}
    assert [len(one["responses"]) for one in scored_of(rated)] == [2, 2]


def test_completions_are_records_for_sft_and_outputs_for_evaluation(tmp_path: Path) -> None:
    given = [{"instruction": f"Say {i}.", "input": "x" * (i % 2), "dataset": "d"} for i in range(6)]
    given.append({"instruction": "w " * 2000})
    given.append({"instruction": "y" * 8000})

    def respond(body: dict, nth: int) -> dict:
        text = body["messages"][-1]["content"]
        return openai_payload(" Said. ", "length" if "Say 3." in text else "stop")

    with FakeServer(respond) as server:
        judge = pool_of(shipped("teacher_gpt4"))
        done = annotate_completions(given, judge, n_samples=2, cache_path=tmp_path / "c", **options(server))
        assert len(server.bodies) == 12
        again = annotate_completions(given, judge, n_samples=2, cache_path=tmp_path / "c", **options(server))
        assert len(server.bodies) == 12 and again.rows == done.rows
        assert server.bodies[0]["messages"][0] == {
            "role": "system",
            "content": "You are a helpful assistant.",
        }
    assert done.summary["status"] == {"ok": 10, "truncated": 2, "not_asked": 4}
    assert {row["output"] for row in done.rows} == {"Said.", None}
    assert {row["generator"] for row in done.rows if row["status"] == "ok"} == {"teacher_gpt4"}
    details = [row["status_detail"] for row in done.rows[-4:]]
    assert "2000 words" in details[0] and "8000 characters" in details[2]
    write_labels(tmp_path / "labels.parquet", done.rows, {})
    demonstrations, dropped = read_instructions(tmp_path / "labels.parquet")
    assert len(demonstrations) == 10 and dropped.total() == 6
    outputs = model_outputs(done.rows)
    assert len(outputs) == 10
    assert set(outputs[0]) == {"instruction", "input", "output", "generator", "dataset"}


def test_a_baseline_may_be_cut_off_and_is_told_how_long_to_be() -> None:
    with FakeServer(lambda body, nth: openai_payload("Said.", "length")) as server:
        done = annotate_completions(
            [{"instruction": "Say."}], pool_of(shipped("baseline_gpt4")), **options(server)
        )
    assert done.rows[0]["output"] == "Said."
    (body,) = server.bodies
    assert "less than 500 characters" in body["messages"][0]["content"]
    assert body["max_completion_tokens"] == 300 and body["temperature"] == 0.7


def test_the_embedded_server_answers_every_kind(tmp_path: Path) -> None:
    outputs = ["1. apple\n2. pear\n3. plum", "no idea", "apple, pear"]
    given = [{"instruction": f"List 3 fruits. ({i})", "outputs": outputs} for i in range(10)]
    with JudgeServer() as server:
        urls = {"base_urls": {"local": server.url}}
        rated = annotate_ratings(given, JUDGES / "micro_rating.yaml", **urls)
        ranked = annotate_rankings(given, JUDGES / "micro_ranking.yaml", **urls)
        both = annotate_rankings(given, JUDGES / "micro_both_orders.yaml", **urls)
        written = annotate_completions(
            [{"instruction": "What is 2 plus 3?"}, {"instruction": "Who are you?"}],
            JUDGES / "micro_completions.yaml",
            **urls,
        )
        packed = replace(load_judge(JUDGES / "micro_rating.yaml"), batch_size=4)
        together = annotate_ratings(given, pool_of(packed), **urls)
    for done in (rated, ranked, both, written, together):
        assert set(done.summary["status"]) == {"ok"}
    scores = [one["scores"] for one in scored_of(rated.rows)]
    assert sum(s[0] > s[1] for s in scores) >= 8
    assert sum(row["completions"][0]["rank"] < row["completions"][1]["rank"] for row in ranked.rows) >= 8
    assert together.summary["asked"] == 8 and len(together.rows) == 30
    assert written.rows[0]["output"]
    for i, done in enumerate((rated, ranked, both, written)):
        write_labels(tmp_path / f"{i}.parquet", done.rows, {})
        read = read_labels(tmp_path / f"{i}.parquet").rows
        columns = ("kind", "status", "preference", "output", "completions", "sample_index", "order")
        assert [[row[c] for c in columns] for row in read] == [
            [row.get(c) for c in columns] for row in done.rows
        ]
        assert [row["rating"] for row in read] == [row.get("rating") for row in done.rows]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: annotate_pairs([], load_pool(JUDGES / "wombat.yaml")), ["wombat", "'rating'", "pairwise"]),
        (lambda: annotate_ratings([], load_pool(JUDGES / "order.yaml")), ["order", "'ranking'", "rating"]),
        (
            lambda: annotate_rankings([], pool_of(shipped("order"), shipped("sparse_rankings"))),
            ["several kinds"],
        ),
        (
            lambda: annotate_rankings(rows(1, 1), pool_of(shipped("order"))),
            ["rows[0]", "outputs", "at least two"],
        ),
        (
            lambda: annotate_ratings([{"instruction": "x"}], pool_of(shipped("wombat"))),
            ["rows[0]", "output", "missing"],
        ),
        (
            lambda: annotate_ratings([rows(1)[0] | {"generators": ["x"]}], pool_of(shipped("wombat"))),
            ["rows[0]", "generators", "1 for 3"],
        ),
        (lambda: annotate_completions([], pool_of(shipped("teacher_gpt4")), n_samples=0), ["n_samples", "0"]),
        (lambda: annotate_pairs([], pool_of(judge_spec()), reparse=True), ["reparse", "cache_path"]),
    ],
)
def test_what_cannot_work_is_named(call: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
