"""Benchmarks from their published files to the numbers: asked, scored and measured by the jobs themselves."""

import contextlib
import csv
import io
import itertools
import json
import random

import pytest
import tiny_farm

from rlhf_jax.data.files.tables import read_table, write_jsonl, write_parquet
from rlhf_jax.data.records.benchmark_rows import read_benchmark, rows_to_compare, rows_to_rate
from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import annotate
from rlhf_jax.jobs.measure import measure_job
from rlhf_jax.microfarm import world
from rlhf_jax.settings import load_page

ROOT = tiny_farm.ROOT


def best_of(subset, k, n_correct=1, n_wrong=3, row_id=None):
    """A row as RewardBench 2 is published; its right responses are longer the righter they are."""
    correct, wrong = [f"right {k} {i}" for i in range(n_correct)], [f"wrong {k} {i}" for i in range(n_wrong)]
    return {
        "id": str(k) if row_id is None else row_id,
        "prompt": f"Question {k}?",
        "chosen": correct,
        "rejected": wrong,
        "num_correct": n_correct,
        "num_incorrect": n_wrong,
        "total_completions": n_correct + n_wrong,
        "models": ["human"] * (n_correct + n_wrong),
        "subset": subset,
        "additional_metadata": None,
    }


ROWS = [best_of(subset, k) for k, subset in enumerate(["Math", "Math", "Focus", "Safety"])]
ROWS += [best_of("Ties", 10, 1, 4, "ref:7"), best_of("Ties", 11, 3, 4, "tied:7")]
PAIRS = [
    {
        "pair_id": f"id{k}",
        "original_id": str(k),
        "source": source,
        "question": f"Question {k}?",
        "response_model": "some-model",
        "response_A": f"one {k}",
        "response_B": f"two {k}",
        "label": label,
    }
    for k, (source, label) in enumerate(
        [("mmlu-pro-law", "A>B"), ("livecodebench", "B>A"), ("livebench-math", "A>B")]
    )
]


def measured(folder, **changes):
    """What the job prints, its summary.json and its folder."""
    config = load_page(str(ROOT / "configs/measure.py"))
    config.update({"games": "", "n_bootstrap": 20, **changes})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        measure_job.run(config, str(folder))
    return printed.getvalue(), json.loads((folder / "summary.json").read_text())


def asked(folder, **changes):
    """The labels of a judge of the embedded world."""
    config = load_page(str(ROOT / "configs/annotate.py"))
    config.update({"samples": "", "p_label_flip": 0.0, **changes})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        annotate.run(config, str(folder))
    return read_table(folder / "labels.parquet"), printed.getvalue()


@pytest.fixture
def benchmark(tmp_path):
    write_parquet(tmp_path / "rb2.parquet", ROWS)
    write_jsonl(tmp_path / "jb.jsonl", PAIRS)
    return tmp_path


def scores_of(rows, score):
    """What `score` writes of them."""
    return [
        {"instruction": row["prompt"], "responses": texts, "scores": [score(row, text) for text in texts]}
        for row in rows
        for texts in [row["chosen"] + row["rejected"]]
    ]


def test_scores_of_a_reward_model(benchmark):
    def score(row, text):
        if row["prompt"] == "Question 0?" and text == "wrong 0 1":
            return 5.0  # One wrong response above the right one,
        if row["prompt"] == "Question 2?" and text == "wrong 2 0":
            return 2.0  # and one beside it.
        return 2.0 + 0.1 * int(text[-1]) * (row["subset"] == "Ties") if text.startswith("right") else 1.0

    write_parquet(benchmark / "scores.parquet", scores_of(ROWS, score))
    files = {
        "benchmark": str(benchmark / "rb2.parquet"),
        "benchmark_labels": f"rm={benchmark}/scores.parquet",
    }
    told, summary = measured(benchmark / "out", **files)
    (found,) = summary["reward_bench"]
    subsets = {one["name"]: one for one in found["subsets"]}
    assert {name: one["score"] for name, one in subsets.items() if name != "Ties"} == {
        "Math": 50,
        "Focus": 50,
        "Safety": 100,
    }
    # Gap 1 with one right answer; with three .9 to 1.1 of spread .2: all but the margin's tanh(1 / .2 - 1) are 1.
    assert subsets["Ties"]["score"] == pytest.approx(100 + 0.9993, abs=1e-3)
    assert found["score"] == pytest.approx((50 + 50 + 100 + subsets["Ties"]["score"]) / 4)
    assert (found["by"], found["n_subsets"]) == ("scores", 4) and "mean of 4 of 6 subsets" in told
    board = list(csv.DictReader((benchmark / "out/reward_bench.csv").open()))
    assert [row["subset"] for row in board] == ["Math", "Safety", "Focus", "Ties", "mean of 4"]
    assert "rm, RewardBench 2" in (benchmark / "out/report.html").read_text()


def test_ratings_rankings_and_pairs_of_the_same_rows(benchmark):
    rated = [
        {"kind": "rating", "instruction": row["prompt"], "input": "", "output": text, "status": "ok"}
        | {"rating": 7.0 if text in row["chosen"] else 3.0}
        for row in ROWS
        for text in row["chosen"] + row["rejected"]
    ]
    rated[0] |= {"rating": None, "status": "parse_error"}
    ranked = [
        {"kind": "ranking", "instruction": row["prompt"], "input": "", "status": "ok"}
        | {
            "completions": [
                {"output": text, "rank": i + 1} for i, text in enumerate(row["chosen"] + row["rejected"])
            ]
        }
        for row in ROWS
    ]
    pairs = [
        row | {"kind": "pairwise", "status": "ok", "preference": 1.0, "order": "12"}
        for row in rows_to_compare(ROWS, "")[0]
    ]
    # The same pair in the other order of outputs is its second game; it makes a draw of this one.
    turned = {"output_1": pairs[0]["output_2"], "output_2": pairs[0]["output_1"], "preference": 1.0}
    pairs.append(pairs[0] | turned)
    for name, rows in (("rated", rated), ("ranked", ranked), ("pairs", pairs)):
        write_parquet(benchmark / f"{name}.parquet", rows)
    labels = ",".join(f"{name}={benchmark}/{name}.parquet" for name in ("rated", "ranked", "pairs"))
    files = {"benchmark": str(benchmark / "rb2.parquet"), "benchmark_labels": labels}
    told, summary = measured(benchmark / "out", **files, min_coverage=0.5)
    found = {one["name"]: {x["name"]: x for x in one["subsets"]} for one in summary["reward_bench"]}
    assert [one["by"] for one in summary["reward_bench"]] == ["scores", "ranks", "pairs"]
    math = found["rated"]["Math"]
    assert (math["score"], math["n"], math["n_missing"]) == (
        100,
        1,
        1,
    ) and "1 ratings without a label" in told
    assert found["rated"]["Ties"]["score"] == pytest.approx(101)
    assert found["ranked"]["Math"]["score"] == 100 and found["ranked"]["Ties"]["score"] is None
    assert found["pairs"]["Math"]["score"] == 75 and found["pairs"]["Ties"]["score"] is None
    assert "pairs: Ties asks for margins of scores, which pairs do not have" in told


def test_an_unknown_subset_has_a_row_of_its_own(benchmark):
    write_parquet(benchmark / "more.parquet", [*ROWS, best_of("Puzzles", 20)])
    scores = scores_of([*ROWS, best_of("Puzzles", 20)], lambda row, text: float(text.startswith("right")))
    write_parquet(benchmark / "scores.parquet", scores)
    files = {
        "benchmark": str(benchmark / "more.parquet"),
        "benchmark_labels": f"rm={benchmark}/scores.parquet",
    }
    told, summary = measured(benchmark / "out", **files)
    assert "Puzzles: no subset of RewardBench 2" in told and "(Puzzles)" in told
    assert summary["reward_bench"][0]["n_subsets"] == 4


def test_what_both_orders_said_of_judge_bench(benchmark):
    """As two rows, as one row of both, and as JudgeBench's own code writes it: the same numbers."""
    # Both right; one right and one tie; both orders prefer what they are shown first.
    said = [(1.0, 1.0), (2.0, 1.5), (1.0, 2.0)]
    base = [
        {
            "instruction": row["question"],
            "input": "",
            "output_1": row["response_A"],
            "output_2": row["response_B"],
        }
        | {"status": "ok"}
        for row in PAIRS
    ]
    games = [
        row | {"order": o, "preference": x}
        for row, two in zip(base, said, strict=True)
        for o, x in zip(("12", "21"), two, strict=True)
    ]
    both = [
        row | {"order": "both", "preference": 1.5, "preference_first_order": a, "preference_swapped": b}
        for row, (a, b) in zip(base, said, strict=True)
    ]
    own = [
        # The second decision is on the reversed pair.
        row | {"judge_name": "x", "judgments": [{"decision": a}, {"decision": b}]}
        for row, (a, b) in zip(PAIRS, [("A>B", "B>A"), ("B>A", "A=B"), ("A>B", "A>B")], strict=True)
    ]
    write_parquet(benchmark / "games.parquet", games)
    write_parquet(benchmark / "both.parquet", both)
    write_jsonl(benchmark / "own.jsonl", own)
    labels = f"games={benchmark}/games.parquet,both={benchmark}/both.parquet,own={benchmark}/own.jsonl"
    told, summary = measured(
        benchmark / "out", benchmark=str(benchmark / "jb.jsonl"), benchmark_labels=labels
    )
    first, second, third = summary["judge_bench"]
    assert first["parts"] == second["parts"] == third["parts"] and first["n_orders"] == 2
    overall = first["parts"][-1]
    assert (overall["n_correct"], overall["n_tied"], overall["n_incorrect"], overall["n_both"]) == (
        2,
        1,
        0,
        1,
    )
    assert overall["accuracy"] == pytest.approx(200 / 3) and overall["n_inconsistent"] == 2
    names = [part["name"] for part in first["parts"]]
    assert names == ["knowledge", "math", "coding", "overall"]
    assert len(list(csv.DictReader((benchmark / "out/judge_bench.csv").open()))) == 12
    assert "both right" in told


def test_a_reward_model_judges_pairs_in_no_order(benchmark):
    rows = [
        {
            "instruction": row["question"],
            "responses": [row["response_A"], row["response_B"]],
            "scores": scores,
        }
        for row, scores in zip(PAIRS, [[1.0, 0.0], [0.0, 0.0], [None, 1.0]], strict=True)
    ]
    write_parquet(benchmark / "scores.parquet", rows)
    files = {"benchmark": str(benchmark / "jb.jsonl"), "benchmark_labels": f"rm={benchmark}/scores.parquet"}
    told, summary = measured(benchmark / "out", **files, min_coverage=0.5)
    overall = summary["judge_bench"][0]["parts"][-1]
    assert (overall["n_correct"], overall["n_tied"], overall["n_missing"]) == (1, 2, 1)
    assert "rm: judged in one order only" in told and "1 responses without a score" in told


def test_judges_are_asked_about_the_files_as_they_are_published(tmp_path):
    """The embedded world's judges on its own instructions: what annotate reads, measure finds again."""
    rng = random.Random(0)
    rows = [
        row | {"output": world.sample_demonstration(row, rng, excellent=True)}
        for row in itertools.islice(world.rows(0), 5)
    ]
    questions = [
        f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"] for row in rows
    ]
    wrong = ["I do not know.", "Perhaps, perhaps not.", "bad"]
    best = [
        best_of("Math", k) | {"prompt": question, "chosen": [row["output"]], "rejected": wrong}
        for k, (question, row) in enumerate(zip(questions, rows, strict=True))
    ]
    best.append(best_of("Ties", 30, 1, 2, "ref:1"))
    write_parquet(tmp_path / "rb2.parquet", best)
    pairs = []
    for k, (question, row) in enumerate(zip(questions, rows, strict=True)):
        a_is_right = rng.random() < 0.5
        sides = (row["output"], wrong[0]) if a_is_right else (wrong[0], row["output"])
        pairs.append(
            PAIRS[0]
            | {"pair_id": str(k), "question": question, "response_A": sides[0], "response_B": sides[1]}
            | {"label": "A>B" if a_is_right else "B>A"}
        )
    write_jsonl(tmp_path / "jb.jsonl", pairs)
    judge = (
        (ROOT / "configs/judges/micro_both_orders.yaml").read_text().replace("both_agree", "both_two_games")
    )
    (tmp_path / "judge.yaml").write_text(judge)
    judges = str(tmp_path / "judge.yaml")
    compared, told = asked(tmp_path / "compared", pairs=str(tmp_path / "rb2.parquet"), judges=judges)
    assert len(compared) == 2 * 3 * 5 and "1 rows of Ties are not compared" in told
    judged, _ = asked(tmp_path / "judged", pairs=str(tmp_path / "jb.jsonl"), judges=judges)
    assert {row["order"] for row in judged} == {"12", "21"} and len(judged) == 10
    labels = f"clean={tmp_path}/compared/labels.parquet"
    _, summary = measured(tmp_path / "a", benchmark=str(tmp_path / "rb2.parquet"), benchmark_labels=labels)
    assert summary["reward_bench"][0]["score"] > 80 and summary["reward_bench"][0]["subsets"][0]["n"] == 5
    labels = f"clean={tmp_path}/judged/labels.parquet"
    _, summary = measured(tmp_path / "b", benchmark=str(tmp_path / "jb.jsonl"), benchmark_labels=labels)
    assert summary["judge_bench"][0]["parts"][-1]["accuracy"] > 80


def test_files_are_read_to_be_scored(benchmark):
    rows, left_out = read_responses(str(benchmark / "rb2.parquet"))
    assert (
        [len(row.responses) for row in rows] == [4, 4, 4, 4, 5, 7] and not left_out and not left_out.columns
    )
    assert rows[5].responses[:3] == ROWS[5]["chosen"] and rows[5].columns["benchmark_id"] == "tied:7"
    assert rows[0].columns["instruction"] == "Question 0?" and all(
        isinstance(x, dict) for x in rows[0].records
    )
    rows, _ = read_responses(str(benchmark / "jb.jsonl"))
    assert rows[0].responses == ["one 0", "two 0"] and rows[0].columns["subset"] == "mmlu-pro-law"
    plain = [{"instruction": "x", "outputs": ["a"]}]
    assert rows_to_rate(plain, "") == plain and rows_to_compare(plain, "") == (plain, 0)
    # A preference set with subsets, whose sides are messages, is none of these benchmarks.
    said = [{"role": "assistant", "content": "x"}]
    chat = [{"prompt": "p", "subset": "s", "chosen": said, "rejected": said}]
    assert rows_to_rate(chat, "") == chat


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_correct": 2}, "row 1: num_correct: 2, but the row holds 1"),
        ({"total_completions": 5}, "row 1: total_completions: 5, but the row holds 4"),
        (
            {"chosen": ["a", "b"], "num_correct": 2, "total_completions": 5},
            "chosen: found 2; only rows of Ties",
        ),
        ({"subset": "Ties", "id": "7"}, "id: found '7'; a row of Ties has ref:N or tied:N"),
        ({"chosen": []}, r"chosen: found \[\]; it must be a list of texts"),
        ({"prompt": None}, "prompt: found None; it must be text"),
        (
            {"prompt": ROWS[1]["prompt"], "chosen": ROWS[1]["chosen"], "rejected": ROWS[1]["rejected"]},
            "stands there twice",
        ),
    ],
)
def test_rows_that_are_not_as_published_are_refused(change, why):
    with pytest.raises(UserError, match=why):
        read_benchmark([ROWS[0] | change, *ROWS[1:]], "file")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"label": "A"}, "label: found 'A'; it must be A>B or B>A"),
        ({"response_B": None}, "response_B: found None"),
        ({"judgments": [{"decision": "C"}]}, "decision: found 'C'"),
        ({"judgments": [None] * 3}, "a list of one or two"),
    ],
)
def test_pairs_that_are_not_as_published_are_refused(change, why):
    with pytest.raises(UserError, match=why):
        read_benchmark([PAIRS[0] | change], "file")


def test_what_cannot_be_measured_is_one_line(benchmark):
    rb2, jb = str(benchmark / "rb2.parquet"), str(benchmark / "jb.jsonl")
    write_parquet(benchmark / "plain.parquet", [{"instruction": "x", "output": "y"}])
    for changes, why in (
        ({"benchmark": rb2}, "^benchmark_labels: names no file"),
        ({"benchmark_labels": f"a={rb2}"}, "^benchmark: names no file"),
        (
            {"benchmark": rb2, "benchmark_labels": f"a={benchmark}/plain.parquet"},
            "no labels or scores; it has",
        ),
        ({"benchmark": f"{benchmark}/plain.parquet", "benchmark_labels": f"a={rb2}"}, "no known benchmark"),
        (
            {"benchmark": jb, "benchmark_labels": f"a={jb}"},
            "judgments: missing; this is the benchmark itself",
        ),
    ):
        with pytest.raises(UserError, match=why) as error:
            measured(benchmark / "out", **changes)
        assert "\n" not in str(error.value)


def test_responses_and_rankings_of_another_form_are_counted_or_named(benchmark):
    about = {"benchmark": str(benchmark / "rb2.parquet"), "min_coverage": 0.4}
    rows = scores_of(ROWS, lambda row, text: float(text.startswith("right")))
    rows[0]["responses"] = [[{"role": "assistant", "content": text}] for text in rows[0]["responses"]]
    write_jsonl(benchmark / "chats.jsonl", rows)
    told, _ = measured(benchmark / "a", benchmark_labels=f"rm={benchmark}/chats.jsonl", **about)
    assert "rm: left out: 4 responses that are no text" in told
    write_jsonl(benchmark / "ranks.jsonl", [{"instruction": "Question 0?", "completions": ["right 0 0"]}])
    with pytest.raises(UserError, match=r"completions: found \['right 0 0'\]; it must be a list of outputs"):
        measured(benchmark / "b", benchmark_labels=f"rm={benchmark}/ranks.jsonl", **about)
