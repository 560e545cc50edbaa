"""The evaluator table: AlpacaEval's definitions written out again, and its documented example."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.evaluators import evaluator, one_against_the_rest


def crowd(labels_PK, name="g", **extra):
    """Rows of P pairs with K annotations each."""
    return [
        {
            "instruction": f"i{p}",
            "output_1": "short",
            "output_2": "long " * 20 if p % 2 else "- a list",
            "generator": f"{name}{p % 4}",
            "preference": label,
            **extra,
        }
        for p, labels in enumerate(labels_PK)
        for label in labels
    ]


def test_one_against_three_of_the_documented_example():
    # AlpacaEval's Analyzer documents these two pairs: 0.875.
    found = one_against_the_rest({("a", "", "x", "y"): [1, 1, 1, 1], ("b", "", "x", "y"): [2, 2, 2, 1]})
    assert (found.value, found.n) == (0.875, 2)


def mode(labels):
    """Every most frequent label."""
    counts = {x: labels.count(x) for x in labels}
    return [x for x in counts if counts[x] == max(counts.values())]


def score(a, b):
    return np.mean([1 - abs(x - y) for x, y in itertools.product(a, b)])


def test_agreement_bias_and_variance_by_their_definitions():
    rng = np.random.default_rng(0)
    judge, gold = rng.choice([1.0, 2.0], (60, 4)), rng.choice([1.0, 2.0], (60, 4))
    found = evaluator("j", crowd(judge), crowd(gold))
    majority = [mode(list(row)) for row in gold]
    agreement = np.mean([score([x], majority[p]) for p in range(60) for x in judge[p]])
    bias = 1 - np.mean([score(mode(list(judge[p])), majority[p]) for p in range(60)])
    others = [
        score([judge[p, k]], mode([x for i, x in enumerate(judge[p]) if i != k]))
        for p in range(60)
        for k in range(4)
    ]
    assert found.human_agreement.value == pytest.approx(100 * agreement)
    assert found.bias.value == pytest.approx(100 * bias)
    assert found.variance.value == pytest.approx(100 * (1 - np.mean(others)))
    assert (found.human_agreement.n, found.n_parsed, found.n_rows) == (60, 240, 240)
    humans = evaluator("humans", crowd(gold), crowd(gold), is_gold=True)
    assert humans.bias.value == 0
    assert humans.human_agreement.value == pytest.approx(100 - humans.variance.value)


def test_graded_labels_take_the_median():
    found = evaluator("j", crowd([[1.2, 1.4, 2.0, 1.0]]), crowd([[1, 1, 1, 2]]))
    assert found.human_agreement.value == pytest.approx(100 * np.mean([0.8, 0.6, 0.0, 1.0]))
    assert found.bias.value == pytest.approx(100 * 0.3)


def test_missing_labels_have_no_vote():
    found = evaluator("j", crowd([[1, None, 1], [2, 2, None]]), crowd([[1, 1], [1, 1]]), min_coverage=0.5)
    # k=0: 1 and 0; k=1: only pair 2, 0; k=2: only pair 1, 1.
    assert found.human_agreement.value == pytest.approx(50)
    assert (found.n_parsed, found.n_rows) == (4, 6)
    with pytest.raises(UserError, match="4 of 6 rows"):
        evaluator("j", crowd([[1, None, 1], [2, 2, None]]), crowd([[1, 1], [1, 1]]))


@pytest.mark.filterwarnings("error")
def test_correlations_over_generators():
    rng = np.random.default_rng(2)
    judge, gold = rng.choice([1.0, 2.0], (80, 2)), rng.choice([1.0, 2.0], (80, 2))
    found = evaluator("j", crowd(judge), crowd(gold), min_per_generator=10)
    mine, theirs = ([x[g::4].mean() for g in range(4)] for x in (judge, gold))
    assert found.spearman.value == pytest.approx(spearmanr(mine, theirs).statistic)
    assert found.pearson.value == pytest.approx(pearsonr(mine, theirs).statistic)
    assert found.spearman.n == 4
    few = evaluator("j", crowd(judge), crowd(gold), min_per_generator=1000)
    assert math.isnan(few.spearman.value) and few.spearman.n == 0
    same = evaluator("j", crowd(np.ones((80, 2))), crowd(gold), min_per_generator=10)
    assert math.isnan(same.pearson.value) and same.pearson.n == 4


def test_tastes_costs_and_time():
    labels = [[2, 1], [2, 2], [1, 1], [2, 2]]
    rows = crowd(labels, price_usd=0.002, latency_ms=500.0, order="21")
    rows[0]["price_usd"] = None
    found = evaluator("j", rows, crowd(labels))
    # Distinct pairs, first annotation: pairs 1 and 3 differ in length, and the longer one wins both.
    assert (found.biases.prefers_longer, found.biases.n_longer) == (100, 2)
    assert (found.biases.prefers_list, found.biases.n_list) == (50, 2)
    assert (found.biases.prefers_first, found.biases.n_first) == (62.5, 8)
    assert found.prefers_1.value == pytest.approx(37.5)
    assert (found.usd.value, found.usd.n) == (pytest.approx(2.0), 7)
    assert found.seconds.value == pytest.approx(500)
    assert evaluator("j", crowd(labels, time_per_example=2.0), crowd(labels)).seconds.value == 2000
    unknown = evaluator("j", crowd(labels), crowd(labels))
    assert math.isnan(unknown.usd.value) and unknown.usd.n == 0 and unknown.biases.n_first == 0


def test_nothing_in_common_is_refused():
    with pytest.raises(UserError, match="none of its 1 pairs is among the 2 gold ones"):
        evaluator("j", [{**crowd([[1]])[0], "instruction": "other"}], crowd([[1], [2]]))


def test_pairs_the_other_way_round_and_labels_of_old():
    gold = crowd([[2], [1], [0], [1.25]])
    mine = [
        row | {"output_1": row["output_2"], "output_2": row["output_1"], "preference": label}
        for row, label in zip(gold, (1, 2, 0, 1.75), strict=True)
    ]
    found = evaluator("j", mine, gold)
    assert (found.human_agreement.value, found.human_agreement.n) == (100, 4)
    missing = evaluator("j", [mine[0] | {"preference": -1}, *mine[1:]], gold, min_coverage=0.5)
    assert (missing.human_agreement.value, missing.human_agreement.n) == (100, 3)


def test_tastes_are_of_the_first_label_that_is_there():
    rows = [row | {"preference": label} for row in crowd([[2]] * 4) for label in (None, row["preference"])]
    assert evaluator("j", rows, crowd([[2]] * 4), min_coverage=0.5).biases.n_longer == 2
