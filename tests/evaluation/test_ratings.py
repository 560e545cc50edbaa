"""Win rates from ratings and rankings against sparse_feedback's formulas by hand, and consistency."""

import math

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.rating_win_rates import (
    consistency,
    ranking_preferences,
    rated_pairs,
    win_rate_from_rankings,
    win_rate_from_ratings,
)


def rated(ratings, outputs=None):
    return [
        {"instruction": f"i{i}", "input": "", "output": (outputs or {}).get(i, "o"), "rating": rating}
        for i, rating in enumerate(ratings)
    ]


def test_ratings_of_the_same_prompts_are_compared():
    r = win_rate_from_ratings(rated([7, 3, 5, "4", 6]), rated([6, 4, 5, 3.5, 2]))
    assert (r.n_wins, r.n_draws, r.n_wins_base, r.n_total) == (3, 1, 1, 5)
    assert r.win_rate == pytest.approx(70)
    scores = [1, 0, 0.5, 1, 1]
    sem = math.sqrt(sum((s - 0.7) ** 2 for s in scores) / 4 / 5)
    assert r.normal_interval == pytest.approx((70 - 196 * sem, 70 + 196 * sem))


def test_the_first_rating_of_a_prompt_counts_and_lone_or_failed_ones_are_missing():
    model = [*rated([7, 3, None, 5, 5]), {"instruction": "i0", "output": "again", "rating": 1}]
    r = win_rate_from_ratings(model, rated([6, 4, 5]), min_coverage=0.3)
    assert (r.n_total, r.n_missing, r.win_rate) == (2, 3, 50)
    with pytest.raises(UserError, match="2 of 5 rows"):
        win_rate_from_ratings(model, rated([6, 4, 5]))


def test_input_is_part_of_the_prompt():
    model = [{"instruction": "i", "input": "a", "output": "o", "rating": 1}]
    with pytest.raises(UserError, match="none of its 1 prompts"):
        win_rate_from_ratings(model, [{**model[0], "input": "b"}])


def test_rankings_by_name_and_by_number():
    rows = [
        {"instruction": "i", "output_1": "a", "output_2": "b", "ranking": said}
        for said in ("(b)", "(a)", "equal", "(b)", "", None)
    ]
    assert ranking_preferences(rows) == [2, 1, 1.5, 2, None, None]
    r = win_rate_from_rankings(rows, min_coverage=0.5)
    assert (r.win_rate, r.n_total, r.n_missing) == (62.5, 4, 2)
    assert win_rate_from_rankings([{"preference": x} for x in (2, 1, 1.5, 2)]).win_rate == 62.5
    with pytest.raises(UserError, match=r"rows\[0\]: ranking: found 'b'"):
        ranking_preferences([{"ranking": "b"}])
    with pytest.raises(UserError, match="no preference and no ranking"):
        ranking_preferences([{"instruction": "i"}])


def test_consistency_is_the_diagonal_of_the_table():
    outputs = "abcd"
    ratings = [
        {"instruction": "i", "output": o, "rating": r} for o, r in zip(outputs, (5, 5, 3, 6), strict=True)
    ]
    ratings.append({"instruction": "i", "output": "a", "rating": 1})  # a second rating does not count
    said = {
        ("a", "b"): "equal",
        ("a", "c"): "(a)",
        ("b", "c"): "(b)",
        ("c", "d"): "(b)",
        ("a", "d"): "equal",
        ("b", "d"): "(a)",
        ("a", "z"): "(a)",
        ("b", "a"): "",
    }
    rankings = [
        {"instruction": "i", "output_1": x, "output_2": y, "ranking": s} for (x, y), s in said.items()
    ]
    rankings.append({**rankings[0], "ranking": "(a)"})  # nor a second ranking
    c = consistency(ratings, rankings)
    # a=b equal: consistent; a>c (a): consistent; b>c (b): not; c<d (b): consistent; a<d equal: not; b<d (a): not
    assert (c.n_total, c.n_unrated, c.n_unranked) == (6, 1, 1)
    assert c.consistency == pytest.approx(50)
    assert c.table["equal"] == {"output_1": 0, "equal": 1, "output_2": 0}
    assert c.table["output_1"] == {"output_1": 1, "equal": 0, "output_2": 1}
    assert c.table["output_2"] == {"output_1": 1, "equal": 1, "output_2": 1}
    with pytest.raises(UserError, match="6 of 8 ranked pairs"):
        consistency(ratings, rankings, min_coverage=0.9)
    with pytest.raises(UserError, match="0 of 8"):
        consistency([{**row, "instruction": "j"} for row in ratings], rankings)


def test_a_rating_that_is_no_number_is_named():
    with pytest.raises(UserError, match=r"model\[0\]: rating: found 'good'"):
        win_rate_from_ratings(rated(["good"]), rated([1]))


def test_ratings_are_compared_with_those_of_the_same_judge():
    both = [{**row, "judge_id": judge} for row in rated([9, 9, 9]) for judge in ("J1", "J2")]
    base = [{**row, "judge_id": "J2", "rating": 8} for row in both]
    mine = [row | {"rating": 9 if row["judge_id"] == "J1" else 7} for row in both]
    assert win_rate_from_ratings(mine, base).win_rate == 0
    # A row that does not say who rated is compared with any.
    assert win_rate_from_ratings(mine, rated([8, 8, 8])).win_rate == 100
    for who in ("judge_id", "annotator"):
        with pytest.raises(UserError, match=r"'J1'.*'J2'"):
            win_rate_from_ratings([{**row, who: "J1"} for row in rated([9])], [{**rated([7])[0], who: "J2"}])
    found = rated_pairs(mine[:1] + mine[3:], [{**row, "judge_id": "J1"} for row in rated([1, 1, 1])])
    assert found.preferences == [2.0, None, 2.0] and found.n_other_judge == 1 and found.n_again == 1


@pytest.mark.parametrize(
    "who",
    [None, "", math.nan, 3, ["a"], {"a": 1}, pytest.param(10**5000, id="more digits than Python writes")],
)
def test_judges_of_any_type(who):
    rows = [{**row, "judge_id": who} for row in rated([9, 1])]
    assert win_rate_from_ratings(rows, rated([2, 2])).win_rate == 50
    assert win_rate_from_ratings(rows, [{**row, "judge_id": who} for row in rated([2, 2])]).win_rate == 50


def test_the_first_rating_that_is_there_counts():
    retried = [row for rating in (None, 6, 1) for row in rated([rating])]
    assert win_rate_from_ratings(retried, rated([4])).win_rate == 100
    ranking = {"instruction": "i0", "output_1": "o", "output_2": "p"}
    ratings = [*retried, {"instruction": "i0", "output": "p", "rating": 3}]
    found = consistency(ratings, [ranking | {"ranking": said} for said in (None, "(a)", "(b)")])
    assert (found.consistency, found.n_total, found.n_unranked) == (100, 1, 0)


def test_consistency_is_of_ratings_by_one_judge():
    ratings = [
        {"instruction": f"i{i}", "output": output, "rating": rating, "judge_id": judge}
        for i, second in ((0, "J1"), (1, "J2"))
        for output, rating, judge in (("a", 5, "J1"), ("b", 3, second))
    ]
    rankings = [{"instruction": f"i{i}", "output_1": "a", "output_2": "b", "ranking": "(a)"} for i in (0, 1)]
    found = consistency(ratings, rankings)
    assert (found.n_total, found.n_other_judge, found.n_unrated) == (1, 1, 0)
    with pytest.raises(UserError, match=r"0 of 1 ranked pairs .* two ratings of one judge"):
        consistency(ratings, rankings[1:])
