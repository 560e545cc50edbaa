"""Chooses which metrics of a run get a chart, for plots.py (PNG) and charts.py (SVG), and reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

# One chart: a metric name or glob (each match gets its own chart, with eval/<name> drawn on it when there is
# one), or a tuple of names or globs that share a chart.
Curve = str | tuple[str, ...]

# The charts of a stage in the order of the page. A metric is shown once, by the first pattern that matches
# it, so names that should come early stand before globs such as "eval/*" that would also match them.
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
    "grpo": (
        "objective/score*",
        "objective/kl",
        "eval/*win_rate*",
        "eval/*",
        "groups/*",
        "policy/clipfrac*",
        "policy/approxkl",
        "sampling/*",
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
    """List the numeric metrics of the rows, in order of first appearance, without "step"."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(k for k, v in row.items() if k != "step" and _is_number(v)))
    return list(names)


def read_series(rows: Sequence[Mapping[str, object]], name: str) -> Series:
    """Read the values of one metric, in step order.

    A step logged twice (by a run that was resumed) keeps its last value; a row without "step" counts as its
    position.
    """
    by_step: dict[float, float] = {}
    for i, row in enumerate(rows):
        if _is_number(row.get(name)):
            step = row.get("step")
            # A resumed run logs the steps since its last checkpoint again. Those are the ones that training
            # went on from, so the later row wins.
            by_step[float(step if _is_number(step) else i)] = float(row[name])
    steps = np.array(sorted(by_step), dtype=np.float64)
    values = np.array([by_step[s] for s in steps], dtype=np.float64)
    # A diverged step has no place on an axis. It is counted, and the legend says so.
    finite = np.isfinite(values)
    return Series(name, steps[finite], values[finite], int((~finite).sum()))


def choose_charts(
    stage: str, rows: Sequence[Mapping[str, object]], curves: Mapping[str, Sequence[Curve]] | None = None
) -> list[Chart]:
    """Choose the charts of a stage.

    The patterns are `curves[stage]` if given, else the default that the stage's name starts with ("ppo-small"
    takes those of ppo), else the fallback. A metric that a chart already shows gets no second one.
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
        # A plain pattern makes a chart for every metric it matches, a tuple one chart for all of its matches.
        for group in [[n] for n in matches] if isinstance(curve, str) else [matches]:
            group = [n for n in group if n not in shown]
            # An evaluation of the same metric belongs on the same axes as the training metric.
            both = [*group, *(e for e in (f"eval/{n}" for n in group) if e in names and e not in shown)]
            series = tuple(s for s in (read_series(rows, n) for n in both) if len(s.steps))
            shown.update(both)
            if series:
                charts.append(Chart(", ".join(group), series))
    return charts


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Smooth `values` [N] by a straight line fitted at each point to its `window` nearest neighbours.

    Inside, where the window is symmetric, it is the moving mean; at the ends the line follows the trend,
    where a mean would lag and a shrinking window would end in noise.
    """
    n = len(values)
    # An odd window has a point in its middle.
    window = min(window | 1, n)
    if window < 3:
        return values
    x = np.arange(window) - (window - 1) / 2
    # Near the ends the window stops moving, and the point is read off the line away from its middle.
    start = np.clip(np.arange(n) - window // 2, 0, n - window)
    views = np.lib.stride_tricks.sliding_window_view(values, window)
    # x is centred, so that mean and slope of a least-squares line do not depend on each other.
    means, slopes = views.mean(1), views @ x / (x @ x)
    return means[start] + slopes[start] * (np.arange(n) - start - (window - 1) / 2)


def thin(series: Series, most: int) -> Series:
    """Reduce a series to at most `most` points: means of groups of neighbours, each at its last step."""
    n = len(series.steps)
    if n <= most:
        return series
    size = -(-n // most)
    parts = [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
    # The last step of a group and not its middle, so that the curve ends where the run does.
    steps = np.array([series.steps[p[-1]] for p in parts])
    values = np.array([series.values[p].mean() for p in parts])
    return Series(series.name, steps, values, series.n_nonfinite)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
