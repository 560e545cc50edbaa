"""Bradley-Terry against known strengths and an independent fit; Elo by hand."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.bradley_terry import bradley_terry, elo

TRUTH = {"a": 1200.0, "b": 1050.0, "c": 950.0, "d": 800.0}


def chance(one: str, two: str) -> float:
    return 1 / (1 + 10 ** ((TRUTH[one] - TRUTH[two]) / 400))


def games(n=400, exact=False, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        one, two = rng.choice(list(TRUTH), 2, replace=False)
        p = chance(one, two)
        label = 1 + (p if exact else float(rng.random() < p))
        out.append(
            {"model_1": str(one), "model_2": str(two), "preference": label, "instruction": f"i{i % 80}"}
        )
    return out


def test_known_strengths_are_found():
    found = {r.model: r for r in bradley_terry(games(exact=True), n_bootstrap=20)}
    for name, rating in TRUTH.items():
        assert found[name].rating == pytest.approx(rating, abs=0.2)
    assert [r.model for r in bradley_terry(games(exact=True), n_bootstrap=0)] == list("abcd")
    assert sum(r.n_games for r in found.values()) == 800


def test_the_fit_is_the_likeliest():
    some = games(60, seed=2)
    found = {r.model: r.rating for r in bradley_terry(some, n_bootstrap=0)}
    names = list(TRUTH)

    def loss(r):
        total = 0.0005 * np.sum(r**2)
        for g in some:
            z = r[names.index(g["model_2"])] - r[names.index(g["model_1"])]
            y = g["preference"] - 1
            total += math.log1p(math.exp(z)) - y * z
        return total

    r = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x * 400 / math.log(10)
    for i, name in enumerate(names):
        assert found[name] == pytest.approx(1000 + r[i] - r.mean(), abs=0.5)


def test_intervals_hold_the_truth_and_an_anchor_stands_still():
    inside = 0
    for seed in range(20):
        rows = bradley_terry(games(600, seed=seed), n_bootstrap=40, seed=seed)
        mean = np.mean(list(TRUTH.values()))
        inside += sum(r.interval[0] <= TRUTH[r.model] - mean + 1000 <= r.interval[1] for r in rows)
    assert 0.85 <= inside / 80 <= 1.0
    anchored = {r.model: r for r in bradley_terry(games(), anchor="c", n_bootstrap=10)}
    assert anchored["c"].rating == 1000 and anchored["c"].interval == (1000, 1000)


def test_draws_missing_labels_and_unbeaten_models():
    rows = [
        {"model_1": "x", "model_2": "y", "preference": 1.5, "instruction": "i"},
        {"model_1": "y", "model_2": "x", "preference": None, "instruction": "j"},
        {"model_1": "y", "model_2": "z", "preference": 2, "instruction": "k"},
    ]
    found = {r.model: r for r in bradley_terry(rows, n_bootstrap=5)}
    assert found["x"].rating == pytest.approx(found["y"].rating, abs=3)
    assert math.isfinite(found["z"].rating) and found["z"].rating > found["y"].rating + 400
    assert (found["y"].win_rate, found["y"].n_games, found["z"].win_rate) == (25, 2, 100)


def test_groups_that_never_met_are_refused():
    rows = [
        {"model_1": "a", "model_2": "b", "preference": 1},
        {"model_1": "c", "model_2": "d", "preference": 2},
    ]
    with pytest.raises(UserError, match="c, d never met a"):
        bradley_terry(rows)
    with pytest.raises(UserError, match="plays itself"):
        bradley_terry([{"model_1": "a", "model_2": "a", "preference": 1}])
    with pytest.raises(UserError, match="none of 1 has a label"):
        bradley_terry([{"model_1": "a", "model_2": "b", "preference": None}])
    with pytest.raises(UserError, match="anchor: 'q'"):
        bradley_terry(rows[:1], anchor="q")


def test_elo_by_hand_and_its_order():
    rows = [
        {"model_1": "a", "model_2": "b", "preference": 2},
        {"model_1": "a", "model_2": "b", "preference": 1},
    ]
    first = 0.5 * 10
    back = 10 * (0 - 1 / (1 + 10 ** (-2 * first / 400)))
    found = elo(rows, k=10, orders=1)
    assert found["b"][0] == pytest.approx(1000 + first + back)
    assert found["a"][0] + found["b"][0] == pytest.approx(2000)
    many = elo(games(), k=4, orders=20)
    order = sorted(many, key=lambda name: -many[name][0])
    assert order == list("abcd") and many["a"][1] > 0
    with pytest.raises(UserError, match="positive k"):
        elo(rows, k=0)
