"""Judges' labels of a rollout's responses become scores, by hand."""

import pytest

from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RANKING, RATING
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.asked_rows import asked, baseline_outputs, judged_responses, questions

ONE, TWO = {"instruction": "A", "input": "x", "output": "old"}, {"instruction": "B"}


def label(kind, status="ok", usd=0.5, **values):
    row = {"kind": kind, "status": status, "transport": "online", "price_usd": usd, "label_id": str(values)}
    return row | {"preference": None, "rating": None} | values


def test_prompts_are_shown_as_instruction_and_input():
    assert asked(ONE) == {"instruction": "A", "input": "x"}
    assert asked({"prompt": "Say it."}) == {"instruction": "Say it.", "input": ""}
    talk = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    said = "\n\nHuman: user\n\nAssistant: assistant\n\nHuman: user\n\nAssistant:"
    assert asked({"messages": talk}) == {"instruction": said, "input": ""}


def test_ratings_are_the_numbers_of_the_judge():
    found = questions(RATING, [ONE, ONE, TWO], ["p", "q", "r"])
    assert [q.row for q in found][1] == {"instruction": "A", "input": "x", "output": "q"}
    assert [q.members for q in found] == [(0,), (1,), (2,)]
    labels = [
        label(RATING, rating=6),
        label(RATING, status="parse_error", text="?"),
        label(RATING, rating=2.5),
    ]
    judged = judged_responses(3, [q.members for q in found], labels)
    assert judged.scores == [6.0, 0.0, 2.5] and judged.readable == [True, False, True]
    assert judged.usd == [0.5] * 3  # an answer that cannot be read was paid for, too


def test_a_response_meets_the_baseline():
    found = questions(PAIRWISE, [ONE, TWO], ["p", "q"], {("A", "x"): "a", ("B", ""): "b"})
    assert [q.row for q in found] == [
        {"instruction": "A", "input": "x", "output_1": "a", "output_2": "p"},
        {"instruction": "B", "input": "", "output_1": "b", "output_2": "q"},
    ]
    labels = [label(PAIRWISE, preference=2.0), label(PAIRWISE, preference=1.25)]
    judged = judged_responses(2, [q.members for q in found], labels)
    # A preference of 1.25 is a win probability of 1/4.
    assert judged.scores == [1.0, -0.5] and judged.readable == [True, True]


def test_responses_to_a_prompt_meet_each_other_and_no_others():
    # The same prompt drawn twice has an object for each time: its samples are two groups.
    again = dict(ONE)
    found = questions(PAIRWISE, [ONE, ONE, ONE, again, again, TWO], list("pqrstu"))
    assert [q.members for q in found] == [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert found[1].row == {"instruction": "A", "input": "x", "output_1": "p", "output_2": "r"}
    labels = [
        label(PAIRWISE, preference=1.0),
        label(PAIRWISE, preference=1.5, transport=None, price_usd=None),
        label(PAIRWISE, status="refused", preference=None),
        None,
    ]
    judged = judged_responses(6, [q.members for q in found], labels)
    # 0 beat 1 and drew with 2; nobody could say of (1, 2); (3, 4) has no answer; 5 is alone.
    assert judged.scores == [0.5, -1.0, 0.0, 0.0, 0.0, 0.0]
    assert judged.readable == [True, True, True, False, False, True]
    assert judged.usd == [0.25, 0.5, 0.25, 0.0, 0.0, 0.0]


def test_a_ranking_is_the_pairs_that_it_decides():
    found = questions(RANKING, [ONE] * 3 + [TWO], list("pqrs"))
    assert [q.members for q in found] == [(0, 1, 2)] and found[0].row["outputs"] == ["p", "q", "r"]
    row = label(RANKING, completions=[{"rank": 2}, {"rank": 1}, {"rank": 2}])
    judged = judged_responses(4, [q.members for q in found], [row])
    assert judged.scores == [-0.5, 1.0, -0.5, 0.0]


def test_an_answer_to_two_equal_questions_is_paid_once():
    rows = [label(RATING, rating=3)] * 2
    judged = judged_responses(2, [(0,), (1,)], rows)
    assert judged.usd == [0.5, 0.0] and judged.scores == [3.0, 3.0]


def test_a_baseline_has_the_first_output_to_each_prompt():
    rows = [ONE, ONE | {"output": "later"}, TWO | {"output": "b"}]
    assert baseline_outputs(rows, "reward.baseline", "F") == ({("A", "x"): "old", ("B", ""): "b"}, 1)
    with pytest.raises(UserError, match=r"^reward.baseline: F: row 0 has no output"):
        baseline_outputs([TWO], "reward.baseline", "F")
