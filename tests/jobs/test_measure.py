"""The measure job: its tables recomputed from the files, and what it refuses."""

import contextlib
import csv
import io
import json
import random
from pathlib import Path

import pytest

from rlhf_jax.data.records.records import read_table, write_jsonl, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.bradley_terry import bradley_terry
from rlhf_jax.evaluation.measures.evaluators import evaluator
from rlhf_jax.evaluation.measures.reliability import fleiss_kappa
from rlhf_jax.jobs.measure import measure_job
from rlhf_jax.settings import load_page

ROOT = Path(__file__).parents[2]


def run(folder, **changes) -> tuple[str, dict]:
    """What the job prints, and its summary.json."""
    config = load_page(str(ROOT / "configs/measure.py"))
    config.update({"games": "", "n_bootstrap": 20, **changes})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        measure_job.run(config, str(folder))
    return printed.getvalue(), json.loads((folder / "summary.json").read_text())


def refused(folder, **changes) -> str:
    with pytest.raises(UserError) as caught:
        run(folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def label_rows(seed, n=40, repeat=1):
    rng = random.Random(seed)
    return [
        {
            "instruction": f"i{i}",
            "input": "",
            "output_1": "one",
            "output_2": "two " * (20 if i % 2 else 1),
            "generator_1": "base",
            "generator_2": f"m{i % 3}",
            "preference": rng.choice([1.0, 2.0]),
            "price_usd": 0.001,
        }
        for i in range(n)
        for _ in range(repeat)
    ]


def test_models_are_rated_from_label_files(tmp_path):
    files = []
    for k in (1, 2):
        write_parquet(tmp_path / f"{k}.parquet", label_rows(k))
        files.append(str(tmp_path / f"{k}.parquet"))
    told, summary = run(tmp_path / "out", games=",".join(files), anchor="base")
    games = [
        {
            "model_1": "base",
            "model_2": r["generator_2"],
            "preference": r["preference"],
            "instruction": r["instruction"],
        }
        for k in (1, 2)
        for r in label_rows(k)
    ]
    expected = bradley_terry(games, anchor="base", n_bootstrap=0)
    assert [r["model"] for r in summary["ratings"]] == [r.model for r in expected]
    for got, want in zip(summary["ratings"], expected, strict=True):
        assert got["rating"] == pytest.approx(want.rating) and got["n_games"] == want.n_games
        assert f"{want.rating:.0f}" in told
    board = list(csv.DictReader((tmp_path / "out/ratings.csv").open()))
    assert float(board[0]["rating"]) == summary["ratings"][0]["rating"]
    assert 'id="ratings"' in (tmp_path / "out/report.html").read_text()
    hard = {row["instruction"]: row for row in read_table(tmp_path / "out/difficulty.parquet")}
    assert len(hard) == 40 and {row["n_models"] for row in hard.values()} == {1}
    labels = {
        i: [r["preference"] for k in (1, 2) for r in label_rows(k) if r["instruction"] == i] for i in hard
    }
    easy, lost = ([hard[i]["difficulty"] for i in hard if labels[i] == [x, x]] for x in (2.0, 1.0))
    assert min(easy) > max(lost)


def test_annotators_are_compared_with_gold(tmp_path):
    mine, gold = label_rows(1), label_rows(2, repeat=3)
    write_parquet(tmp_path / "mine.parquet", mine)
    write_parquet(tmp_path / "gold.parquet", gold)
    files = {"annotators": f"judge={tmp_path}/mine.parquet", "gold": f"{tmp_path}/gold.parquet"}
    told, summary = run(tmp_path / "out", **files, min_per_generator=5)
    rows = {row["name"]: row for row in summary["evaluators"]}
    assert set(rows) == {"judge", "gold", "longer output wins"}
    want = evaluator("judge", mine, gold, min_per_generator=5)
    assert rows["judge"]["human_agreement"] == {"value": pytest.approx(want.human_agreement.value), "n": 40}
    assert rows["judge"]["usd"]["value"] == pytest.approx(1.0)
    assert rows["judge"]["variance"]["value"] is None and rows["gold"]["variance"]["value"] > 0
    assert rows["longer output wins"]["biases"]["prefers_longer"] == 100
    assert rows["longer output wins"]["usd"]["value"] is None  # not known is not zero
    assert "Cohen's kappa, judge and gold" in told and "Krippendorff's alpha within gold" in told
    crowd = [[r["preference"] for r in gold[k::3]] for k in range(3)]
    assert summary["reliability"]["Fleiss' kappa within gold"]["value"] == pytest.approx(
        fleiss_kappa(crowd).value
    )
    board = {row["name"]: row for row in csv.DictReader((tmp_path / "out/evaluators.csv").open())}
    assert float(board["judge"]["human_agreement"]) == pytest.approx(want.human_agreement.value)
    assert board["judge"]["variance"] == "" and board["judge"]["n_rows"] == "40"
    html = (tmp_path / "out/report.html").read_text()
    assert 'id="evaluators"' in html and "nan" not in html.split("</style>")[1]


def test_ratings_rankings_and_their_consistency(tmp_path):
    for name, ratings in {"mine": (5, 3, 4), "base": (4, 3, 6)}.items():
        rows = [{"instruction": f"i{i}", "output": f"{name}{i}", "rating": r} for i, r in enumerate(ratings)]
        write_parquet(tmp_path / f"{name}.parquet", rows)
    ranked = [
        {"instruction": f"i{i}", "output_1": f"base{i}", "output_2": f"mine{i}", "ranking": said}
        for i, said in enumerate(("(b)", "(a)", "(a)"))
    ]
    write_parquet(tmp_path / "ranked.parquet", ranked)
    files = {"ratings": f"mine={tmp_path}/mine.parquet", "baseline": f"{tmp_path}/base.parquet"}
    told, summary = run(tmp_path / "out", **files, rankings=f"{tmp_path}/ranked.parquet")
    by_ratings, by_rankings = summary["win_rates"]
    assert (by_ratings["win_rate"], by_ratings["n_total"], by_ratings["by"]) == (50, 3, "ratings")
    assert by_rankings["win_rate"] == pytest.approx(100 / 3)
    assert summary["consistency"]["consistency"] == pytest.approx(200 / 3)
    assert "66.7 %" in told and "1.96 standard errors" in told
    assert "mine" in (tmp_path / "out/leaderboard.csv").read_text()


def test_sparse_feedbacks_own_files(tmp_path):
    # As its scripts write them: no header, "nan" for an empty input.
    (tmp_path / "davinci.csv").write_text("i0,nan,d0,4\ni1,nan,d1,3\ni2,nan,d2,6\n")
    (tmp_path / "mine.csv").write_text("i0,nan,m0,5\ni1,nan,m1,3\ni2,nan,m2,4\n")
    (tmp_path / "ranked.csv").write_text("i0,nan,d0,m0,(b)\ni1,nan,d1,m1,(a)\ni2,nan,d2,m2,equal\n")
    files = {"ratings": f"mine={tmp_path}/mine.csv", "baseline": f"{tmp_path}/davinci.csv"}
    _, summary = run(tmp_path / "out", **files, rankings=f"{tmp_path}/ranked.csv")
    by_ratings, by_rankings = summary["win_rates"]
    assert (by_ratings["win_rate"], by_rankings["win_rate"]) == (50, 50)
    half = 196 * 0.5 / 3**0.5  # scores 1, 0.5, 0: standard deviation 0.5
    assert by_ratings["normal_interval"] == pytest.approx([50 - half, 50 + half])
    assert summary["consistency"]["consistency"] == pytest.approx(100 / 3)


def test_wrong_inputs_are_one_line(tmp_path):
    write_parquet(tmp_path / "rows.parquet", [{**row, "preference": None} for row in label_rows(1)])
    write_parquet(tmp_path / "bare.parquet", [{"instruction": "i", "output": "x"}])
    rows, bare = f"{tmp_path}/rows.parquet", f"{tmp_path}/bare.parquet"
    for changes, told in (
        ({}, "nothing to measure"),
        ({"games": rows}, "0 of 40 have a label"),
        ({"games": bare}, "no column 'generator_1'"),
        ({"annotators": f"a={rows}"}, "gold: names no file"),
        ({"gold": rows}, "annotators: names no file"),
        ({"annotators": f"a={rows}", "gold": rows}, "0 of 40 rows have a label"),
        ({"ratings": f"a={bare}", "baseline": bare}, "no column 'rating'"),
        ({"rankings": bare}, "no column 'output_1'"),
        ({"games": f"{tmp_path}/none.parquet"}, "no such file"),
    ):
        assert told in refused(tmp_path / "out", **changes), changes
    write_parquet(tmp_path / "rated.parquet", [{"instruction": "i", "output": "x", "rating": 1}])
    assert "baseline: names no file" in refused(tmp_path / "out", ratings=f"a={tmp_path}/rated.parquet")


def compared(folder, gold=None, min_coverage=0.8, **annotators) -> tuple[str, dict, dict]:
    """(what is printed, evaluators by name, reliability) of rows of labels."""
    tables = annotators | ({"gold": gold} if gold else {})
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    named = ",".join(f"{name}={folder}/{name}.json" for name in annotators)
    changes = {"gold": f"{folder}/gold.json" if gold else "", "min_coverage": min_coverage}
    told, summary = run(folder / "out", annotators=named, min_per_generator=5, **changes)
    return told, {row["name"]: row for row in summary["evaluators"]}, summary["reliability"]


def turned(row):
    """The same pair the other way round."""
    places = {"output_1": "output_2", "output_2": "output_1"}
    places |= {"generator_1": "generator_2", "generator_2": "generator_1"}
    return row | {new: row[old] for new, old in places.items()} | {"preference": 3 - row["preference"]}


def test_pairs_that_an_annotator_holds_the_other_way_round(tmp_path):
    mine, gold = label_rows(1), label_rows(2)
    _, straight, reliable = compared(tmp_path, gold, judge=mine)
    mixed = [turned(row) if i >= 4 else row for i, row in enumerate(mine)]
    told, rows, kappas = compared(tmp_path, gold, judge=mixed)
    assert "judge: 36 rows hold the outputs of another row the other way round" in told
    for name in ("human_agreement", "bias", "spearman", "pearson"):
        assert rows["judge"][name] == pytest.approx(straight["judge"][name]), name
    assert rows["judge"]["biases"]["prefers_longer"] == straight["judge"]["biases"]["prefers_longer"]
    assert kappas["Cohen's kappa, judge and gold"] == reliable["Cohen's kappa, judge and gold"]
    # Of the places in the annotator's own file.
    labels = [row["preference"] for row in mixed]
    assert rows["judge"]["prefers_1"]["value"] == pytest.approx(100 * (2 - sum(labels) / 40))
    told, _, kappas = compared(tmp_path, a=mine, b=mixed)
    assert "b: 36 rows hold" in told and kappas["agreement of a and b"] == {
        "value": 1,
        "n_items": 40,
        "n_labels": 80,
    }


def test_gold_in_both_orders_is_a_crowd_of_two(tmp_path):
    mine, gold = label_rows(1), label_rows(2)
    told, rows, kappas = compared(tmp_path, [*gold, *map(turned, gold)], judge=mine)
    assert "gold: 40 rows hold" in told and "gold: 40 labels are further ones of their pair" in told
    assert rows["gold"]["variance"] == {"value": 0, "n": 40}
    assert kappas["Krippendorff's alpha within gold"]["value"] == 1


def test_gold_pairs_without_a_partner_are_counted(tmp_path):
    told, rows, _ = compared(tmp_path, label_rows(2), judge=label_rows(1)[:4])
    assert rows["judge"]["human_agreement"]["n"] == 4
    assert "judge: 36 of 40 gold pairs are not among its 4" in told
    assert "gold pairs" not in compared(tmp_path, label_rows(2), judge=label_rows(1))[0]


def test_a_pair_that_was_asked_again_has_its_first_label(tmp_path):
    def retried(seed):
        return [x for row in label_rows(seed) for x in (row | {"preference": None}, row)]

    want = compared(tmp_path, a=label_rows(1), b=label_rows(2))[2]
    told, _, got = compared(tmp_path, a=retried(1), b=retried(2))
    assert got == want and "further" not in told
    again = [*label_rows(1), *label_rows(3)[:7]]
    told, _, got = compared(tmp_path, a=again, b=label_rows(2))
    assert got == want and "a: 7 labels are further ones of their pair" in told
    # With gold each failure counts as a missing label of the crowd, so the share of labels is half.
    told, rows, kappas = compared(tmp_path, retried(2), min_coverage=0.5, a=retried(1))
    want = compared(tmp_path, label_rows(2), a=label_rows(1))
    assert rows["a"]["human_agreement"] == want[1]["a"]["human_agreement"] and kappas == want[2]
    none = [row | {"preference": None if i % 2 else 1} for i, row in enumerate(label_rows(1))]
    other = [row | {"preference": 1 if i % 2 else None} for i, row in enumerate(label_rows(1))]
    with pytest.raises(UserError, match="a and b label no pair in common"):
        compared(tmp_path, a=none, b=other)


def test_prices_and_names_of_other_types(tmp_path):
    odd = ["0.01", {"a": 1}, ["x"], True, "free", "nan", "inf", 0.03]
    mine = [
        row | {"price_usd": None, "price_per_example": odd[i % 8], "latency_ms": "500", "generator": ["x"]}
        for i, row in enumerate(label_rows(1))
    ]
    _, rows, _ = compared(tmp_path, label_rows(2), judge=mine)
    assert rows["judge"]["usd"] == {"value": pytest.approx(20), "n": 10}
    assert rows["judge"]["seconds"] == {"value": pytest.approx(500), "n": 40}
    # The name of output_2's model stands in the other column, too.
    assert rows["judge"]["spearman"]["n"] == 3


def ratings_files(folder, **tables):
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return {"ratings": f"mine={folder}/mine.json", "baseline": f"{folder}/base.json"}


def rated(name, ratings, **more):
    return [
        {"instruction": f"i{i}", "output": f"{name}{i}", "rating": rating, **more}
        for i, rating in enumerate(ratings)
    ]


def test_ratings_of_different_judges_are_said(tmp_path):
    mine = rated("m", [9] * 40, judge_id="J1")
    files = ratings_files(tmp_path, mine=mine, base=rated("b", [7] * 40, judge_id="J2"))
    said = refused(tmp_path / "out", **files)
    assert "mine" in said and "'J1'" in said and "'J2'" in said and "one judge" in said
    base = rated("b", [7] * 36, judge_id="J1") + rated("b", [7] * 40, judge_id="J2")[36:]
    told, summary = run(tmp_path / "out", **ratings_files(tmp_path, mine=mine, base=base))
    assert "mine: on 4 prompts" in told and "another judge" in told
    assert (summary["win_rates"][0]["n_total"], summary["win_rates"][0]["n_missing"]) == (36, 4)


def test_ratings_that_were_asked_again(tmp_path):
    mine = [x for row in rated("m", [6, 2, 5]) for x in (row | {"rating": None}, row)]
    files = ratings_files(tmp_path, mine=[*mine, *rated("m", [1])], base=rated("b", [4, 4, 4]))
    told, summary = run(tmp_path / "out", **files)
    assert summary["win_rates"][0]["win_rate"] == pytest.approx(200 / 3)
    assert "mine: 1 ratings are further ones of their prompt" in told


def test_rankings_in_both_orders(tmp_path):
    rows = [
        {"instruction": f"i{i}", "output_1": f"b{i}", "output_2": f"m{i}", "ranking": "(b)"}
        for i in range(40)
    ]
    other = [
        row | {"output_1": row["output_2"], "output_2": row["output_1"], "ranking": "(a)"} for row in rows
    ]
    (tmp_path / "ranked.json").write_text(json.dumps([*rows, *other]))
    told, summary = run(tmp_path / "out", rankings=f"{tmp_path}/ranked.json")
    assert summary["win_rates"][0]["win_rate"] == 100
    assert "40 rows hold the outputs of another row the other way round" in told


def test_games_without_text_and_models_of_one_length_difference_have_difficulties(tmp_path):
    """A model of one game, too: its length cannot be told from the model, and that is no reason to measure nothing."""
    rows = [row | {"generator_2": f"m{i % 2}"} for i, row in enumerate(label_rows(1))]
    assert len({row["output_2"] for row in rows if row["generator_2"] == "m0"}) == 1
    odd = [rows[0] | {"output_2": None}, rows[1] | {"generator_2": "m2", "output_2": "once"}]
    write_jsonl(tmp_path / "games.jsonl", [*rows[2:], *odd])
    told, summary = run(tmp_path / "out", games=str(tmp_path / "games.jsonl"))
    assert "difficulty.parquet: 1 games have outputs that are no text; left out" in told
    assert [len(summary["ratings"]), len(read_table(tmp_path / "out/difficulty.parquet"))] == [4, 39]
