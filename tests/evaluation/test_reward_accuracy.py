"""Accuracy of a reward model by annotator, confidence and margin, against the other measures and by hand."""

import json

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.agreement import calibration
from rlhf_jax.evaluation.measures.reward_accuracy import reward_accuracy
from rlhf_jax.evaluation.measures.win_rate import wilson_interval


def test_the_reliability_table_is_that_of_calibration():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 83))
    rejected[:3] = chosen[:3]
    found, known = reward_accuracy(chosen, rejected), calibration(chosen, rejected, np.ones(83))
    assert found.overall.n == 83 and found.overall.accuracy == pytest.approx(known.accuracy)
    assert found.overall.interval == pytest.approx(known.interval, abs=1e-9)
    assert found.calibration_error == pytest.approx(known.calibration_error)
    for row, bin_ in zip(found.margins, known.bins, strict=True):
        assert (row.n, row.name) == (bin_.n, f"{bin_.low:.2f} to {bin_.high:.2f}")
        assert (row.accuracy, row.predicted) == pytest.approx((bin_.accuracy, bin_.confidence))


def test_groups_by_hand():
    found = reward_accuracy(
        [1.0, 0.0, 2.0, 1.0, 3.0],
        [0.0, 1.0, 0.0, 1.0, 0.0],
        annotators=["b", "a", "b", "a", ""],
        confidence=[0.95, np.float32(0.6), 1.0, 0.55, np.nan],
    )
    assert [(g.name, g.n, g.accuracy) for g in found.annotators] == [("a", 2, 25.0), ("b", 2, 100.0)]
    assert [(g.name, g.n, g.accuracy) for g in found.confidence] == [
        ("0.5 to 0.6", 1, 50.0),
        ("0.6 to 0.7", 1, 0.0),
        ("0.9 to 1.0", 2, 100.0),
    ]
    assert found.annotators[0].interval == pytest.approx(wilson_interval(0.25, 2))
    # An untrained model says one number: nothing is predicted above chance, and it is calibrated.
    flat = reward_accuracy(np.zeros(4), np.zeros(4))
    assert (flat.overall.accuracy, flat.overall.predicted, flat.calibration_error) == (50, 50, 0)
    assert json.loads(json.dumps(found.as_dict()))["annotators"][1]["n"] == 2
    assert found.lines()[0].startswith("accuracy 70.0 % [")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotators": ["a"]}, "annotators: 1 rows for 2 pairs"),
        ({"confidence": [0.4, 0.9]}, "confidence: some is outside"),
        ({"rejected": [np.nan, 0.0]}, "diverged reward model"),
        ({"rejected": [0.0]}, "rejected: 1 rows for 2 pairs"),
    ],
)
def test_what_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        reward_accuracy(**{"chosen": [1.0, 2.0], "rejected": [0.0, 0.0]} | changes)
