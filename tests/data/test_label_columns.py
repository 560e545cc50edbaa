"""What a file says of its labels: annotators, confidence, margins, ratings."""

import math

import pytest

from rlhf_jax.data.records.label_columns import about_label, read_rated, with_margin
from rlhf_jax.data.records.left_out import UsedColumns
from rlhf_jax.data.records.records import read_pairs
from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.errors import UserError

PAIR = {"prompt": "p", "output_1": "a", "output_2": "b", "preference": 1.0}


@pytest.mark.parametrize(
    ("row", "annotator", "confidence"),
    [
        ({"preference": 1.0, "annotator": "j", "p_2": 0.2}, "j", 0.8),
        ({"preference": 2.0, "p_2": 0.9}, "", 0.9),
        ({"preference": 1.7, "p_2": None}, "", 0.7),
        # Whole labels do not say how sure somebody was.
        ({"preference": 2.0, "annotator": None}, "", math.nan),
        ({"preference": 2.0, "p_2": 0.1, "annotator": "j", "status": "noise"}, "label noise", math.nan),
        ({"chosen": "a"}, "", math.nan),
    ],
)
def test_who_gave_a_label_and_how_sure(row, annotator, confidence):
    found = about_label(UsedColumns(row))
    assert found["annotator"] == annotator
    assert found["confidence"] == pytest.approx(confidence, nan_ok=True)


def test_margins_of_pairs_and_what_has_none():
    rows = [
        PAIR | {"prompt": "1", "preference": 1.2, "strength": 3},
        PAIR | {"prompt": "2", "preference": 2.0, "strength": 0.0},
        PAIR | {"prompt": "3", "strength": None},
        PAIR | {"prompt": "4", "strength": -1.0},
        PAIR | {"prompt": "5", "strength": "much"},
    ]
    kept, counts = read_pairs(rows, beside=with_margin("strength"))
    assert [row["beside"]["margin"] for row in kept] == [3.0, 0.0]
    assert counts == {
        "strength is missing": 1,
        "strength is below 0": 1,
        "strength is not a number": 1,
    }
    kept, _ = read_pairs(rows[:2], beside=with_margin("preference"))
    assert [row["beside"]["margin"] for row in kept] == pytest.approx([0.6, 1.0])


def test_what_is_said_of_a_label_does_not_tell_equal_pairs_apart():
    rows = [PAIR | {"annotator": "j"}, PAIR | {"annotator": "k"}]
    kept, counts = read_pairs(rows, beside=about_label)
    assert len(kept) == 1 and counts["duplicate"] == 1


def test_ratings_off_the_scale_are_counted():
    given = [1, 7.0, 4.5, 0, 8, None, "5", True]
    rows = [{"prompt": "p", "output": f"o{i}", "rating": x} for i, x in enumerate(given)]
    rows.append({"prompt": "p", "output": "x", "rating": 3, "status": "parse_error"})
    rows = [{"status": "ok"} | row for row in rows]
    kept, counts = read_rated(rows, low=1, high=7, whole=False)
    assert [row["beside"]["rating"] for row in kept] == [1.0, 7.0, 4.5]
    assert counts["rating out of [1, 7]"] == 2 and counts["rating is missing"] == 1
    assert counts["rating is not a number"] == 2 and counts["status=parse_error"] == 1
    assert read_rated(rows, low=1, high=7, whole=True)[1]["rating between two levels"] == 1
    with pytest.raises(UserError, match="none of its 1 rows can be used"):
        read_rated(rows[3:4], low=1, high=7, whole=False)


def test_which_of_two_scored_responses_is_labelled_better():
    rows = [
        PAIR | {"preference": 1.9, "annotator": "j"},
        PAIR | {"preference": 1.5},
        PAIR | {"status": "refused"},
        PAIR | {"preference": None},
    ]
    labels = [row.label for row in read_responses(rows)[0]]
    assert labels[0] == {"better": 1, "annotator": "j", "confidence": pytest.approx(0.9)}
    assert labels[1:] == [{}, {}, {}]
    chosen = read_responses([{"prompt": "p", "chosen": "a", "rejected": "b"}])[0][0]
    assert chosen.label["better"] == 0 and chosen.responses == ["a", "b"]
    assert read_responses([{"prompt": "p", "outputs": ["a", "b"], "preference": 1}])[0][0].label == {}
