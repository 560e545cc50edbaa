"""Draws the report's charts as inline SVG; colours come from the page's CSS, in light and dark mode.

The SVG is written directly, because a plotting library's SVG brings fonts, ids and fixed colours of its own
and would make the page several times larger. There are two kinds: charts with a fixed viewBox (lines, reward
against KL, calibration), and tracks, whose coordinates are percentages, so that they stretch with a table
cell while dots keep their size. Every mark that carries a value has a <title>, which browsers show on hover.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation.measures.agreement import CalibrationBin
from rlhf_jax.evaluation.report.curves import Chart, Series, smooth, thin

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
# A chart is 360 units wide: more points would enlarge the page and show nothing new.
_MAX_POINTS = 240
_MAX_TOOLTIPS = 48
# A series with fewer points than this is shown as it is, without a smoothed line.
_SMOOTH_FROM = 40
# report.css defines .s1 to .s6; a seventh series of a chart begins again at the first colour.
_COLOURS = 6

# Parts of a name, such as expert_ and iteration. Browsers break behind few of these marks by themselves.
_NAME_PART = re.compile(r"[^_\-/.@]{1,24}[_\-/.@]*|[_\-/.@]+")

# Unicode's text-direction embeddings, overrides and isolates. They could make a response read differently
# from what it holds.
_BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
# Carriage returns are dropped, so that "\r\n" stays one line end; tabs and line feeds are kept.
_SPELLED_OUT = {c: f"⟨U+{c:04X}⟩" for c in [*range(32), 127, *_BIDI] if chr(c) not in "\t\n\r"} | {13: None}


def escape_html(text: object) -> str:
    """Escape any text for use in element content and in quoted attributes.

    Model outputs are untrusted: besides markup, lone surrogates (which no file could hold) become "?", and
    control characters and text-direction overrides are spelled out, ⟨U+202E⟩, instead of acted on.
    """
    return html.escape(
        str(text).encode("utf-8", "replace").decode("utf-8").translate(_SPELLED_OUT), quote=True
    )


def breakable_name(name: str) -> str:
    """Escape a name so that a line may break behind its _ - / . and @, and within a part only when it is very long."""
    return " ".join("<wbr>".join(map(escape_html, _NAME_PART.findall(word))) for word in name.split(" "))


def number_text(value: float) -> str:
    """Format a value with about three significant digits."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.2e}"
    if size >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose about `count` round numbers within [low, high] to label an axis with."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    # The step is 1, 2, 2.5 or 5 times a power of ten. The factor 0.999 here and the 1e-9 below forgive
    # rounding errors, which would otherwise cost an evenly divided axis its first or last tick.
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """Maps data to the viewBox and draws grid, tick labels and the name of the x axis."""

    def __init__(
        self,
        x: Sequence[float],
        y: Sequence[float],
        x_name: str,
        *,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        right: int = RIGHT,
        x_pad: float = 0.0,
    ) -> None:
        self.x_name, self.size, self.right = x_name, size, right
        # Curves run to the edge on the left and right; above and below they get some room.
        self.x_low, self.x_high = _range(x, pad=x_pad)
        self.y_low, self.y_high = _range(y, pad=0.06)

    def px(self, x: float) -> float:
        return LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (self.size[0] - LEFT - self.right)

    def py(self, y: float) -> float:
        # SVG counts y downwards from the top.
        low, high = self.size[1] - BOTTOM, TOP
        return low - (y - self.y_low) / (self.y_high - self.y_low) * (low - high)

    def svg(self) -> str:
        out, right, below = [], self.size[0] - self.right, self.size[1] - BOTTOM + 16
        for y in ticks(self.y_low, self.y_high):
            p = f"{self.py(y):.1f}"
            out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{p}" y2="{p}"/>')
            out.append(f'<text x="{LEFT - 6}" y="{p}" dy=".32em" text-anchor="end">{_tick(y)}</text>')
        for x in ticks(self.x_low, self.x_high, 5):
            # The axis name stands in the lower right corner, about 6 units a letter: no tick label below it.
            if self.px(x) < right - 6 * len(self.x_name) - 8:
                out.append(f'<text x="{self.px(x):.1f}" y="{below}" text-anchor="middle">{_tick(x)}</text>')
        name = (
            f'<text class="name" x="{right}" y="{below}" text-anchor="end">{escape_html(self.x_name)}</text>'
        )
        return "".join([*out, name])


def line_chart(chart: Chart) -> str:
    """Draw metrics over steps; a long noisy series shows its moving mean over the faint raw line."""
    drawn = [thin(s, _MAX_POINTS) for s in chart.series]
    every = np.concatenate([s.steps for s in drawn])
    axes = Axes(every, np.concatenate([s.values for s in drawn]), "step")
    body = [axes.svg()]
    for k, s in enumerate(drawn):
        line, i = s, k % _COLOURS + 1
        if len(s.steps) >= _SMOOTH_FROM:
            # The raw line stays visible: the mean alone would hide spikes and the size of the noise.
            body.append(f'<path class="raw s{i}" d="{path_data(axes, s.steps, s.values)}"/>')
            # The window is a twelfth of the points, so it is as wide on the page for a long run as for a
            # short one.
            line = Series(s.name, s.steps, smooth(s.values, max(3, len(s.steps) // 12)), s.n_nonfinite)
        kind = " dashed" if s.name.startswith("eval/") else ""
        body.append(f'<path class="line s{i}{kind}" d="{path_data(axes, line.steps, line.values)}"/>')
        body.append(_points(axes, line, i))
    return svg_chart("".join(body), chart.title)


def legend(chart: Chart) -> str:
    """Write the names, colours and last values of a chart's series as HTML."""
    out = []
    for k, s in enumerate(chart.series):
        dropped = f" <em>{s.n_nonfinite} not finite</em>" if s.n_nonfinite else ""
        kind = " dashed" if s.name.startswith("eval/") else ""
        out.append(
            f'<span><i class="key s{k % _COLOURS + 1}{kind}"></i>{escape_html(s.name)} '
            f'<b title="last value, step {number_text(s.steps[-1])}">{number_text(s.values[-1])}</b>{dropped}</span>'
        )
    return f'<p class="legend">{"".join(out)}</p>'


def frontier_chart(kl: Series, score: Series) -> str:
    """Draw a score against the KL divergence: one dot per step, joined in time, pale at the start of the run.

    Gao et al. 2023 show over-optimisation of a reward model in this way, over the square root of the KL.
    """
    axes = Axes(kl.values, score.values, "KL")
    n = len(score.steps)
    dots = []
    for i, (x, y, step) in enumerate(zip(kl.values, score.values, score.steps, strict=True)):
        title = f"step {number_text(step)}: {score.name} {number_text(y)} at KL {number_text(x)}"
        place = f'cx="{axes.px(x):.1f}" cy="{axes.py(y):.1f}" r="4"'
        # report.css mixes the dot's colour by --t, so the order in time shows without a legend.
        share = f"--t:{100 * (i + 1) / n:.0f}%"
        dots.append(
            f'<circle class="dot" style="{share}" {place}><title>{escape_html(title)}</title></circle>'
        )
    trail = f'<path class="trail" d="{path_data(axes, kl.values, score.values)}"/>'
    return svg_chart(f"{axes.svg()}{trail}{''.join(dots)}", f"{score.name} against {kl.name}")


def calibration_chart(bins: Sequence[CalibrationBin]) -> str:
    """Draw accuracy with intervals against confidence in percent; a calibrated model is on the diagonal."""
    # Confidence is that in the preferred output and cannot be below 50. Accuracy can: the axis then reaches
    # down to the lowest interval.
    axes = Axes([50, 100], [min(50.0, *(b.interval[0] for b in bins)), 100], "confidence")
    diagonal = path_data(axes, np.array([50, 100]), np.array([50, 100]))
    body = [axes.svg(), f'<path class="reference" d="{diagonal}"/>']
    for b in bins:
        x, low, high = f"{axes.px(b.confidence):.1f}", *b.interval
        ends = f'y1="{axes.py(low):.1f}" y2="{axes.py(high):.1f}"'
        body.append(
            f"<g><title>confidence {b.confidence:.1f} %, accuracy {b.accuracy:.1f} % "
            f'[{low:.1f}, {high:.1f}], n {b.n}</title><line class="error s1" x1="{x}" x2="{x}" {ends}/>'
            f'<circle class="mark s1" cx="{x}" cy="{axes.py(b.accuracy):.1f}" r="4"/></g>'
        )
    return svg_chart("".join(body), "accuracy against confidence")


def track(
    value: float,
    interval: tuple[float, float],
    title: str,
    *,
    colour: int = 1,
    low: float = 0,
    high: float = 100,
) -> str:
    """Draw a dot with its error bar on a scale from `low` to `high`, with a line at 50, for a table cell."""

    def at(v: float) -> str:
        # Marks beyond the scale are drawn at its end: an interval may reach further than the table shows.
        return f"{100 * min(max((v - low) / (high - low), 0.0), 1.0):.2f}%"

    lo, hi = at(interval[0]), at(interval[1])
    return (
        f'<svg class="track" role="img" aria-label="{escape_html(title)}"><title>{escape_html(title)}</title>'
        f'<line class="rail" x1="0%" x2="100%" y1="50%" y2="50%"/>'
        f'<line class="half" x1="{at(50)}" x2="{at(50)}" y1="10%" y2="90%"/>'
        f'<line class="error s{colour}" x1="{lo}" x2="{hi}" y1="50%" y2="50%"/>'
        f'<circle class="mark s{colour}" cx="{at(value)}" cy="50%" r="5"/></svg>'
    )


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    # A constant series has no extent. Without a margin, px and py would divide by zero.
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    return low - pad * (high - low), high + pad * (high - low)


def _tick(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        # Python writes 1e-05; a tick label has room for 1e-5.
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}" if abs(value) < 1e4 else f"{value / 1000:.4g}k"


def path_data(axes: Axes, x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{axes.px(a):.1f} {axes.py(b):.1f}" for a, b in zip(x, y, strict=True))


def _points(axes: Axes, s: Series, colour: int) -> str:
    """Hover targets with the value; visible dots where the points are few enough to be seen apart."""
    n = len(s.steps)
    # A title per point would make up most of the page. Evenly spaced ones, with first and last, are enough.
    picked = np.unique(np.linspace(0, n - 1, min(n, _MAX_TOOLTIPS)).round().astype(int))
    seen = " seen" if n <= 16 else ""
    return "".join(
        f'<circle class="hit s{colour}{seen}" r="3" '
        f'cx="{axes.px(s.steps[i]):.1f}" cy="{axes.py(s.values[i]):.1f}">'
        f"<title>{escape_html(s.name)}: {number_text(s.values[i])} at step {number_text(s.steps[i])}</title></circle>"
        for i in picked
    )


def svg_chart(body: str, label: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """Wraps what was drawn into one SVG with a name for those who cannot see it."""
    box = f'viewBox="0 0 {size[0]} {size[1]}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape_html(label)}">{body}</svg>'
