"""Arena-Hard's own files and our labels: the same scores, with control of style, and against a reference."""

import csv

import pytest
from test_measure_benchmarks import measured

from rlhf_jax.data.files.tables import write_jsonl, write_parquet
from rlhf_jax.errors import UserError

# Of each prompt: the verdicts with the baseline as A, and with the model as A.
SAID = {
    "strong": [("B>>A", "A>>B"), ("B>A", "A=B"), ("A=B", "A>B"), ("A<<B", "B>A")],
    "weak": [("A>B", "B>A"), ("A>>B", "B>>A"), ("A=B", "B=A"), ("A>B", "B<A")],
}
# By hand: strong wins 3 + 3, 1 + .5, .5 + 1, 3 and loses 1; weak loses 1 + 1, 3 + 3, ties, loses 1 and wins 1.
SCORES = {"strong": 100 * 12 / (6 + 2 + 2 + 4), "weak": 100 * 2 / (2 + 6 + 2 + 2)}
_A = {"A>>B": (1.0, True), "A>B": (1.0, False), "A=B": (1.5, False), "B=A": (1.5, False)}
_A |= {"B>A": (2.0, False), "B<A": (1.0, False), "A<<B": (2.0, True), "B>>A": (2.0, True)}


def judgments(**more):
    return [
        {"uid": f"u{k}", "model": model, "category": "hard", "judge": "j", "baseline": "base"}
        | {"games": [{"score": score, "judgment": {"answer": "..."}} for score in games]}
        | more
        for model, all_games in SAID.items()
        for k, games in enumerate(all_games)
    ]


def labels():
    """The same verdicts as `annotate` writes them: a row for each order, the preference in the pair's own order."""
    rows = []
    for model, all_games in SAID.items():
        for k, games in enumerate(all_games):
            pair = {
                "instruction": f"u{k}",
                "input": "",
                "output_1": f"base {k}",
                "output_2": f"{model} {10**k}",
            }
            pair |= {"generator_1": "base", "generator_2": model, "status": "ok", "kind": "pairwise"}
            for order, said in zip(("12", "21"), games, strict=True):
                for_a, strong = _A[said]
                preference = for_a if order == "12" else 3.0 - for_a
                rows.append(pair | {"order": order, "preference": preference, "strong": strong})
    return rows


@pytest.fixture
def files(tmp_path):
    (tmp_path / "judged").mkdir()
    for model in SAID:
        rows = [row for row in judgments() if row["model"] == model]
        write_jsonl(tmp_path / f"judged/{model}.jsonl", rows)
    write_parquet(tmp_path / "labels.parquet", labels())
    return tmp_path


def scores(summary):
    (board,) = summary["arena_hard"]
    return {row["model"]: row["score"] for row in board["scores"]}


def test_scores_of_its_own_files_and_of_labels(files):
    told, summary = measured(files / "a", arena=str(files / "judged"))
    expected = {name: pytest.approx(x) for name, x in (SCORES | {"base": 50}).items()}
    assert scores(summary) == expected and "8 judgments of 8 used" in told
    assert "Arena-Hard, category hard, against base" in told
    rows = {row["model"]: row for row in summary["arena_hard"][0]["scores"]}
    assert (rows["strong"]["n_games"], rows["strong"]["n_prompts"], rows["strong"]["n_strong"]) == (8, 4, 3)
    _, of_labels = measured(files / "b", arena=str(files / "labels.parquet"))
    assert scores(of_labels) == expected
    _, flat = measured(files / "c", arena=str(files / "judged"), strong_weight=1.0)
    assert scores(flat)["strong"] == pytest.approx(100 * 6 / 8)
    board = list(csv.DictReader((files / "a/arena_hard.csv").open()))
    assert [row["model"] for row in board] == ["strong", "base", "weak"]


def test_version_0_1_has_no_category_and_other_names(files):
    rows = [{"question_id": row["uid"], "model": row["model"], "games": row["games"]} for row in judgments()]
    write_jsonl(files / "old.jsonl", rows)
    _, summary = measured(files / "out", arena=str(files / "old.jsonl"))
    assert scores(summary) == {name: pytest.approx(x) for name, x in SCORES.items()}


def test_categories_are_boards_of_their_own(files):
    write_jsonl(files / "more.jsonl", judgments(category="creative", baseline="other"))
    told, summary = measured(files / "out", arena=f"{files}/judged,{files}/more.jsonl")
    assert [(one["category"], one["baseline"]) for one in summary["arena_hard"]] == [
        ("hard", "base"),
        ("creative", "other"),
    ]
    assert told.count("Arena-Hard, category") == 2


def test_what_lacks_a_verdict_is_counted_and_too_much_is_refused(files):
    rows = judgments()
    rows[0]["games"] = [None, {"score": "A>B"}]
    rows[1]["games"][1]["score"] = None
    rows.append(dict(rows[2]))
    write_jsonl(files / "holes.jsonl", rows)
    told, _ = measured(files / "out", arena=str(files / "holes.jsonl"), min_coverage=0.7)
    assert "6 judgments of 9 used; left out: 2 with a game without a verdict, 1 of a prompt and model" in told
    with pytest.raises(UserError, match="6 of 9 judgments have verdicts in both orders, fewer than 80 %"):
        measured(files / "out", arena=str(files / "holes.jsonl"))
    rows[2]["games"][0]["score"] = "A~B"
    write_jsonl(files / "holes.jsonl", rows)
    with pytest.raises(UserError, match="games: score: found 'A~B'; it must be one of A>>B"):
        measured(files / "out", arena=str(files / "holes.jsonl"))
    half = [row for row in labels() if row["order"] == "12"]
    write_parquet(files / "half.parquet", half)
    with pytest.raises(UserError, match="0 of 8 judgments have verdicts in both orders"):
        measured(files / "out", arena=str(files / "half.parquet"))


def answers(model, words):
    """A model's answers as arena-hard-auto keeps them, without the counts that it adds."""
    return [
        {"uid": f"u{k}", "model": model, "metadata": None}
        | {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": {"answer": "w " * n}},
            ]
        }
        for k, n in enumerate(words)
    ]


def test_style_is_controlled_where_the_answers_are_known(files):
    lengths = {"base": (10, 12, 11, 9), "strong": (30, 40, 20, 8), "weak": (11, 6, 12, 14)}
    rows = [row for model, words in lengths.items() for row in answers(model, words)]
    write_jsonl(files / "answers.jsonl", rows)
    style = {"style": ("length", "bold"), "arena_answers": str(files / "answers.jsonl")}
    told, summary = measured(files / "out", arena=str(files / "judged"), **style)
    (board,) = summary["arena_hard"]
    # bold is nowhere, so that it has no weight; length is liked, so that the longer model loses by the control.
    assert list(board["styles"]) == ["length"] and board["styles"]["length"][0] > 0
    assert scores(summary)["strong"] < SCORES["strong"] == pytest.approx(board["scores"][0]["plain"])
    assert "lengths are in characters" in told and "per standard deviation" in told
    _, centred = measured(files / "c", arena=str(files / "judged"), style_centred=True, **style)
    assert centred["arena_hard"][0]["styles"]["length"][0] == pytest.approx(
        board["styles"]["length"][0], abs=1e-3
    )
    assert scores(centred)["weak"] > scores(summary)["weak"] + 1
    for row in rows:
        row["metadata"] = {
            "token_len": 5,
            "header_count": {"h1": 0},
            "list_count": {"ordered": 1},
            "bold_count": {"**": 0},
        }
    write_jsonl(files / "answers.jsonl", rows)
    told, summary = measured(files / "d", arena=str(files / "judged"), **style)
    assert "lengths are in tokens" in told and not summary["arena_hard"][0]["styles"]
    assert "style: length is the same on both sides of every game, and controls nothing" in told
    _, of_labels = measured(files / "e", arena=str(files / "labels.parquet"), style=("length",))
    assert "length" in of_labels["arena_hard"][0]["styles"]
    write_jsonl(files / "answers.jsonl", [row for row in rows if row["model"] != "base"])
    with pytest.raises(UserError, match="arena_answers: both answers are known of 0 of 8 judgments"):
        measured(files / "out", arena=str(files / "judged"), **style)


def test_against_a_reference(files):
    ranking = (
        "model,score,score_low,score_high\nstrong,1200,1190,1210\nbase,1100,1090,1110\nweak,1000,990,1010\n"
    )
    (files / "humans.csv").write_text(ranking)
    told, summary = measured(files / "out", arena=str(files / "judged"), reference=str(files / "humans.csv"))
    (board,) = summary["arena_hard"]
    agreed = board["agreement"]
    assert (agreed["spearman"], agreed["n_models"], agreed["n_pairs"]) == (pytest.approx(1), 3, 3)
    assert agreed["brier"] < 0.05 and "against the reference: agreement with confidence" in told
    # Of itself: every pair that is apart agrees.
    again = str(files / "out/arena_hard.csv")
    _, itself = measured(files / "b", arena=str(files / "judged"), reference=again)
    assert itself["arena_hard"][0]["agreement"]["agreement"] == pytest.approx(board["separability"])
    for text, why in (
        ("model,elo\na,1\n", "no score; it has model, elo"),
        ("model,score\na,x\n", "'a': score: could not convert"),
        ("model,score\na,nan\n", "'a': score: nan; give a number"),
        ("model,score\na,1\na,2\n", "'a': stands there twice"),
        (
            "model,score,score_low,score_high\na,1,2,0\n",
            "'a': score_low and score_high: found .* the lower first",
        ),
        ("model,score,score_low\na,1,0\n", "score_low and score_high: found .* give both"),
        ("model,score\na\n", "row 1: not as many cells as there are columns"),
        ("model,score\na,1,2\n", "row 1: not as many cells as there are columns"),
    ):
        (files / "bad.csv").write_text(text)
        with pytest.raises(UserError, match=why):
            measured(files / "out", arena=str(files / "judged"), reference=str(files / "bad.csv"))


def test_a_judgment_that_stands_in_two_files_counts_once(files):
    told, summary = measured(files / "out", arena=f"{files}/judged,{files}/judged/strong.jsonl")
    assert "arena: 4 judgments stand in several of its files; each counts once" in told
    assert {row["model"]: row["n_games"] for row in summary["arena_hard"][0]["scores"]}["strong"] == 8
    # Another judge's are further ones.
    write_jsonl(files / "other.jsonl", [row for row in judgments(judge="k") if row["model"] == "strong"])
    told, summary = measured(files / "b", arena=f"{files}/judged,{files}/other.jsonl")
    assert {row["model"]: row["n_games"] for row in summary["arena_hard"][0]["scores"]}["strong"] == 16


def test_games_that_do_not_show_both_orders_are_left_out(files):
    rows = labels()
    rows[1]["order"] = "12"
    write_parquet(files / "half.parquet", rows)
    told, _ = measured(files / "out", arena=str(files / "half.parquet"))
    assert "7 judgments of 8 used; left out: 1 with both games in one order" in told
    rows = [*judgments(), judgments()[0] | {"model": "base"}]
    write_jsonl(files / "itself.jsonl", rows)
    told, summary = measured(files / "b", arena=str(files / "itself.jsonl"))
    assert "8 judgments of 9 used; left out: 1 of a model against itself" in told
    assert scores(summary)["base"] == 50


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"uid": ["a"]}, "row 1: uid, model: found \\['a'\\]"),
        ({"uid": float("nan")}, "row 1: uid, model: found nan"),
        ({"games": [{"score": ["A>B"]}, {"score": "A>B"}]}, "row 1: games: score: found \\['A>B'\\]"),
    ],
)
def test_a_judgment_that_is_none_is_named(files, change, why):
    rows = judgments()
    rows[0] |= change
    write_jsonl(files / "odd.jsonl", rows)
    with pytest.raises(UserError, match=why):
        measured(files / "out", arena=str(files / "odd.jsonl"))


@pytest.mark.parametrize("count", [None, "5", float("nan"), -1, [5], {"h1": None}])
def test_a_count_of_style_that_is_none_is_named(files, count):
    rows = [row for model in ("base", *SAID) for row in answers(model, (3, 4, 5, 6))]
    for row in rows:
        row["metadata"] = {"token_len": 5, "header_count": count, "list_count": 0, "bold_count": 0}
    write_jsonl(files / "answers.jsonl", rows)
    with pytest.raises(UserError, match=r"row 1: metadata: header_count: found .*; give a count"):
        measured(
            files / "out",
            arena=str(files / "judged"),
            style=("headers",),
            arena_answers=f"{files}/answers.jsonl",
        )


def test_a_strong_verdict_is_true_or_false(files):
    write_jsonl(files / "words.jsonl", [row | {"strong": str(row["strong"])} for row in labels()])
    with pytest.raises(UserError, match="strong: found 'True'; it must be true, false or null"):
        measured(files / "out", arena=str(files / "words.jsonl"))
