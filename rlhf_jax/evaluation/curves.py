"""Which metrics of a run are worth a chart, and their values: for plots.py (PNG) and the report (SVG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

# One chart: a metric name or glob (each match gets its own chart, with eval/<name> drawn on it when there is
# one), or a tuple of names or globs that share a chart.
Curve = str | tuple[str, ...]

DEFAULT_CURVES: Mapping[str, tuple[Curve, ...]] = {
    "sft": ("loss", "*accuracy", "eval/*", "grad_norm", "perf/tokens_per_s"),
    "reward_model": (
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        ("rewards/chosen", "rewards/rejected"),
        "eval/*",
        "grad_norm",
    ),
    "dpo": (
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        ("rewards/chosen", "rewards/rejected"),
        "eval/*",
        "grad_norm",
    ),
    "ppo": (
        "objective/score*",
        "objective/kl",
        "eval/*utility*",
        "eval/*win_rate*",
        "objective/rlhf_reward",
        "objective/entropy",
        "eval/*",
        "*/explained_variance",
        "*/clipfrac*",
        "*/approxkl*",
        "loss*",
    ),
}
FALLBACK_CURVES: tuple[Curve, ...] = ("*loss", "rewards/*", "objective/*", "eval/*", "grad_norm")


@dataclass(frozen=True)
class Series:
    """One metric over steps: `steps` and `values` [N] in step order, finite; `n_nonfinite` are left out."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    n_nonfinite: int


@dataclass(frozen=True)
class Chart:
    """Series that share one set of axes."""

    title: str
    series: tuple[Series, ...]


def metric_names(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Names of the numeric metrics in the rows, in order of first appearance, without "step"."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(k for k, v in row.items() if k != "step" and _is_number(v)))
    return list(names)


def read_series(rows: Sequence[Mapping[str, object]], name: str) -> Series:
    """Values of one metric.

    A step logged twice (by a run that was resumed) keeps its last value; a row without "step" counts as its
    position.
    """
    by_step: dict[float, float] = {}
    for i, row in enumerate(rows):
        if _is_number(row.get(name)):
            step = row.get("step")
            by_step[float(step if _is_number(step) else i)] = float(row[name])
    steps = np.array(sorted(by_step), dtype=np.float64)
    values = np.array([by_step[s] for s in steps], dtype=np.float64)
    finite = np.isfinite(values)
    return Series(name, steps[finite], values[finite], int((~finite).sum()))


def choose_charts(
    stage: str, rows: Sequence[Mapping[str, object]], curves: Mapping[str, Sequence[Curve]] | None = None
) -> list[Chart]:
    """The charts of a stage.

    `curves[stage]` if given, else the default whose name the stage's name starts with ("ppo-small" -> ppo),
    else the fallback. A metric that a chart already shows gets no second one.
    """
    wanted = (curves or {}).get(stage)
    if wanted is None:
        wanted = next((v for k, v in DEFAULT_CURVES.items() if stage.startswith(k)), FALLBACK_CURVES)
    # Training metrics first, so that eval/loss joins the chart of loss even if it was logged before it.
    names = sorted(metric_names(rows), key=lambda n: n.startswith("eval/"))
    shown: set[str] = set()
    charts = []
    for curve in wanted:
        patterns = (curve,) if isinstance(curve, str) else tuple(curve)
        matches = list(dict.fromkeys(n for p in patterns for n in names if fnmatchcase(n, p)))
        for group in [[n] for n in matches] if isinstance(curve, str) else [matches]:
            group = [n for n in group if n not in shown]
            both = [*group, *(e for e in (f"eval/{n}" for n in group) if e in names and e not in shown)]
            series = tuple(s for s in (read_series(rows, n) for n in both) if len(s.steps))
            shown.update(both)
            if series:
                charts.append(Chart(", ".join(group), series))
    return charts


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Local straight-line fit [N]: at each point, least squares over its `window` nearest neighbours.

    Inside, where the window is symmetric, it is the moving mean; at the ends the line follows the trend,
    where a mean would lag and a shrinking window would end in noise.
    """
    n = len(values)
    window = min(window | 1, n)
    if window < 3:
        return values
    x = np.arange(window) - (window - 1) / 2
    start = np.clip(np.arange(n) - window // 2, 0, n - window)
    views = np.lib.stride_tricks.sliding_window_view(values, window)
    means, slopes = views.mean(1), views @ x / (x @ x)
    return means[start] + slopes[start] * (np.arange(n) - start - (window - 1) / 2)


def thin(series: Series, most: int) -> Series:
    """At most `most` points: means of equally many neighbours, each at their last step."""
    n = len(series.steps)
    if n <= most:
        return series
    size = -(-n // most)
    parts = [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
    steps = np.array([series.steps[p[-1]] for p in parts])
    values = np.array([series.values[p].mean() for p in parts])
    return Series(series.name, steps, values, series.n_nonfinite)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
