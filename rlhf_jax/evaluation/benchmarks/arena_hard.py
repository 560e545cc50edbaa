"""Arena-Hard (Li et al. 2024): models against one baseline, each pair judged in both orders with five verdicts.

"Significantly better" counts as several games (three), any other verdict as one. A model's score is the share of its
games that it wins, a tie being half: with one baseline that is the Bradley-Terry win rate, too.

With style control (appendix A.2) the win rate is that of a logistic regression

    logit P(model wins) = beta_model + sum_c gamma_c z_c,        score = sigmoid(beta_model)

in which z_c is how much more of style c the model's response has than the baseline's, over its standard deviation; any
other covariate of a game will do as well. arena-hard-auto also subtracts the mean of z_c. Its scores are then those at
the mean difference of style, and not at none, and move when a wordy model joins: `centred` repeats that.

Intervals at 95 % resample prompts: all models' games on a prompt, of both orders, go together, where arena-hard-auto
resamples single games and counts three copies of a verdict as three observations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.logistic import fit_logistic

_RIDGE = 1e-6  # Keeps a model finite that won or lost every game.


class ArenaGame(NamedTuple):
    """A judgment. score: 1 where the model is better, 0 the baseline, 1/2 a tie. weight: how many games it is."""

    prompt: str
    model: str
    score: float
    weight: float = 1.0


@dataclass(frozen=True)
class ArenaScore:
    """A model's score in percent with its interval, over n_games judgments of n_prompts prompts.

    plain: its score without style control, the same where there is none. n_strong: verdicts that count several times.
    """

    model: str
    score: float
    interval: tuple[float, float]
    plain: float
    n_prompts: int
    n_games: int
    n_strong: int


@dataclass(frozen=True)
class ArenaBoard:
    """Scores, best first. draws: model -> its score in each resample [B]. styles: covariate -> (gamma, interval)."""

    category: str
    baseline: str
    scores: tuple[ArenaScore, ...]
    draws: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)
    styles: Mapping[str, tuple[float, tuple[float, float]]] = field(default_factory=dict)


def arena_board(
    games: Sequence[ArenaGame],
    *,
    category: str = "",
    baseline: str = "",
    covariates: Mapping[str, Sequence[float]] | None = None,
    centred: bool = False,
    seed: int = 0,
    n_bootstrap: int = 100,
) -> ArenaBoard:
    """Scores every model of the games [N].

    covariates: name -> a number for each game [N], 0 where model and baseline are alike; None controls for nothing.
    Raises UserError for no game, a score or weight that is none, and a covariate that is not finite or never varies.
    """
    _check(games)
    prompts = {name: i for i, name in enumerate(dict.fromkeys(game.prompt for game in games))}
    models = sorted({game.model for game in games})
    prompt_N = np.array([prompts[game.prompt] for game in games])
    model_N = np.array([models.index(game.model) for game in games])
    y_N, s_N = np.array([g.score for g in games], np.float64), np.array([g.weight for g in games], np.float64)
    styles = _standardised(covariates or {}, model_N, centred)
    Z_NS = np.stack(list(styles.values()), axis=1) if styles else np.zeros((len(games), 0))
    X_NK = np.concatenate([np.eye(len(models))[model_N], Z_NS], axis=1)
    plain = _shares(y_N, s_N, model_N, len(models))

    def scores(times_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights_N = s_N * times_P[prompt_N]
        if not styles:
            return _shares(y_N, weights_N, model_N, len(models)), np.zeros(0)
        used = weights_N > 0
        w = fit_logistic(X_NK[used], y_N[used], weights_N[used], ridge=_RIDGE)
        there = np.bincount(model_N, weights_N, len(models)) > 0
        return np.where(there, 100 * expit(w[: len(models)]), math.nan), w[len(models) :]

    found_M, gamma_S = scores(np.ones(len(prompts)))
    rng = np.random.default_rng(seed)
    times_BP = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), n_bootstrap)
    resampled = [scores(times.astype(np.float64)) for times in times_BP]
    draws_BM = np.array([one[0] for one in resampled]).reshape(n_bootstrap, len(models))
    gammas_BS = np.array([one[1] for one in resampled]).reshape(n_bootstrap, len(styles))
    draws = {name: draws_BM[:, m] for m, name in enumerate(models)}
    counts = Counter(game.model for game in games)
    rows = [
        ArenaScore(
            name,
            float(found_M[m]),
            _percentiles(draws_BM[:, m]),
            float(plain[m]),
            len({game.prompt for game in games if game.model == name}),
            counts[name],
            sum(game.weight > 1 for game in games if game.model == name),
        )
        for m, name in enumerate(models)
    ]
    if baseline and baseline not in draws:
        # Half of its games against itself, by definition and without a doubt.
        rows.append(ArenaScore(baseline, 50.0, (50.0, 50.0), 50.0, 0, 0, 0))
        draws[baseline] = np.full(n_bootstrap, 50.0)
    return ArenaBoard(
        category,
        baseline,
        tuple(sorted(rows, key=lambda row: (-row.score, row.model))),
        draws,
        {name: (float(gamma_S[c]), _percentiles(gammas_BS[:, c])) for c, name in enumerate(styles)},
    )


def _shares(y_N: np.ndarray, s_N: np.ndarray, model_N: np.ndarray, n_models: int) -> np.ndarray:
    """The weighted share of games won, in percent [M]; NaN for a model without a game in this resample."""
    won = np.bincount(model_N, s_N * y_N, n_models)
    played = np.bincount(model_N, s_N, n_models)
    return 100 * np.divide(won, played, out=np.full(n_models, math.nan), where=played > 0)


def _standardised(
    covariates: Mapping[str, Sequence[float]], model_N: np.ndarray, centred: bool
) -> dict[str, np.ndarray]:
    made = {}
    for name, values in covariates.items():
        z = np.asarray(values, np.float64)
        if z.shape != model_N.shape or not np.isfinite(z).all():
            raise UserError(
                f"style: {name}: {len(z)} values for {len(model_N)} games; give a finite one each"
            )
        if not z.any():
            continue  # Alike in every game, it can have moved none.
        # By ends and not by a deviation, which rounding keeps above 0: equal thirds have one of 6e-17.
        tiny = 1e-9 * np.abs(z).max()
        if all(np.ptp(z[model_N == model]) <= tiny for model in np.unique(model_N)):
            same = f"{z[0]:g} in every game" if np.ptp(z) <= tiny else "the same in every game of each model"
            raise UserError(f"style: {name}: {same}, which nothing can tell from the model; leave it out")
        made[name] = (z - z.mean() * centred) / float(z.std(ddof=1))
    return made


def _percentiles(draws_B: np.ndarray) -> tuple[float, float]:
    usable = draws_B[~np.isnan(draws_B)]
    if not len(usable):
        return math.nan, math.nan
    low, high = np.percentile(usable, [2.5, 97.5])
    return float(low), float(high)


def _check(games: Sequence[ArenaGame]) -> None:
    if not games:
        raise UserError("arena: no game has a verdict; judge some first")
    for i, game in enumerate(games):
        if not 0 <= game.score <= 1 or not (0 < game.weight < math.inf):
            raise UserError(
                f"arena: game {i + 1}: score {game.score}, weight {game.weight}; give [0, 1] and > 0"
            )
