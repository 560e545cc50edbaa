"""One scale for many models from their games against each other: Bradley-Terry strengths and Elo ratings.

A game is a mapping with model_1, model_2, preference in [1, 2] (None is left out) and instruction, by which
intervals resample. The scale is Elo's: 400 points are odds of 10 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.logistic import fit_logistic
from rlhf_jax.evaluation.measures.win_rate import read_preferences

CENTRE = 1000.0
_POINTS = 400 / math.log(10)
_RIDGE = 1e-3  # keeps a model that won or lost every game finite


@dataclass(frozen=True)
class Rating:
    """A model's rating in Elo points with its 95 % percentile bootstrap interval over instructions.

    win_rate: the mean of its scores in percent, over its n_games games.
    """

    model: str
    rating: float
    interval: tuple[float, float]
    win_rate: float
    n_games: int


def bradley_terry(
    games: Sequence[Mapping],
    *,
    anchor: str = "",
    seed: int = 0,
    n_bootstrap: int = 200,
) -> list[Rating]:
    """Bradley-Terry (1952) ratings, best first: P(2 beats 1) = 1 / (1 + 10^((r_1 - r_2) / 400)).

    A draw is half a win for both, a graded preference that share of one. anchor: the model that is at 1000;
    "" puts the mean there. Unlike Elo's they do not depend on the order of the games. Raises UserError for no
    labelled game, an unknown anchor, or groups of models that never met: between those nothing is known.
    """
    names, pairs, scores_PI, counts_PI = _table(games)
    _check_connected(names, pairs)
    if anchor and anchor not in names:
        raise UserError(f"anchor: {anchor!r} played no game; use one of {', '.join(names)}")
    design = np.zeros((len(pairs), len(names)))
    design[np.arange(len(pairs)), pairs[:, 0]], design[np.arange(len(pairs)), pairs[:, 1]] = -1.0, 1.0

    def fit(weights_I: np.ndarray) -> np.ndarray:
        counts = counts_PI @ weights_I
        played = counts > 0
        # A sum of graded preferences may be beyond the number of games by a rounding error.
        share = np.clip((scores_PI @ weights_I)[played] / counts[played], 0, 1)
        r = CENTRE + _POINTS * fit_logistic(design[played], share, counts[played], ridge=_RIDGE)
        # Games tell differences only; where the scale begins is our choice.
        return r - (r[names.index(anchor)] if anchor else r.mean()) + CENTRE

    instructions = scores_PI.shape[1]
    ratings = fit(np.ones(instructions))
    # A resample is how often each instruction counts: a fit then sees counts by pair, where SciPy's bootstrap hands
    # it all games anew.
    draws = np.random.default_rng(seed).multinomial(
        instructions, np.full(instructions, 1 / instructions), n_bootstrap
    )
    resampled = np.array([fit(draw.astype(float)) for draw in draws]) if n_bootstrap else ratings[None]
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    won, played = _totals(names, pairs, scores_PI.sum(axis=1), counts_PI.sum(axis=1))
    rows = [
        Rating(
            name, float(ratings[i]), (float(low[i]), float(high[i])), 100 * won[i] / played[i], int(played[i])
        )
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (-row.rating, row.model))


def elo(
    games: Sequence[Mapping], *, k: float = 4.0, orders: int = 100, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Elo ratings as played one game after the other: model -> (mean, standard deviation) over random orders.

    Every model starts at 1000 and moves by k times what the game surprised; the sum stays 1000 each. The
    spread over orders is what the sequence alone does, a reason to prefer `bradley_terry`. Errors as there.
    """
    if not k > 0 or orders < 1:
        raise UserError(f"elo: k={k} and orders={orders}; give a positive k and at least one order")
    names, ones, twos, scores, _ = _played(games)
    found = np.empty((orders, len(names)))
    rng = np.random.default_rng(seed)
    for o in range(orders):
        ratings = [CENTRE] * len(names)
        # A single order is the one in which the games were given.
        for g in rng.permutation(len(scores)) if orders > 1 else range(len(scores)):
            one, two = ones[g], twos[g]
            expected = 1 / (1 + 10 ** ((ratings[one] - ratings[two]) / 400))
            moved = k * (scores[g] - expected)
            ratings[one] -= moved
            ratings[two] += moved
        found[o] = ratings
    spread = found.std(axis=0)
    return {name: (float(found[:, i].mean()), float(spread[i])) for i, name in enumerate(names)}


def _played(games: Sequence[Mapping]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, list[object]]:
    """Names, the two models' numbers and the second's score of every labelled game, and its instruction."""
    labels = read_preferences([game["preference"] for game in games]) - 1
    used = [(game, label) for game, label in zip(games, labels, strict=True) if not math.isnan(label)]
    if not used:
        raise UserError(f"games: none of {len(games)} has a label; annotate them first")
    for i, (game, _) in enumerate(used):
        if game["model_1"] == game["model_2"]:
            raise UserError(f"games[{i}]: {game['model_1']!r} plays itself; give two different models")
    names = sorted({game[side] for game, _ in used for side in ("model_1", "model_2")})
    number = {name: i for i, name in enumerate(names)}
    ones, twos = (np.array([number[game[side]] for game, _ in used]) for side in ("model_1", "model_2"))
    instructions = [game.get("instruction", i) for i, (game, _) in enumerate(used)]
    return names, ones, twos, np.array([label for _, label in used]), instructions


def _table(games: Sequence[Mapping]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, the pairs that met [P, 2], and the second's score and the games of each by instruction [P, I]."""
    names, ones, twos, scores, instructions = _played(games)
    # A pair is one row whoever stood first; its score is that of the model with the higher number.
    flip = ones > twos
    low, high = np.where(flip, twos, ones), np.where(flip, ones, twos)
    pairs, p = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
    column = {text: i for i, text in enumerate(dict.fromkeys(instructions))}
    i = np.array([column[text] for text in instructions])
    scores_PI, counts_PI = np.zeros((len(pairs), len(column))), np.zeros((len(pairs), len(column)))
    np.add.at(scores_PI, (p.ravel(), i), np.where(flip, 1 - scores, scores))
    np.add.at(counts_PI, (p.ravel(), i), 1.0)
    return names, pairs, scores_PI, counts_PI


def _check_connected(names: Sequence[str], pairs: np.ndarray) -> None:
    met = sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(len(names), len(names)))
    _, group = sparse.csgraph.connected_components(met, directed=False)
    apart = [name for name, its in zip(names, group, strict=True) if its != group[pairs[0, 0]]]
    if apart:
        raise UserError(
            f"games: {', '.join(apart)} never met {names[int(pairs[0, 0])]}, not even through others; give "
            "games against a common model, or rate the groups apart"
        )


def _totals(
    names: Sequence[str], pairs: np.ndarray, scores_P: np.ndarray, counts_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    won, played = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(won, pairs[:, 1], scores_P)
    np.add.at(won, pairs[:, 0], counts_P - scores_P)
    for side in (0, 1):
        np.add.at(played, pairs[:, side], counts_P)
    return won, played
