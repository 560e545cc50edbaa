"""AlpacaEval's files of length control: rows without outputs fit like those with them, weights go round."""

import csv
import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.alpaca_eval_files import (
    NO_WEIGHTS,
    read_gamed,
    read_weights,
    weights_csv,
)
from rlhf_jax.evaluation.measures.agreement import has_list
from rlhf_jax.evaluation.measures.length_control import (
    any_vs_any,
    instruction_key,
    length_controlled_win_rate,
)


def make_rows(n, seed, name):
    rng = np.random.default_rng(seed)
    return [
        {
            "instruction": f"i{i}",
            "input": "",
            "output_1": "a" * int(rng.integers(50, 200)),
            "output_2": "b" * int(rng.integers(50, 200)),
            "generator_2": name,
            "preference": 1 + float(rng.random()),
        }
        for i in range(n)
    ]


def write_gamed(path, groups, difficulty, drop=""):
    columns = [
        c for c in ("index", "std_delta_len", "instruction_difficulty", "preference", "model") if c != drop
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for rows in groups:
            delta = np.array([len(r["output_1"]) - len(r["output_2"]) for r in rows], float)
            for i, (row, x) in enumerate(zip(rows, delta / delta.std(ddof=1), strict=True)):
                label = "" if row["preference"] is None else row["preference"] - 1
                record = {"index": i, "std_delta_len": x, "instruction_difficulty": difficulty[f"i{i}"]}
                writer.writerow(record | {"preference": label, "model": row["generator_2"]})


def test_the_file_fits_like_the_rows_it_was_made_from(tmp_path):
    rows, groups = make_rows(80, 0, "m"), [make_rows(80, 1, "verbose"), make_rows(80, 2, "concise")]
    groups[0][5]["preference"] = None
    difficulty = {f"i{i}": math.sin(i) for i in range(80)}
    write_gamed(tmp_path / "df_gamed.csv", groups, difficulty)
    gamed = read_gamed(tmp_path / "df_gamed.csv", rows)
    assert gamed.difficulty == pytest.approx(difficulty) and len(gamed.rows) == 160
    assert instruction_key(gamed.rows[3]) == "i3"
    by_file = length_controlled_win_rate(rows, difficulty=gamed.difficulty, regulariser=gamed.rows)
    by_rows = length_controlled_win_rate(rows, difficulty=difficulty, regulariser=[*groups[0], *groups[1]])
    assert by_file.win_rate == pytest.approx(by_rows.win_rate, abs=1e-9)
    assert by_file.n_regulariser == by_rows.n_regulariser == 159
    with pytest.raises(UserError, match="list cannot be a control"):
        length_controlled_win_rate(rows, regulariser=gamed.rows, controls={"length": len, "list": has_list})


def test_weights_go_round_and_compare_any_two(tmp_path):
    # Two rows of the published file.
    (tmp_path / "w.csv").write_text(
        ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"
        "gpt4_1106_preview,0.0,0.0,0.0\nvicuna-13b,-1.795,1.071,-3.188\nalpaca-7b,-2.207,0.986,-3.691\n"
    )
    weights = read_weights(tmp_path / "w.csv")
    assert weights["vicuna-13b"] == {"length": -1.795, "difficulty": 1.071, "model": -3.188}
    assert weights["gpt4_1106_preview"] == NO_WEIGHTS
    won = any_vs_any(weights, "vicuna-13b", "alpaca-7b")
    assert won == pytest.approx(100 / (1 + math.exp(-(3.691 - 3.188))))
    (tmp_path / "again.csv").write_text(weights_csv(weights | {"plain": {"length": 1.0, "model": 2.0}}))
    again = read_weights(tmp_path / "again.csv")
    assert again == weights | {"plain": {"length": 1.0, "model": 2.0}}


def test_bad_files_are_one_line(tmp_path):
    path, rows = tmp_path / "bad.csv", make_rows(3, 0, "m")
    write_gamed(path, [rows], {f"i{i}": 0.5 for i in range(3)}, drop="model")
    with pytest.raises(UserError, match="no column 'model'"):
        read_gamed(path, rows)
    write_gamed(path, [rows], {f"i{i}": "hard" for i in range(3)})
    with pytest.raises(UserError, match="row 1: instruction_difficulty: found 'hard'"):
        read_gamed(path, rows)
    write_gamed(path, [rows], {f"i{i}": 0.5 for i in range(3)})
    with pytest.raises(UserError, match="row 3: index: found 2; the evaluation set has 2 rows"):
        read_gamed(path, rows[:2])
    with pytest.raises(UserError, match="not a readable CSV"):
        read_weights(tmp_path / "none.csv")
