"""Leaderboard files as AlpacaEval writes them, and rows that cannot be."""

from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.leaderboard import leaderboard_csv, leaderboard_text
from rlhf_jax.evaluation.leaderboards.published import read_published
from rlhf_jax.evaluation.measures.win_rate import wilson_interval

HEAD = ",win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode,avg_length"


def test_rows_by_name(tmp_path):
    path = tmp_path / "board.csv"
    path.write_text(f"{HEAD}\nm,5.8,0.74,44,759,2,805,5.6,verified,1037\nold,7,,,,,805,,,\nnone,,,,,,,,,\n")
    rows = read_published(path)
    assert list(rows) == ["m", "old"]
    assert rows["m"].numbers() == {
        "win_rate": 5.8,
        "standard_error": 0.74,
        "n_wins": 44,
        "n_wins_base": 759,
        "n_draws": 2,
        "n_total": 805,
        "discrete_win_rate": 5.6,
    }
    assert rows["old"].avg_length is None and rows["old"].numbers() == {"win_rate": 7, "n_total": 805}


def test_as_leaderboard_rows_and_back(tmp_path):
    path = tmp_path / "board.csv"
    head = "method,judge,baseline,win_rate,n_total,length_controlled_winrate"
    path.write_text(f"{head}\nm,gpt,davinci,5.8,805,9.2\nbare,,davinci,5.8,805,\n")
    found = read_published(path)
    row = found["m"].row()
    assert (row.win_rate.win_rate, row.win_rate.n_total, row.win_rate.n_wins) == (5.8, 805, None)
    assert row.win_rate.interval == pytest.approx(wilson_interval(0.058, 805))
    assert "9.2" in leaderboard_text([row]) and "nan" not in leaderboard_text([row])
    path.write_text(leaderboard_csv([row]))
    again = read_published(path)["m"]
    assert (again.judge, again.baseline, again.n_total, again.length_controlled_winrate) == (
        "gpt",
        "davinci",
        805,
        9.2,
    )
    with pytest.raises(UserError, match="bare: judge is not given"):
        found["bare"].row()


@pytest.mark.parametrize("name", ["alpaca_eval_1", "alpaca_eval_2"])
def test_the_shipped_leaderboards_say_by_whom_and_on_how_many(name):
    path = Path(__file__).parents[2] / "configs" / "leaderboards" / f"{name}.csv"
    rows = [published.row() for published in read_published(path).values()]
    assert len(rows) > 1 and all(row.judge and row.baseline and row.win_rate.n_total > 800 for row in rows)


def test_swapped_columns_are_found(tmp_path):
    path = tmp_path / "board.csv"
    path.write_text(f"{HEAD}\nm,1037,0.74,44,759,2,805,5.6,verified,5.8\n")
    with pytest.raises(UserError, match=r"m: win_rate: found '1037'.*columns swapped"):
        read_published(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no leaderboard"):
        read_published(path)
    with pytest.raises(UserError, match="not a readable CSV"):
        read_published(tmp_path / "none.csv")
