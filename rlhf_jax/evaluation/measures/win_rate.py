"""Win rates of judge preferences (AlpacaEval's formulas) and of known utilities, with n and 95 % intervals.

Preferences are in AlpacaEval's orientation: output_1 is the baseline, output_2 the model; 1 = baseline
better, 2 = model better, anything between = 1 + P(model better), 1.5 = draw, and 0 = draw in legacy files.
Rates, standard errors and intervals are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError

INTERVAL_NAME = "Wilson score interval, 95 %"
BOOTSTRAP_NAME = "percentile bootstrap over instructions, 95 %"

_MISSING_IN_CACHE = -1.0  # AlpacaEval's cache writes -1 for "asked and failed"
_UTILITY_TIE = 1e-9  # utilities closer than rounding error are equal


@dataclass(frozen=True)
class WinRate:
    """Win rate of a model against a baseline. Percent, except the counts.

    `standard_error` is NaN for a single row. `interval` is a Wilson score interval at 95 %: its variance
    p(1-p) is the largest that scores in [0, 1] with mean p can have, so draws and graded preferences make it
    conservative, and it stays honest where every row agrees and the standard error is 0. The counts of wins
    and draws and the discrete win rate are None only in rows that others published without them.
    """

    win_rate: float
    standard_error: float
    interval: tuple[float, float]
    n_wins: int | None
    n_wins_base: int | None
    n_draws: int | None
    n_total: int
    n_missing: int
    discrete_win_rate: float | None

    @property
    def coverage(self) -> float:
        """The share of all rows that have a label."""
        return self.n_total / (self.n_total + self.n_missing)

    @property
    def normal_interval(self) -> tuple[float, float]:
        """win_rate ± 1.96 standard errors, as sparse_feedback reports it; may leave [0, 100]."""
        half = 1.96 * self.standard_error
        return self.win_rate - half, self.win_rate + half


@dataclass(frozen=True)
class UtilityWinRate:
    """How often the model's utility beats the base's on the same instructions (tie = half).

    Percent, except counts and utilities. `interval` is a seeded percentile bootstrap at 95 %.
    """

    win_rate: float
    interval: tuple[float, float]
    n_wins: int
    n_losses: int
    n_ties: int
    n_total: int
    mean_utility: float
    mean_utility_base: float


def read_preferences(preferences: Sequence[object], name: str = "preference") -> np.ndarray:
    """Preferences as float64 [N]: legacy 0 becomes 1.5; None, NaN and -1 become NaN (missing).

    Takes lists, NumPy arrays and pyarrow columns. Raises UserError, naming the row, for truth values and for
    anything else outside [1, 2].
    """
    values = preferences.to_pylist() if hasattr(preferences, "to_pylist") else list(preferences)
    out = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        # False would be the draw of old files, and True a win of the baseline: nobody means that.
        if isinstance(value, bool | np.bool_):
            raise UserError(
                f"{name}[{i}]: {value} is a truth value, no preference; give 1 (output_1 is better), 2 (output_2 is), "
                "1.5 (draw) or null"
            )
        try:
            x = math.nan if value is None else float(value)
        except OverflowError:
            x = math.inf
        except (TypeError, ValueError):
            raise UserError(
                f"{name}[{i}]: {value!r} is not a number; give 1, 2, 1.5 (draw) or null"
            ) from None
        if x == 0:
            x = 1.5
        elif x == _MISSING_IN_CACHE:
            x = math.nan
        elif not math.isnan(x) and not 1 <= x <= 2:
            raise UserError(f"{name}[{i}]: {x:g} is outside [1, 2]; give 1, 2, 1.5 (draw) or null (missing)")
        out[i] = x
    return out


def wilson_interval(rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson (1927) score interval, in percent, for a mean `rate` in [0, 1] of n >= 1 values in [0, 1]."""
    from statsmodels.stats.proportion import proportion_confint  # Here, because it takes a second.

    low, high = proportion_confint(rate * n, n, alpha=1 - confidence, method="wilson")
    return 100 * low, 100 * high


def win_rate(preferences: Sequence[object], *, min_coverage: float = 0.8) -> WinRate:
    """Win rate and standard error of judge preferences [N] (AlpacaEval `pairwise_to_winrate`).

    With s = preference - 1 over the n rows that have one:
        win_rate = 100 mean(s);  standard_error = 100 std(s, ddof=1) / sqrt(n);
        discrete_win_rate = 100 (#(s > .5) + .5 #(s = .5)) / n.

    Raises UserError when fewer than `min_coverage` of the rows have a preference (or none has): a judge that
    fails on hard rows would otherwise move the number without a word.
    """
    x = read_preferences(preferences)
    s = x[~np.isnan(x)] - 1
    n, n_rows = len(s), len(x)
    if n == 0 or n < min_coverage * n_rows:
        share = f"{n} of {n_rows} rows ({100 * n / max(n_rows, 1):.0f} %)"
        raise UserError(
            f"preference: only {share} have a usable value; a win rate needs one row and "
            f"{100 * min_coverage:g} % of them: annotate the missing ones again, or lower min_coverage"
        )
    n_wins, n_wins_base = int((s > 0.5).sum()), int((s < 0.5).sum())
    n_draws = n - n_wins - n_wins_base
    mean = float(s.mean())
    return WinRate(
        win_rate=100 * mean,
        standard_error=100 * float(s.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        interval=wilson_interval(mean, n),
        n_wins=n_wins,
        n_wins_base=n_wins_base,
        n_draws=n_draws,
        n_total=n,
        n_missing=n_rows - n,
        discrete_win_rate=100 * (n_wins + 0.5 * n_draws) / n,
    )


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UserError(f"{name}: shape {array.shape}; give one utility per instruction, at least one")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise UserError(f"{name}[{row}]: {array[row]} is not finite; every response needs a utility")
    return array


def utility_wins(model_N: np.ndarray, base_N: np.ndarray) -> np.ndarray:
    """1 where a utility is above that of the base, 0 below, 0.5 where they are the same but for rounding [N]."""
    difference = model_N - base_N
    return np.where(np.abs(difference) <= _UTILITY_TIE, 0.5, (difference > 0).astype(float))


def utility_win_rate(
    utilities_model: Sequence[float],
    utilities_base: Sequence[float],
    *,
    seed: int = 0,
    n_bootstrap: int = 10_000,
) -> UtilityWinRate:
    """Win rate of utilities [N] against base utilities [N] of the same instructions: win 1, tie 0.5, loss 0.

    The interval is the 2.5 to 97.5 percentile of the win rate over `n_bootstrap` resamples of the
    instructions; it has no width where every instruction agrees. Raises UserError for unequal lengths, no
    rows, or a non-finite value.
    """
    model, base = _finite(utilities_model, "utilities_model"), _finite(utilities_base, "utilities_base")
    if len(model) != len(base):
        raise UserError(
            f"utilities_model: {len(model)} rows but utilities_base has {len(base)}; "
            "score both on the same instructions, in the same order"
        )
    wins, n = utility_wins(model, base), len(model)
    n_wins, n_losses = int((wins == 1).sum()), int((wins == 0).sum())
    n_ties = n - n_wins - n_losses
    # Resampling N rows of three values is a multinomial draw of their counts: same law, no [B, N] array.
    counts_B3 = np.random.default_rng(seed).multinomial(
        n, np.array([n_wins, n_ties, n_losses]) / n, size=n_bootstrap
    )
    rates_B = 100 * (counts_B3[:, 0] + 0.5 * counts_B3[:, 1]) / n
    low, high = np.percentile(rates_B, [2.5, 97.5])
    return UtilityWinRate(
        win_rate=100 * (n_wins + 0.5 * n_ties) / n,
        interval=(float(low), float(high)),
        n_wins=n_wins,
        n_losses=n_losses,
        n_ties=n_ties,
        n_total=n,
        mean_utility=float(model.mean()),
        mean_utility_base=float(base.mean()),
    )
