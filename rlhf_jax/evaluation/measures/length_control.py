"""Length-controlled win rate (Dubois et al. 2024, AlpacaEval 2): the win rate as if outputs were equally long.

For a model m against a baseline, over rows i:

    logit P(m wins row i) = sum_c phi_c tanh(delta_ci / std_c) + psi difficulty_i + theta

with delta_c the baseline's value of a control c minus the model's (length in characters, and whatever else is to
be held equal), std_c its sample standard deviation over the model's rows, and difficulty_i a number per
instruction, left out where there is none. The win rate is the mean of sigmoid(psi difficulty_i + theta): the
controls at zero. phi and psi are held to what the controls alone do by rows of a regulariser: outputs of the
baseline model itself, prompted to be verbose or concise, against the baseline. They have no theta and a small
weight each (AlpacaEval: 0.1).

Rows are label rows: instruction, input, output_1 (the baseline's), output_2, preference in [1, 2].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.logistic import choose_l1_strength, fit_logistic, fit_logistic_l1
from rlhf_jax.evaluation.measures.win_rate import WinRate, read_preferences, win_rate

Control = Callable[[str], float]
LENGTH: Mapping[str, Control] = {"length": len}
REGULARISER_WEIGHT = 0.1  # AlpacaEval: lambda 0.2, halved because two gamed baselines share it
CROSS_VALIDATED = "cross-validated"
DIFFICULTY, MODEL = "difficulty", "model"
SCALED = "length_difference_in_std"  # a row of a regulariser may hold this instead of outputs


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate, in percent.

    standard_error: of the estimate, by the sandwich formula (uncertain weights) plus the sampling of
    instructions. prediction_error: AlpacaEval's lc_standard_error, the standard error of the predictions
    alone, which is much smaller and no confidence interval. weights: phi by control, and psi and theta under
    "difficulty" and "model". raw: the plain win rate of the same rows. extreme: the two differ by more than
    10 points and more than a quarter of the room there was: look at the fit before believing it.
    """

    win_rate: float
    standard_error: float
    prediction_error: float
    weights: Mapping[str, float]
    n_total: int
    n_missing: int
    n_regulariser: int
    raw: WinRate
    extreme: bool


def length_controlled_win_rate(
    rows: Sequence[Mapping],
    *,
    controls: Mapping[str, Control] = LENGTH,
    difficulty: Mapping[str, float] | None = None,
    regulariser: Sequence[Mapping] = (),
    regulariser_weight: float = REGULARISER_WEIGHT,
    l1_strength: float | str | None = None,
    ridge: float = 1e-4,
    min_coverage: float = 0.8,
) -> LengthControlled:
    """The win rate of the rows' model with every control held equal.

    controls: name -> value of an output; the default is its length. difficulty: by instruction (with its input
    after a blank line, if it has one), for every row; None leaves the term out. regulariser: rows of gamed
    baselines, told apart by `generator_2`; instead of outputs they may hold `length_difference_in_std`, the
    baseline's length minus theirs in standard deviations. l1_strength: None fits with a small `ridge`; a number gives
    liblinear's L1 objective with that C, and "cross-validated" chooses C as AlpacaEval's pipeline does.

    Identical outputs in every row are the baseline itself: 50 by construction, all weights 0. Raises UserError
    below `min_coverage`, for a missing difficulty, and for a control that never varies.
    """
    raw = win_rate([row["preference"] for row in rows], min_coverage=min_coverage)
    if all(row["output_1"] == row["output_2"] for row in rows):
        weights = dict.fromkeys([*controls, *([DIFFICULTY] if difficulty is not None else []), MODEL], 0.0)
        return LengthControlled(50.0, 0.0, 0.0, weights, raw.n_total, raw.n_missing, 0, raw, False)
    X, y, names = _design(rows, controls, difficulty, theta=1.0)
    groups: dict[object, list[Mapping]] = {}
    for row in regulariser:
        groups.setdefault(row.get("generator_2"), []).append(row)
    # Without theta: what gamed outputs of the baseline teach belongs to length, and to no model. Each baseline is
    # scaled by its own standard deviation.
    extra = [_design(group, controls, difficulty, theta=0.0) for group in groups.values()]
    X_all, y_all = np.concatenate([X, *(e[0] for e in extra)]), np.concatenate([y, *(e[1] for e in extra)])
    s_all = np.where(np.arange(len(X_all)) < len(X), 1.0, regulariser_weight)
    known = ~np.isnan(y_all)
    X_fit, y_fit, s_fit = X_all[known], y_all[known], s_all[known]
    w = _fit(X_fit, y_fit, s_fit, l1_strength, ridge)

    at_zero = X.copy()  # AlpacaEval predicts for every row, also those without a label
    at_zero[:, : len(controls)] = 0.0
    p = expit(at_zero @ w)
    rate, n = 100 * float(p.mean()), len(rows)
    spread = float(p.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    # The delta method: how the mean prediction moves with each weight.
    own = (p * (1 - p)) @ at_zero / n
    uncertain = own @ _covariance(X_fit, y_fit, s_fit, w, ridge) @ own
    return LengthControlled(
        win_rate=rate,
        standard_error=100 * math.sqrt(uncertain + (0.0 if math.isnan(spread) else spread**2)),
        prediction_error=100 * spread,
        weights=dict(zip(names, map(float, w), strict=True)),
        n_total=raw.n_total,
        n_missing=raw.n_missing,
        n_regulariser=int(known[len(X) :].sum()),
        raw=raw,
        extreme=_is_extreme(raw.win_rate, rate),
    )


def instruction_key(row: Mapping) -> str:
    """What a difficulty is known by: the instruction, with its input after a blank line."""
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


def any_vs_any(
    weights: Mapping[str, Mapping[str, float]],
    model: str,
    against: str,
    difficulties: Sequence[float] = (0.0,),
) -> float:
    """The length-controlled win rate of one fitted model against another, in percent, by their weights.

    Both must have been fitted against one baseline. mean_i sigmoid((theta_m - theta_b) + (psi_m - psi_b)
    difficulty_i); the baseline itself has weights 0. Raises UserError for a model without weights.
    """
    for name in (model, against):
        if name not in weights:
            raise UserError(f"model: {name!r} has no weights; there are {', '.join(weights) or 'none'}")
    theta, psi = (
        weights[model].get(name, 0.0) - weights[against].get(name, 0.0) for name in (MODEL, DIFFICULTY)
    )
    return 100 * float(expit(theta + psi * np.asarray(difficulties, np.float64)).mean())


def _design(
    rows: Sequence[Mapping],
    controls: Mapping[str, Control],
    difficulty: Mapping[str, float] | None,
    *,
    theta: float,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features [N, K], labels [N] (NaN where missing) and the features' names."""
    columns = [scaled_difference(rows, name, control) for name, control in controls.items()]
    names = list(controls)
    if difficulty is not None:
        keys = [instruction_key(row) for row in rows]
        lacking = [key for key in keys if key not in difficulty]
        if lacking:
            raise UserError(
                f"difficulty: {len(lacking)} of {len(keys)} rows have none, the first for {lacking[0][:60]!r}; "
                "give one for every instruction, or leave difficulty out"
            )
        columns.append(np.array([float(difficulty[key]) for key in keys]))
        names.append(DIFFICULTY)
    columns.append(np.full(len(rows), theta))
    labels = read_preferences([row["preference"] for row in rows]) - 1
    return np.stack(columns, axis=1), labels, [*names, MODEL]


def scaled_difference(rows: Sequence[Mapping], name: str, control: Control) -> np.ndarray:
    """tanh(delta / std) of a control [N]; 0 throughout where both outputs always agree."""
    if rows and SCALED in rows[0]:
        if name != "length":
            raise UserError(f"regulariser: its rows hold lengths without outputs; {name} cannot be a control")
        return np.tanh(np.array([row[SCALED] for row in rows], np.float64))
    delta = np.array([float(control(row["output_1"])) - float(control(row["output_2"])) for row in rows])
    if not delta.any():
        return delta
    # By its ends, since rounding keeps the deviation of equal numbers above 0.
    if np.ptp(delta) <= 1e-9 * np.abs(delta).max():
        raise UserError(
            f"controls: {name}: the difference is {delta[0]:g} in every row, which nothing can tell from the "
            "model; leave this control out"
        )
    # tanh, so that one output of ten times the length does not decide the weight of length. ddof=1 is pandas' default,
    # with which AlpacaEval's weights were fitted.
    return np.tanh(delta / float(delta.std(ddof=1)))


def _fit(
    X: np.ndarray, y: np.ndarray, s: np.ndarray, l1_strength: float | str | None, ridge: float
) -> np.ndarray:
    if l1_strength is None:
        return fit_logistic(X, y, s, ridge=ridge)
    if isinstance(l1_strength, str):
        if l1_strength != CROSS_VALIDATED:
            raise UserError(f"l1_strength: found {l1_strength!r}; give a number or {CROSS_VALIDATED!r}")
        l1_strength = choose_l1_strength(X, y, s)
    return fit_logistic_l1(X, y, s, strength=l1_strength)


def _covariance(X: np.ndarray, y: np.ndarray, s: np.ndarray, w: np.ndarray, ridge: float) -> np.ndarray:
    """Sandwich covariance of the weights [K, K]: H^-1 (sum_n g_n g_n') H^-1; scikit-learn tells none."""
    p = expit(X @ w)
    # A pseudo-inverse: without a ridge, a control that is 0 in every row has no curvature at all.
    bread = np.linalg.pinv((X.T * (s * p * (1 - p))) @ X + ridge * np.eye(X.shape[1]))
    g = X * (s * (p - y))[:, None]
    return bread @ (g.T @ g) @ bread


def _is_extreme(raw: float, controlled: float) -> bool:
    low = min(raw - raw / 4, raw - 10)
    high = max(raw + (100 - raw) / 4, raw + 10)
    return not low <= controlled <= high
