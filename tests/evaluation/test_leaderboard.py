"""Order, alignment and honesty of the leaderboard in its three forms."""

import csv
import io

import pytest

from rlhf_jax.evaluation.leaderboards.leaderboard import (
    CSV_COLUMNS,
    LeaderboardRow,
    average_length,
    leaderboard_csv,
    leaderboard_markdown,
    leaderboard_text,
    sort_rows,
)
from rlhf_jax.evaluation.measures.length_control import length_controlled_win_rate
from rlhf_jax.evaluation.measures.win_rate import utility_win_rate, win_rate


def row(method, wins=None, *, n=10, judge="clean", baseline="sft", missing=0, utility=None, **more):
    judged = None if wins is None else win_rate([2] * wins + [1] * (n - wins) + [None] * missing)
    known = None if utility is None else utility_win_rate(utility, [0.5] * len(utility))
    return LeaderboardRow(method, judge, baseline, judged, 120, n, known, "sft" if known else "", **more)


def test_order_baseline_at_fifty_unjudged_last_ties_by_utility_then_name():
    rows = [
        row("unjudged"),
        row("bad", 2),
        row("b-tie", 8, utility=[0.9, 0.1]),
        row("sft"),
        row("a-tie", 8, utility=[0.9, 0.1]),
        row("better-utility", 8, utility=[0.9, 0.8]),
    ]
    names = [r.method for r in sort_rows(rows)]
    assert names == ["better-utility", "a-tie", "b-tie", "sft", "bad", "unjudged"]


def test_text_is_aligned_and_every_rate_has_its_n():
    text = leaderboard_text([row("ppo", 8, missing=2), row("a-longer-name", 3), row("sft")])
    lines = text.splitlines()
    assert lines[0].split() == ["#", "method", "win", "rate", "95", "%", "n", "length"]
    ends = {line.rindex("120") for line in lines[2:5]}
    assert len(ends) == 1
    assert "80.0 ± 13.3" in lines[2] and "10 of 12" in lines[2]
    assert lines[3].split()[:3] == ["2", "sft", "baseline"]
    assert "[10.8, 60.3]" in lines[4]
    assert "judge clean against sft" in text and "Wilson score interval, 95 %" in text
    assert "bootstrap" not in text


def test_utility_columns_appear_when_known():
    text = leaderboard_text([row("ppo", 8, utility=[0.9, 0.8, 0.5, 0.1]), row("dpo", 7)])
    assert "utility win rate" in text and "62.5" in text and "0.575" in text and "bootstrap" in text


def test_mixed_judges_are_shown_in_every_row():
    rows = [row("ppo", 8), row("dpo", 9, judge="pool")]
    for table in (leaderboard_text(rows), leaderboard_markdown(rows)):
        assert "pool" in table and "judge" in table.splitlines()[0]
    assert "judge clean against" not in leaderboard_text(rows)


def test_markdown_cells_cannot_break_the_table():
    lines = leaderboard_markdown([row("a|b\n<script>", 5)]).splitlines()
    assert lines[2].startswith("| 1 | a\\|b &lt;script> | clean | sft | 50.0 ± 16.7 |")
    assert [line.replace("\\|", "").count("|") for line in lines[:3]] == [10, 10, 10]


def test_judge_id_baseline_and_coverage_are_with_every_number():
    rows = [row("ppo", 8, missing=2, judge_id="0123abcd"), row("dpo", 6, judge_id="0123abcd")]
    lines = leaderboard_markdown(rows).splitlines()
    assert "| clean (0123abcd) | sft | 80.0 ± 13.3 | [49.0, 94.3] | 10 of 12 | 83.3 % |" in lines[2]
    assert "| clean (0123abcd) | sft | 60.0" in lines[3] and "| 100.0 % |" in lines[3]
    assert "judge clean (0123abcd) against sft" in leaderboard_text(rows)
    records = list(csv.DictReader(io.StringIO(leaderboard_csv(rows))))
    assert [r["judge_id"] for r in records] == ["0123abcd"] * 2
    assert float(records[0]["coverage"]) == pytest.approx(10 / 12)
    assert (records[0]["n_wins"], records[0]["n_draws"], records[0]["n_wins_base"]) == ("8", "0", "2")
    other = [row("ppo", 8, judge_id="a"), row("dpo", 6, judge_id="b")]
    assert "judge" in leaderboard_text(other).splitlines()[0]  # one name, two judges


def test_length_controlled_column_appears_when_it_was_measured():
    labelled = [
        {"instruction": f"{i}", "output_1": "x" * 50, "output_2": "y" * (40 + i), "preference": 1 + i % 2}
        for i in range(30)
    ]
    found = length_controlled_win_rate(labelled)
    rows = [row("ppo", 8, length_controlled=found), row("dpo", 7)]
    said = f"{found.win_rate:.1f} ± {found.standard_error:.1f}"
    assert said in leaderboard_text(rows) and said in leaderboard_markdown(rows)
    assert "as long as the baseline's" in leaderboard_text(rows)
    record = next(csv.DictReader(io.StringIO(leaderboard_csv(rows))))
    assert float(record["length_controlled"]) == pytest.approx(found.win_rate, abs=1e-12)
    assert record["n_length_controlled"] == "30"


def test_csv_has_full_precision_and_empty_fields_for_what_does_not_exist():
    rows = [row("ppo", 1, n=3, utility=[0.9, 0.8, 0.2]), row("sft"), row("one", 1, n=1)]
    records = list(csv.DictReader(io.StringIO(leaderboard_csv(rows))))
    assert tuple(records[0]) == CSV_COLUMNS
    by_name = {r["method"]: r for r in records}
    assert float(by_name["ppo"]["win_rate"]) == pytest.approx(100 / 3, abs=1e-12)
    assert by_name["ppo"]["n_total"] == by_name["ppo"]["n_utility"] == "3"
    assert by_name["ppo"]["judge"] == "clean" and by_name["ppo"]["utility_base"] == "sft"
    assert by_name["sft"]["win_rate"] == by_name["sft"]["utility_win_rate"] == ""
    assert by_name["one"]["standard_error"] == ""
    assert [r["rank"] for r in records] == ["1", "2", "3"]


def test_average_length_truncates():
    assert average_length(["aa", "aaa"]) == 2 and average_length([]) == 0
