"""Best of k: every estimate against all subsets, its standard error, and the bound of its KL divergence."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.best_of_k import best_of_table, expected_best, kl_bound, order_weights


@pytest.mark.parametrize(
    "scores", [[0.3], [2.0, -1.0], [1.0, 1.0, 0.0, 1.0], [0.5, -2.0, 3.0, 0.1, 0.1, 7.0, -1.0]]
)
def test_it_is_the_mean_over_all_subsets(scores):
    for k, found in enumerate(expected_best(scores), start=1):
        assert found == pytest.approx(np.mean([max(x) for x in itertools.combinations(scores, k)]), rel=1e-12)


def test_it_is_unbiased():
    """The mean over many draws of four samples is the expected best of two of a die."""
    rolls = np.random.default_rng(0).integers(1, 7, size=(20000, 4))
    found = np.array([expected_best(row)[1] for row in rolls])
    assert found.mean() == pytest.approx(161 / 36, abs=4 * found.std() / math.sqrt(len(found)))


def test_weights_of_a_thousand_samples_are_probabilities():
    weights = order_weights(1024)
    assert np.isfinite(weights).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-9)
    exact = math.comb(899, 15) / math.comb(1024, 16)  # of i = 900, k = 16
    assert weights[15, 899] == pytest.approx(exact, rel=1e-9)


def test_the_table():
    rows = best_of_table([[1.0, 3.0], [0.0, 0.0], [5.0]])
    assert [row.k for row in rows] == [1, 2] and [row.prompts for row in rows] == [3, 2]
    assert rows[0].score == pytest.approx((2 + 0 + 5) / 3) and rows[1].score == pytest.approx(1.5)
    assert rows[0].se == pytest.approx(np.std([2, 0, 5], ddof=1) / math.sqrt(3))
    assert math.isnan(best_of_table([[1.0]])[0].se) and best_of_table([]) == []


def test_the_kl_bound():
    assert kl_bound(1) == 0 and kl_bound(16) == pytest.approx(math.log(16) - 15 / 16)
    # Met where no two responses are alike: the best of k of uniform ranks has density k u^(k-1).
    u = (np.arange(10**6) + 0.5) / 10**6
    assert kl_bound(4) == pytest.approx(np.mean(4 * u**3 * np.log(4 * u**3)), abs=1e-4)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(UserError, match=r"^scores: nan is no finite number"):
        expected_best([1.0, float("nan")])
