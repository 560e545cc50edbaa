"""Draws the metrics of any job against steps into plots/*.png, with matplotlib's Agg canvas.

matplotlib is imported only when a plot is drawn, as it takes long to load and many jobs draw none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.evaluation.policy_measures import PolicyMeasures
from rlhf_jax.evaluation.report.curves import Series, metric_names, read_series, smooth, thin

# Four rows of three; with more the figure cannot be read without zooming.
_MOST_PER_FIGURE = 12
_COLUMNS = 3
_SMOOTH_FROM = 40
_BLUE, _ORANGE = "#2166c4", "#c2540a"


def plot_curves(metrics_rows: Sequence[Mapping[str, object]], out_dir: str | os.PathLike[str]) -> list[Path]:
    """Draw the rows of a metrics.jsonl into one PNG per group: loss.png (with eval/loss), rewards.png ...

    Metrics with fewer than two finite points are left out. Returns the paths written.
    """
    groups: dict[str, list[tuple[Series, ...]]] = {}
    names = metric_names(metrics_rows)
    for name in names:
        if name.startswith("eval/") and name.removeprefix("eval/") in names:
            # It is drawn on the chart of the training metric.
            continue
        drawn = (read_series(metrics_rows, n) for n in (name, f"eval/{name}") if n in names)
        series = tuple(s for s in drawn if len(s.steps) > 1)
        if series:
            groups.setdefault(_group(name), []).append(series)
    return [_figure(Path(out_dir) / f"{group}.png", charts) for group, charts in groups.items()]


def _group(name: str) -> str:
    """ "rewards/margins" -> rewards; anything without a slash belongs beside the loss."""
    head = name.split("/")[0] if "/" in name else "loss"
    # The group becomes a file name, and a metric may be called anything.
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in head)


def _figure(path: Path, charts: Sequence[tuple[Series, ...]]) -> Path:
    # Figure and canvas without pyplot: no global state, no display, safe beside a training thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    charts = charts[:_MOST_PER_FIGURE]
    columns = min(_COLUMNS, len(charts))
    rows = -(-len(charts) // columns)
    width, height = 4.2 * columns, 2.7 * rows
    figure = Figure(figsize=(width, height))
    # Margins in inches by hand: matplotlib's own layouts draw everything twice.
    figure.subplots_adjust(0.6 / width, 0.35 / height, 1 - 0.15 / width, 1 - 0.35 / height, 0.22, 0.35)
    canvas = FigureCanvasAgg(figure)
    for i, series in enumerate(charts, 1):
        axes = figure.add_subplot(rows, columns, i)
        for s, colour in zip(series, (_BLUE, _ORANGE), strict=False):
            _draw(axes, thin(s, 400), colour if len(series) > 1 else _BLUE)
        axes.set_title(series[0].name, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))
    return path


def plot_reward_against_kl(policies: Sequence[PolicyMeasures], path: str | os.PathLike[str]) -> Path | None:
    """Draw the reward of policies against their KL from the reference, with standard errors, as Gao et al. (2023).

    Those without both are left out. Returns the path written; None where no policy has both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [one for one in policies if one.reward is not None and one.kl is not None]
    if not drawn:
        return None
    figure = Figure(figsize=(5.2, 3.6))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.13, 0.14, 0.84, 0.82))
    for one in drawn:
        x, y = one.kl, one.reward
        axes.errorbar(x.value, y.value, xerr=x.se, yerr=y.se, fmt="o", color=_BLUE, markersize=4, linewidth=1)
        axes.annotate(one.name, (x.value, y.value), (5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("KL from the reference (nats a response)", fontsize=8)
    axes.set_ylabel("reward", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))
    return Path(path)


def _draw(axes: object, s: Series, colour: str) -> None:
    n = len(s.steps)
    if n < _SMOOTH_FROM:
        axes.plot(s.steps, s.values, color=colour, linewidth=1.6, marker="." if n <= 16 else "", label=s.name)
        return
    axes.plot(s.steps, s.values, color=colour, alpha=0.25, linewidth=0.8)
    smoothed: np.ndarray = smooth(s.values, max(3, n // 12))
    axes.plot(s.steps, smoothed, color=colour, linewidth=1.6, label=s.name)
