"""Feedback files of other projects: what is read, what is written, and that the way back ends where it began."""

import json
from pathlib import Path

import pytest

from rlhf_jax.annotation import read_feedback, write_feedback, write_labels
from rlhf_jax.annotation.formats import FORMATS
from rlhf_jax.annotation.formats.rows_of import pair, rated
from rlhf_jax.data.records.records import read_pairs
from rlhf_jax.errors import UserError

NASTY = 'He said "no", twice;\r\nthen left.\n\n\u2028 \U0001f600 a,b'
PAIRS = [
    pair("Say hi.", "", ("hi", "hello"), 1.0),
    pair("Say it.", "to Jo", (NASTY, "other"), 2.0),
    pair("Say so.", "", ("x", "y"), 1.5),
    pair("Say more.", "", ("x", "y"), 1.25),
    pair("Say less.", "", ("x", "y"), None),
]
RATED = [
    rated("Say hi.", "", "hi", 6.0) | {"generator": "m", "aspects": [{"aspect": "truth", "rating": 5.0}]},
    rated("Say hi.", "", NASTY, 2.5) | {"generator": "n", "aspects": None},
    rated("Say it.", "to Jo", "it", 3.0),
    rated("Say it.", "to Jo", "so", 4.0),
    rated("Say no.", "", "no", None),
]
PAIR = ("instruction", "input", "output_1", "output_2", "preference")
RATING = ("instruction", "input", "output", "rating")


def columns(rows: list[dict], names: tuple[str, ...]) -> list[list]:
    return [[row[name] for name in names] for row in rows]


def back(tmp_path: Path, rows: list[dict], name: str) -> list[dict]:
    path = tmp_path / f"feedback{FORMATS[name].suffix}"
    written = write_feedback(path, rows, name)
    assert written and [p.name for p in tmp_path.iterdir()] == [path.name]
    return read_feedback(path, name)


def test_alpaca_farm(tmp_path: Path) -> None:
    assert columns(back(tmp_path, PAIRS, "alpaca_farm"), PAIR) == columns(PAIRS[:4], PAIR)
    written = json.loads((tmp_path / "feedback.json").read_text())
    assert [row["preference"] for row in written] == [1, 2, 1.5, 1.25]
    assert isinstance(written[0]["preference"], int)


def test_draws_of_old_and_misses_of_old(tmp_path: Path) -> None:
    source = [
        {"instruction": "i", "output_1": "x", "output_2": "y", "preference": p}
        for p in (0, 1, 2, 1.3, -1, None)
    ]
    (tmp_path / "a.json").write_text(json.dumps(source))
    for name in ("alpaca_farm", "alpaca_eval"):
        rows = read_feedback(tmp_path / "a.json", name)
        assert [row["preference"] for row in rows] == [1.5, 1, 2, 1.3, None, None]
        assert [row["status"] for row in rows] == ["ok"] * 4 + ["parse_error"] * 2
    write_labels(tmp_path / "labels.parquet", rows, {})
    pairs, dropped = read_pairs(tmp_path / "labels.parquet")
    assert len(pairs) == 2 and dropped["tie"] == 1 and dropped["status=parse_error"] == 2


def test_alpaca_eval_keeps_failures_and_what_was_said(tmp_path: Path) -> None:
    rows = back(tmp_path, [row | {"raw_text": "m", "price_usd": 0.01} for row in PAIRS], "alpaca_eval")
    merged = [[f"{i}\n\n{t}" if t else i, "", *rest] for i, t, *rest in columns(PAIRS, PAIR)]
    assert columns(rows, PAIR) == merged
    assert {row["raw_text"] for row in rows} == {"m"} and {row["price_usd"] for row in rows} == {0.01}
    raw = {
        "message": {"content": "m"},
        "finish_reason": "length",
        "logprobs": {"content": [{"token": "m", "top_logprobs": [{"token": "m", "logprob": -0.1}]}]},
    }
    cot = {"concise_explanation": "Because.", "ordered_models": []}
    source = [
        {"instruction": "i", "output_1": "x", "output_2": "y", "preference": 1, "raw_completion": said}
        for said in (raw, cot, None)
    ]
    (tmp_path / "b.json").write_text(json.dumps(source))
    one, two, three = read_feedback(tmp_path / "b.json", "alpaca_eval")
    assert one["top_logprobs"] == [{"token": "m", "logprob": -0.1}] and one["raw_text"] == "m"
    assert two["explanation"] == "Because." and json.loads(two["raw_text"]) == cot
    assert three["raw_text"] is None


@pytest.mark.parametrize("name", ["trl", "trl_conversational"])
def test_trl(tmp_path: Path, name: str) -> None:
    rows = back(tmp_path, PAIRS, name)
    assert [[r["instruction"], r["output_1"], r["output_2"], r["preference"]] for r in rows] == [
        ["Say hi.", "hi", "hello", 1.0],
        ["Say it.\n\nto Jo", "other", NASTY, 1.0],
        ["Say more.", "x", "y", 1.0],
    ]
    lines = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [line["margin"] for line in lines] == [1.0, 1.0, 0.5]
    message = {"role": "user", "content": "Say hi."}
    assert lines[0]["prompt"] == ("Say hi." if name == "trl" else [message])
    pairs, _ = read_pairs(tmp_path / "feedback.jsonl")
    assert [one["chosen"] for one in pairs] == ["hi", "other", "x"]


def test_ultrafeedback(tmp_path: Path) -> None:
    rows = back(tmp_path, RATED, "ultrafeedback")
    merged = [[f"{i}\n\n{t}" if t else i, "", *rest] for i, t, *rest in columns(RATED[:4], RATING)]
    assert columns(rows, RATING) == merged
    assert rows[0]["aspects"] == [{"aspect": "truth", "rating": 5.0}] and rows[0]["generator"] == "m"
    lines = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert lines[0]["completions"][0]["annotations"] == {"truth": {"Rating": "5", "Rationale": ""}}
    assert len(lines) == 2


def test_ultrafeedback_as_published_and_binarized(tmp_path: Path) -> None:
    said = {"helpfulness": {"Rating": "4", "Rationale": "r"}, "honesty": {"Rating": "N/A", "Rationale": ""}}
    completion = {"model": "m", "response": "out", "annotations": said, "overall_score": 8.5}
    broken = completion | {"response": "no", "overall_score": None, "annotations": None}
    (tmp_path / "u.jsonl").write_text(json.dumps({"instruction": "i", "completions": [completion, broken]}))
    one, two = read_feedback(tmp_path / "u.jsonl", "ultrafeedback")
    assert one["rating"] == 8.5 and one["aspects"] == [{"aspect": "helpfulness", "rating": 4.0}]
    assert two["rating"] is None and two["status"] == "parse_error"
    sides = {"chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}]}
    sides["rejected"] = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "bad"}]
    row = {"prompt": "p", **sides, "score_chosen": 7.0, "score_rejected": 3}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    rows = read_feedback(tmp_path / "b.jsonl", "ultrafeedback")
    assert columns(rows, RATING) == [["p", "", "good", 7.0], ["p", "", "bad", 3.0]]


def test_rrhf_of_ratings_and_of_pairs(tmp_path: Path) -> None:
    rows = back(tmp_path, RATED, "rrhf")
    merged = [[f"{i}\n\n{t}" if t else i, "", *rest] for i, t, *rest in columns(RATED[:4], RATING)]
    assert columns(rows, RATING) == merged
    write_feedback(tmp_path / "feedback.jsonl", PAIRS, "rrhf")
    lines = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [line["scores"] for line in lines] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.75, 0.25]]
    assert set(lines[0]) == {"query", "responses", "scores"}


def test_sparse_feedback(tmp_path: Path) -> None:
    assert columns(back(tmp_path, RATED, "sparse_ratings"), RATING) == columns(RATED[:4], RATING)
    (tmp_path / "feedback.csv").unlink()
    rows = back(tmp_path, PAIRS, "sparse_rankings")
    wanted = columns(PAIRS[:4], PAIR)
    wanted[3][-1] = 1.0  # The file has (a), (b) and equal only.
    assert columns(rows, PAIR) == wanted


def test_sparse_feedback_as_its_scripts_write_it(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('Say hi.,nan,"hi, you",6\nSay hi.,,hello,not a number\n')
    rows = read_feedback(tmp_path / "r.csv", "sparse_ratings")
    assert columns(rows, RATING) == [["Say hi.", "", "hi, you", 6.0], ["Say hi.", "", "hello", None]]
    header = "instruction,input,response1,response2,label\n"
    (tmp_path / "k.csv").write_text(header + "i,nan,x,y,equal\ni,nan,x,y,(b)\n")
    assert [row["preference"] for row in read_feedback(tmp_path / "k.csv", "sparse_rankings")] == [1.5, 2.0]


BAD = [
    (
        "alpaca_farm",
        '[{"instruction": "i", "output_1": "x", "preference": 1}]',
        ["row 1", "output_2", "missing"],
    ),
    (
        "alpaca_farm",
        '[{"instruction": "i", "output_1": "x", "output_2": "y", "preference": 3}]',
        ["preference", "3"],
    ),
    (
        "alpaca_eval",
        '[{"instruction": "i", "output_1": "x", "output_2": 4, "preference": 1}]',
        ["output_2", "4"],
    ),
    ("rrhf", '{"query": "q", "responses": ["a"], "scores": []}', ["row 1", "scores"]),
    ("rrhf", '{"query": "q", "responses": ["a"], "scores": ["b"]}', ["scores[0]", "'b'"]),
    ("rrhf", '{"question": "q"}', ["query"]),
    (
        "ultrafeedback",
        '{"instruction": "i", "completions": [{"model": "m"}]}',
        ["completions[0]", "response"],
    ),
    ("sparse_ratings", "a,b,c,d,e\n", ["line 1", "5 columns, not 4"]),
    ("sparse_rankings", "a,b,c,d,(c)\n", ["line 1", "label", "'(c)'"]),
    ("sparse_rankings", "", ["no rows"]),
    ("alpaca_fram", "", ["format", "did you mean 'alpaca_farm'"]),
]


@pytest.mark.parametrize(("name", "text", "words"), BAD)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    path = tmp_path / ("bad.json" if text.startswith("[") else "bad.jsonl")
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_feedback(path, name)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_rows_of_the_wrong_kind_are_not_written(tmp_path: Path, name: str) -> None:
    of_ratings = name in ("ultrafeedback", "sparse_ratings")
    with pytest.raises(UserError):
        write_feedback(tmp_path / "x", PAIRS if of_ratings else RATED[4:], name)
    assert not list(tmp_path.iterdir())
