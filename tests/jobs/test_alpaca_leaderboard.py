"""`alpaca_leaderboard(path, name)`: a model among published rows, each with its judge."""

import json
from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.evaluate.alpaca_results import alpaca_leaderboard

ROOT = Path(__file__).parents[2]
JUDGE = ROOT / "configs/judges/micro_clean.yaml"


def files(folder: Path, n: int = 30) -> tuple[Path, Path]:
    """AlpacaEval's baseline form (input joined to the instruction) and AlpacaFarm's (input apart)."""
    asked = [(f"List {i} fruits.", "in English" if i % 3 == 0 else "") for i in range(n)]
    base = [
        {"instruction": f"{a}\n\n{b}" if b else a, "output": "apple", "generator": "text_davinci_003"}
        for a, b in asked
    ]
    mine = [
        {
            "instruction": a,
            "input": b,
            "output": "Here they are: " + "apple, " * (i % 7 + 1),
            "generator": "gen",
        }
        for i, (a, b) in enumerate(asked[: n - 6])
    ]
    mine.append({"instruction": "Something else.", "input": "", "output": "no"})
    paths = folder / "base.json", folder / "mine.json"
    for path, rows in zip(paths, (base, mine), strict=True):
        path.write_text(json.dumps(rows))
    return paths


def test_a_model_is_ranked_among_the_published(tmp_path, capsys):
    base, mine = files(tmp_path)
    how = {"baseline": base, "judges": JUDGE, "cache_path": tmp_path / "answers.sqlite"}
    rows = alpaca_leaderboard(mine, name="My fancy model", **how)
    told = capsys.readouterr().out
    by_name = {row.method: row for row in rows}
    ours = by_name["My fancy model"]
    assert (ours.win_rate.n_total, ours.n_outputs, ours.baseline) == (24, 25, "text_davinci_003")
    assert ours.judge == "micro_clean" and len(ours.judge_id) == 16
    assert "24 of 30 instructions of text_davinci_003" in told and "1 of its 25 outputs" in told
    assert by_name["alpaca-7b"].win_rate.n_total == 805 and by_name["alpaca-7b"].judge == "alpaca_eval_gpt4"
    table = [line.split() for line in told.splitlines() if "alpaca-7b" in line or "My fancy" in line]
    assert any("26.5" in line for line in table) and any(ours.judge_id in " ".join(line) for line in table)
    rates = [row.win_rate.win_rate for row in rows]
    assert rates == sorted(rates, reverse=True)
    again = alpaca_leaderboard(json.loads(mine.read_text()), published=None, **how)
    assert [row.method for row in again] == ["gen"] and again[0].win_rate == ours.win_rate
    assert "24 cached" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path):
    how = {"baseline": files(tmp_path)[0], "judges": JUDGE, "cache_path": None}
    with pytest.raises(UserError, match="no such file"):
        alpaca_leaderboard(tmp_path / "none.json", **how)
    with pytest.raises(UserError, match="no rows"):
        alpaca_leaderboard([], **how)
    with pytest.raises(UserError, match=r"outputs\[0\]: instruction and output must be text"):
        alpaca_leaderboard([{"instruction": "i", "output": None}], **how)
    with pytest.raises(UserError, match="none of its 1 prompts"):
        alpaca_leaderboard([{"instruction": "other", "output": "x"}], **how)
    with pytest.raises(UserError, match="no column 'output'"):
        alpaca_leaderboard([{"instruction": "i", "response": "x"}], **how)
