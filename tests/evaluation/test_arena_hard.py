"""Arena-Hard: shares of games, style control, and what a benchmark's scores are worth, beside NumPy and SciPy."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.benchmarks.arena_hard import ArenaGame, arena_board
from rlhf_jax.evaluation.benchmarks.response_style import CONTROLS, STYLES, style_counts, style_differences
from rlhf_jax.evaluation.benchmarks.separability import alignment, separability
from rlhf_jax.evaluation.measures.length_control import length_controlled_win_rate


def made_games(n=300, seed=0):
    """Games of three models whose true strength is 1, 0 and -1; what is longer wins more often."""
    rng = np.random.default_rng(seed)
    games, length = [], []
    for (m, beta), i, _ in itertools.product(enumerate((1.0, 0.0, -1.0)), range(n), range(2)):
        z = rng.normal(0.8 * (1 - m), 1.0)
        won = rng.random() < 1 / (1 + math.exp(-(beta + 1.5 * z)))
        games.append(ArenaGame(f"p{i}", f"m{m}", float(won), 3.0 if rng.random() < 0.3 else 1.0))
        length.append(z)
    return games, np.array(length)


def test_a_score_is_the_weighted_share_of_games():
    games = [
        ArenaGame("p", "m", 1.0, 3.0),
        ArenaGame("p", "m", 0.0),
        ArenaGame("q", "m", 0.5),
        ArenaGame("q", "m", 0.0, 3.0),
        ArenaGame("p", "other", 1.0),
    ]
    found = arena_board(games, baseline="base")
    rows = {row.model: row for row in found.scores}
    assert [row.model for row in found.scores] == ["other", "base", "m"]
    assert rows["m"].score == rows["m"].plain == 100 * 3.5 / 8
    assert (rows["m"].n_prompts, rows["m"].n_games, rows["m"].n_strong) == (2, 4, 2)
    assert (rows["base"].score, rows["base"].interval) == (50, (50, 50))
    # Three ways to draw two prompts: p p, q q, and one of each.
    assert set(found.draws["m"].round(6)) == {75.0, 12.5, 43.75}
    assert np.isnan(found.draws["other"]).any() and rows["other"].interval == (100, 100)


def test_intervals_go_by_prompts_and_not_by_copies_of_a_verdict():
    rng = np.random.default_rng(0)
    one = [ArenaGame(f"p{i}", "m", float(rng.random() < 0.6)) for i in range(100)]
    heavy = [game._replace(weight=3.0) for game in one for _ in range(2)]
    a, b = (arena_board(games, n_bootstrap=400).scores[0] for games in (one, heavy))
    assert a.score == b.score and a.interval == pytest.approx(b.interval)
    half = 196 * math.sqrt(a.score / 100 * (1 - a.score / 100) / 100)
    assert a.interval[1] - a.interval[0] == pytest.approx(2 * half, rel=0.2)


@pytest.mark.parametrize("centred", [False, True])
def test_style_control_is_the_logistic_regression_of_the_paper(centred):
    games, z = made_games()
    found = arena_board(games, covariates={"length": z}, centred=centred, n_bootstrap=5)
    x = (z - (z.mean() if centred else 0)) / z.std(ddof=1)
    which = np.array([int(game.model[1]) for game in games])
    y, s = (np.array([getattr(game, name) for game in games]) for name in ("score", "weight"))

    def loss(w):
        logit = w[which] + w[3] * x
        return float(s @ (np.logaddexp(0, logit) - y * logit))

    w = optimize.minimize(loss, np.zeros(4), tol=1e-12).x
    scores = {row.model: row.score for row in found.scores}
    for m in range(3):
        assert scores[f"m{m}"] == pytest.approx(100 / (1 + math.exp(-w[m])), abs=0.01)
    assert found.styles["length"][0] == pytest.approx(w[3], abs=1e-3)
    if not centred:
        # Without style the models are .73, .5 and .27; counted plainly, length lifts the first.
        assert scores["m0"] == pytest.approx(73.1, abs=6) and scores["m1"] == pytest.approx(50, abs=6)
        assert next(row.plain for row in found.scores if row.model == "m0") > scores["m0"] + 2


def test_a_covariate_that_says_nothing():
    games, z = made_games(20)
    found = arena_board(games, covariates={"bold": np.zeros(len(games))}, n_bootstrap=5)
    assert not found.styles and all(row.score == row.plain for row in found.scores)
    with pytest.raises(UserError, match="style: length: 2 in every game"):
        arena_board(games, covariates={"length": np.full(len(games), 2.0)})
    # Of ten equal thirds rounding makes a deviation of 6e-17, and all models were level then.
    with pytest.raises(UserError, match=r"style: length: 0\.333333 in every game"):
        arena_board(games[:10], covariates={"length": np.full(10, 1 / 3)})
    own = np.array([1 / 3 if game.model == "m0" else 0.1 for game in games])
    with pytest.raises(UserError, match="style: length: the same in every game of each model"):
        arena_board(games, covariates={"length": own})
    with pytest.raises(UserError, match="style: length: 3 values for 120 games"):
        arena_board(games, covariates={"length": z[:3]})
    with pytest.raises(UserError, match="no game has a verdict"):
        arena_board([])


TEXT = """# Title

Some **bold** and __strong **within**__ words, 2 * 3 * 4.
  1. one
  2. two
- three

```python
# no header
- no item **nor bold**
```
####### seven
#nothing
"""


def test_markdown_is_counted_outside_of_code():
    assert style_counts(TEXT) == {"length": len(TEXT), "headers": 1, "lists": 3, "bold": 3}
    assert style_counts("") == dict.fromkeys(STYLES, 0)


def test_differences_of_style():
    a = {"length": 300.0, "headers": 3.0, "lists": 0.0, "bold": 6.0}
    b = {"length": 100.0, "headers": 3.0, "lists": 0.0, "bold": 0.0}
    found = style_differences([a, b, a], [b, a, a], ("length", "headers", "lists", "bold"))
    np.testing.assert_allclose(found["length"], [0.5, -0.5, 0])
    np.testing.assert_allclose(found["headers"], np.array([-0.02, 0.02, 0]) / (1 + 0.04))
    np.testing.assert_allclose(found["bold"], np.array([0.02, -0.02, 0]) / (1 + 0.02))
    assert not found["lists"].any()


def test_length_control_takes_any_of_the_styles():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        texts = ["word " * int(rng.integers(1, 9)) + "**b** " * int(rng.integers(0, 5)) for _ in range(2)]
        more_bold = texts[1].count("**b**") - texts[0].count("**b**")
        won = rng.random() < 1 / (1 + math.exp(-2 * more_bold))
        rows.append(
            {"instruction": f"i{i}", "output_1": texts[0], "output_2": texts[1], "preference": 1.0 + won}
        )
    controls = {name: CONTROLS[name] for name in ("length", "bold")}
    weights = length_controlled_win_rate(rows, controls=controls).weights
    # The baseline's value minus the model's: what the model has more of has a weight below 0.
    assert weights["bold"] < -1.5 and abs(weights["length"]) < 1


INTERVALS = {"a": (60.0, 70.0), "b": (50.0, 60.0), "c": (40.0, 49.0), "d": (10.0, 20.0)}


def test_separability_counts_pairs_whose_intervals_are_apart():
    assert separability(INTERVALS) == (pytest.approx(500 / 6), 6)  # Only a and b touch.
    assert math.isnan(separability({"a": (0.0, 1.0)})[0])
    assert separability({"a": (math.nan, math.nan), "b": (0.0, 1.0)}) == (0, 1)


def test_agreement_with_confidence():
    scores = {"a": 65.0, "b": 55.0, "c": 45.0, "d": 15.0}
    theirs = {"a": 10.0, "b": 12.0, "c": 5.0, "d": 20.0, "e": 1.0}
    ends = {"a": (9.5, 10.5), "b": (11.0, 13.0), "c": (3.0, 9.0), "d": (19.0, 21.0)}
    found = alignment(scores, theirs, intervals=INTERVALS, reference_intervals=ends)
    # ab: not apart here. ac, bc: the same order. ad, bd, cd: the other one.
    assert found.agreement == pytest.approx(100 * (0 + 1 + 1 - 1 - 1 - 1) / 6)
    mine, other = ([some[name] for name in scores] for some in (scores, theirs))
    assert found.spearman == pytest.approx(stats.spearmanr(mine, other).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(mine, other).statistic)
    assert (found.n_models, found.n_pairs) == (4, 6) and math.isnan(found.brier)
    unknown = alignment(scores, theirs, intervals=INTERVALS)
    assert math.isnan(unknown.agreement)
    with pytest.raises(UserError, match="1 of its models"):
        alignment(scores, {"a": 1.0, "x": 2.0}, intervals=INTERVALS)


def test_brier_score_of_pairs():
    rng = np.random.default_rng(0)
    draws = {"a": rng.normal(1, 1, 5000), "b": rng.normal(0, 1, 5000), "c": rng.normal(-4, 1, 5000)}
    truth = {"a": 1.0, "b": 2.0, "c": 0.0}
    scores = {name: float(x.mean()) for name, x in draws.items()}
    found = alignment(scores, truth, intervals=dict.fromkeys(draws, (0.0, 0.0)), draws=draws)
    # Independent draws: P(x < y) = Phi((mu_y - mu_x) / sqrt(2)), the paper's formula.
    p_ab, p_ac, p_bc = (stats.norm.cdf(d / math.sqrt(2)) for d in (-1.0, -5.0, -4.0))
    assert found.brier == pytest.approx(((p_ab - 1) ** 2 + p_ac**2 + p_bc**2) / 3, abs=0.02)
    # The same prompts for both: a difference of a little is sure, though the scores alone are not.
    shared = rng.normal(0, 10, 500)
    paired = {"a": shared + rng.normal(0.5, 0.1, 500), "b": shared}
    found = alignment({"a": 0.5, "b": 0.0}, {"a": 2.0, "b": 1.0}, intervals=INTERVALS, draws=paired)
    assert found.brier < 1e-4
    even = alignment({"a": 0.5, "b": 0.0}, {"a": 1.0, "b": 1.0}, intervals=INTERVALS, draws=paired)
    assert even.n_even == 1 and math.isnan(even.brier)
    sure = {"a": np.full(9, 2.0), "b": np.full(9, 2.0)}
    assert alignment({"a": 2.0, "b": 2.0}, truth, intervals=INTERVALS, draws=sure).brier == 0.25
