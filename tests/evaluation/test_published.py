"""Leaderboard files as AlpacaEval writes them, and rows that cannot be."""

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.published import read_published

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
