"""Inline SVG for the report, made by hand; colours come from the page's CSS, for light and dark alike.

Two kinds: charts with a fixed viewBox (lines, reward against KL, calibration), and tracks, whose coordinates
are percentages, so that they stretch with a table cell while dots keep their size. Every mark that carries a
value has a <title>, which browsers show on hover.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation.agreement import CalibrationBin
from rlhf_jax.evaluation.curves import Chart, Series, smooth, thin

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
_MAX_POINTS = 240  # a path needs no more on 360 units
_MAX_TOOLTIPS = 48
_SMOOTH_FROM = 40  # points; fewer are shown as they are
_COLOURS = 6

_BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SPELLED_OUT = {c: f"⟨U+{c:04X}⟩" for c in [*range(32), 127, *_BIDI] if chr(c) not in "\t\n\r"} | {13: None}


def escape(text: object) -> str:
    """Any text as inert HTML, in element content and in quoted attributes.

    Model outputs are hostile data: besides markup, lone surrogates (which no file could hold) become "?", and
    control characters and text-direction overrides are spelled out, ⟨U+202E⟩, instead of acted on.
    """
    return html.escape(
        str(text).encode("utf-8", "replace").decode("utf-8").translate(_SPELLED_OUT), quote=True
    )


def number(value: float) -> str:
    """A value as a reader wants it: about three digits."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.2e}"
    if size >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """Maps data to the viewBox and draws grid, tick labels and the name of the x axis."""

    def __init__(self, x: Sequence[float], y: Sequence[float], x_name: str) -> None:
        self.x_name = x_name
        self.x_low, self.x_high = _range(x, pad=0.0)
        self.y_low, self.y_high = _range(y, pad=0.06)

    def px(self, x: float) -> float:
        return LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def svg(self) -> str:
        out, right, below = [], WIDTH - RIGHT, HEIGHT - BOTTOM + 16
        for y in ticks(self.y_low, self.y_high):
            p = f"{self.py(y):.1f}"
            out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{p}" y2="{p}"/>')
            out.append(f'<text x="{LEFT - 6}" y="{p}" dy=".32em" text-anchor="end">{_tick(y)}</text>')
        for x in ticks(self.x_low, self.x_high, 5):
            if self.px(x) < right - 6 * len(self.x_name) - 8:  # the axis name owns the lower right corner
                out.append(f'<text x="{self.px(x):.1f}" y="{below}" text-anchor="middle">{_tick(x)}</text>')
        name = f'<text class="name" x="{right}" y="{below}" text-anchor="end">{escape(self.x_name)}</text>'
        return "".join([*out, name])


def line_chart(chart: Chart) -> str:
    """One chart of metrics over steps; long noisy series get their moving mean over the faint raw line."""
    drawn = [thin(s, _MAX_POINTS) for s in chart.series]
    every = np.concatenate([s.steps for s in drawn])
    axes = Axes(every, np.concatenate([s.values for s in drawn]), "step")
    body = [axes.svg()]
    for k, s in enumerate(drawn):
        line, i = s, k % _COLOURS + 1
        if len(s.steps) >= _SMOOTH_FROM:
            body.append(f'<path class="raw s{i}" d="{_path(axes, s.steps, s.values)}"/>')
            line = Series(s.name, s.steps, smooth(s.values, max(3, len(s.steps) // 12)), s.n_nonfinite)
        kind = " dashed" if s.name.startswith("eval/") else ""
        body.append(f'<path class="line s{i}{kind}" d="{_path(axes, line.steps, line.values)}"/>')
        body.append(_points(axes, line, i))
    return _svg("".join(body), chart.title)


def legend(chart: Chart) -> str:
    """Names, colours and last values of a chart's series, as HTML."""
    out = []
    for k, s in enumerate(chart.series):
        dropped = f" <em>{s.n_nonfinite} not finite</em>" if s.n_nonfinite else ""
        kind = " dashed" if s.name.startswith("eval/") else ""
        out.append(
            f'<span><i class="key s{k % _COLOURS + 1}{kind}"></i>{escape(s.name)} '
            f'<b title="last value, step {number(s.steps[-1])}">{number(s.values[-1])}</b>{dropped}</span>'
        )
    return f'<p class="legend">{"".join(out)}</p>'


def frontier_chart(kl: Series, score: Series) -> str:
    """A score against the KL paid for it: one dot per step, joined in time, pale at the start of the run."""
    axes = Axes(kl.values, score.values, "KL")
    n = len(score.steps)
    dots = []
    for i, (x, y, step) in enumerate(zip(kl.values, score.values, score.steps, strict=True)):
        title = f"step {number(step)}: {score.name} {number(y)} at KL {number(x)}"
        place = f'cx="{axes.px(x):.1f}" cy="{axes.py(y):.1f}" r="4"'
        share = f"--t:{100 * (i + 1) / n:.0f}%"
        dots.append(f'<circle class="dot" style="{share}" {place}><title>{escape(title)}</title></circle>')
    trail = f'<path class="trail" d="{_path(axes, kl.values, score.values)}"/>'
    return _svg(f"{axes.svg()}{trail}{''.join(dots)}", f"{score.name} against {kl.name}")


def calibration_chart(bins: Sequence[CalibrationBin]) -> str:
    """Accuracy (with intervals) against confidence, percent; the dashed diagonal is a calibrated model."""
    axes = Axes([50, 100], [min(50.0, *(b.interval[0] for b in bins)), 100], "confidence")
    diagonal = _path(axes, np.array([50, 100]), np.array([50, 100]))
    body = [axes.svg(), f'<path class="reference" d="{diagonal}"/>']
    for b in bins:
        x, low, high = f"{axes.px(b.confidence):.1f}", *b.interval
        ends = f'y1="{axes.py(low):.1f}" y2="{axes.py(high):.1f}"'
        body.append(
            f"<g><title>confidence {b.confidence:.1f} %, accuracy {b.accuracy:.1f} % "
            f'[{low:.1f}, {high:.1f}], n {b.n}</title><line class="error s1" x1="{x}" x2="{x}" {ends}/>'
            f'<circle class="mark s1" cx="{x}" cy="{axes.py(b.accuracy):.1f}" r="4"/></g>'
        )
    return _svg("".join(body), "accuracy against confidence")


def track(
    value: float,
    interval: tuple[float, float],
    title: str,
    *,
    colour: int = 1,
    low: float = 0,
    high: float = 100,
) -> str:
    """A table cell's drawing: a dot with its error bar on [low, high], and a line at 50."""

    def at(v: float) -> str:
        return f"{100 * min(max((v - low) / (high - low), 0.0), 1.0):.2f}%"

    lo, hi = at(interval[0]), at(interval[1])
    return (
        f'<svg class="track" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<line class="rail" x1="0%" x2="100%" y1="50%" y2="50%"/>'
        f'<line class="half" x1="{at(50)}" x2="{at(50)}" y1="10%" y2="90%"/>'
        f'<line class="error s{colour}" x1="{lo}" x2="{hi}" y1="50%" y2="50%"/>'
        f'<circle class="mark s{colour}" cx="{at(value)}" cy="50%" r="5"/></svg>'
    )


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    return low - pad * (high - low), high + pad * (high - low)


def _tick(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}" if abs(value) < 1e4 else f"{value / 1000:.4g}k"


def _path(axes: Axes, x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{axes.px(a):.1f} {axes.py(b):.1f}" for a, b in zip(x, y, strict=True))


def _points(axes: Axes, s: Series, colour: int) -> str:
    """Hover targets with the value; visible dots where the points are few enough to be seen apart."""
    n = len(s.steps)
    picked = np.unique(np.linspace(0, n - 1, min(n, _MAX_TOOLTIPS)).round().astype(int))
    seen = " seen" if n <= 16 else ""
    return "".join(
        f'<circle class="hit s{colour}{seen}" r="3" '
        f'cx="{axes.px(s.steps[i]):.1f}" cy="{axes.py(s.values[i]):.1f}">'
        f"<title>{escape(s.name)}: {number(s.values[i])} at step {number(s.steps[i])}</title></circle>"
        for i in picked
    )


def _svg(body: str, label: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(label)}">{body}</svg>'
