"""Best of n: which samples are kept and which are counted out, what the files say, and that other jobs read them."""

import csv
import json

import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.records.records import read_instructions, read_table, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.best_of_k import best_of_table
from rlhf_jax.jobs import best_of_n, generate, score

ROWS = [
    {  # the second and third tie; the fourth has no score
        "instruction": "a",
        "input": "",
        "generator": "sft",
        "ended": [True, False, True, True],
        "responses": ["p", "q", "r", "s"],
        "scores": [0.5, 2.0, 2.0, None],
    },
    {  # the same response twice
        "instruction": "b",
        "input": "i",
        "generator": "sft",
        "ended": [True] * 4,
        "responses": ["x", "y", "x", "z"],
        "scores": [1.0, 0.0, 1.0, -1.0],
    },
    {  # the first prompt again
        "instruction": "a",
        "input": "",
        "generator": "sft",
        "ended": [True] * 4,
        "responses": ["t", "q", "q", "q"],
        "scores": [3.0, 2.0, 2.0, 2.0],
    },
    {  # nothing was scored
        "instruction": "c",
        "input": "",
        "generator": "sft",
        "ended": [True] * 2 + [None] * 2,
        "responses": ["o", None, None, None],
        "scores": [None, None, None, None],
    },
]


def run(tmp_path, rows=ROWS, **changes):
    write_parquet(tmp_path / "scores.parquet", rows)
    page = tiny_farm.settings("best_of_n", tmp_path, scored=str(tmp_path / "scores.parquet"), **changes)
    best_of_n.run(page, str(tmp_path / "best"))
    return [read_table(tmp_path / f"best/{name}.parquet") for name in ("outputs", "rows")]


def test_the_best_of_each_prompt(tmp_path, capsys):
    outputs, rows = run(tmp_path)
    assert outputs == [
        {"instruction": "a", "input": "", "output": "q", "ended": False, "generator": "best_of_n"},
        {"instruction": "b", "input": "i", "output": "x", "ended": True, "generator": "best_of_n"},
        {"instruction": "a", "input": "", "output": "t", "ended": True, "generator": "best_of_n"},
    ]
    # One row a prompt, its best one.
    assert rows == [
        {"instruction": "a", "input": "", "output": "t", "ended": True, "score": 3.0},
        {"instruction": "b", "input": "i", "output": "x", "ended": True, "score": 1.0},
    ]
    counts = json.loads((tmp_path / "best/best_of_n.json").read_text())["counts"]
    assert counts == {
        "response without a score": 5,
        "prompt without a scored response": 1,
        "repeated sample of a prompt": 3,
        "best score shared by different responses, the first taken (row kept)": 1,
        "row above per_prompt": 1,
    }
    assert "row above per_prompt 1" in capsys.readouterr().out


def test_the_best_two_and_more_rows_of_a_prompt(tmp_path):
    outputs, rows = run(tmp_path, top_k=2, per_prompt=3)
    assert [row["outputs"] for row in outputs] == [["q", "r"], ["x", "y"], ["t", "q"]]
    assert outputs[0]["ended"] == [False, True]
    # "q" was kept of two rows of the prompt.
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ("a", "t"),
        ("a", "q"),
        ("a", "r"),
        ("b", "x"),
        ("b", "y"),
    ]
    counts = json.loads((tmp_path / "best/best_of_n.json").read_text())["counts"]
    assert (
        counts["repeated response of a prompt in several rows"] == 1 and "row above per_prompt" not in counts
    )


def test_the_table_is_of_all_samples_with_a_score(tmp_path, capsys):
    """Repeated ones too: they were drawn."""
    run(tmp_path)
    table = best_of_table([[0.5, 2.0, 2.0], [1.0, 0.0, 1.0, -1.0], [3.0, 2.0, 2.0, 2.0]])
    with (tmp_path / "best/best_of_k.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [int(row["k"]) for row in found] == [1, 2, 3, 4] and [row["prompts"] for row in found] == list(
        "3332"
    )
    np.testing.assert_allclose([float(row["score"]) for row in found], [row.score for row in table])
    listed = json.loads((tmp_path / "best/best_of_n.json").read_text())["best_of"]
    np.testing.assert_allclose([row["se"] for row in listed], [row.se for row in table])
    said = capsys.readouterr().out
    assert "      4   +2.0000 ± 1.0000               0.636         2" in said


def test_one_prompt_has_no_standard_error(tmp_path):
    run(tmp_path, ROWS[1:2])
    text = (tmp_path / "best/best_of_n.json").read_text()
    assert "NaN" not in text and json.loads(text)["best_of"][0]["se"] is None


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (ROWS[3:], r"scored: no response of .* has a score \(.*response without a score 4"),
        (
            [{"instruction": "a", "responses": ["x"], "scores": [1.0, 2.0]}],
            "scored: a row has 1 responses and 2",
        ),
        ([{"instruction": "a", "output": "x"}], "responses"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, rows, why):
    with pytest.raises(UserError, match=why):
        run(tmp_path, rows)


def test_it_goes_on_from_generate_and_score_to_sft(tmp_path, farm):
    many = {"samples": 3, "data.rows": 6, "temperature": 1.0}
    generate.run(tiny_farm.settings("generate", farm, **many), str(tmp_path / "samples"))
    responses = {"data.responses": str(tmp_path / "samples/outputs.parquet")}
    score.run(tiny_farm.settings("score", farm, **responses), str(tmp_path / "scores"))
    scored = read_table(tmp_path / "scores/scores.parquet")
    page = tiny_farm.settings("best_of_n", farm, scored=str(tmp_path / "scores/scores.parquet"))
    best_of_n.run(page, str(tmp_path / "best"))
    outputs = read_table(tmp_path / "best/outputs.parquet")
    assert len(outputs) == len(scored) == 6
    for row, made in zip(scored, outputs, strict=True):
        best = int(np.argmax([-np.inf if x is None else x for x in row["scores"]]))
        assert made["output"] == row["responses"][best] and made["ended"] == row["ended"][best]
        assert made["instruction"] == row["instruction"] and made["input"] == row["input"]
    rows, _ = read_instructions(tmp_path / "best/rows.parquet")
    assert [row["output"] for row in rows] == [row["output"] for row in outputs if row["output"].strip()]
