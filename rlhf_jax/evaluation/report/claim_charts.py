"""Draws what a study compares: two measures against each other, curves with their intervals, and bars.

The same SVG stands in the report and, with its colours written into it, in a file of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.claims.seeded_values import Estimate, estimate
from rlhf_jax.evaluation.claims.verdicts import Measured, estimate_text
from rlhf_jax.evaluation.report.charts import Axes, escape_html, path_data, svg_chart

_SIZE = (640, 340)
_X_NAME = 14  # Room below the axis for its name, which is long here and would hide the last of the ticks.
# Room at the right for the names of what is drawn, which would cover each other beside their points.
_NAMES = 190
_COLOURS = 6
_LINE = 15  # Height of a name.


class _Drawn(NamedTuple):
    """What one row of the study is in a figure: its label, and an estimate at every place."""

    label: str
    at: np.ndarray
    found: list[Estimate]


def scatter_chart(measured: Measured, x: str, y: str, title: str, rows: Sequence[str] = ()) -> str:
    """Every row as a point with its intervals in two columns; "" with fewer than two rows that have both."""
    points = []
    for row in rows or measured.rows():
        a, b = measured.estimate(row, x), measured.estimate(row, y)
        if not math.isnan(a.mean + b.mean):
            points.append((measured.label(row), a, b))
    if len(points) < 2:
        return ""
    columns = measured.publication.columns
    axes = Axes(
        [e for _, a, _ in points for e in _ends(a)],
        [e for _, _, b in points for e in _ends(b)],
        "",
        size=_SIZE,
        right=_NAMES,
        x_pad=0.04,
    )
    body = [axes.svg(), _axis_names(columns[x].label, columns[y].label)]
    for k, (label, a, b) in enumerate(points):
        colour, px, py = k % _COLOURS + 1, axes.px(a.mean), axes.py(b.mean)
        told = f"{label}: {columns[x].label} {estimate_text(a)}, {columns[y].label} {estimate_text(b)}"
        (left, right), (low, high) = _ends(a), _ends(b)
        body.append(
            f'<g class="s{colour}"><title>{escape_html(told)}</title>'
            f'<line class="thin" x1="{axes.px(left):.1f}" x2="{axes.px(right):.1f}" y1="{py:.1f}" y2="{py:.1f}"/>'
            f'<line class="thin" x1="{px:.1f}" x2="{px:.1f}" y1="{axes.py(low):.1f}" y2="{axes.py(high):.1f}"/>'
            f'<circle class="mark" cx="{px:.1f}" cy="{py:.1f}" r="4"/></g>'
        )
    places = [(label, axes.px(a.mean), axes.py(b.mean)) for label, a, b in points]
    return svg_chart("".join([*body, _names(places)]), title, (_SIZE[0], _SIZE[1] + _X_NAME))


def curve_chart(measured: Measured, y: str, x_label: str, title: str, rows: Sequence[str] = ()) -> str:
    """Every row's column along its places, as a line in a band of its intervals; "" without a curve."""
    at_X, drawn = measured.at(y), []
    for row in rows or measured.rows():
        curve_SXN = measured.curve(row, y)
        known = [i for i in range(len(at_X)) if not np.isnan(curve_SXN[:, i]).all()]
        if len(known) > 1:
            drawn.append(_Drawn(measured.label(row), at_X[known], [estimate(curve_SXN[:, i]) for i in known]))
    if not drawn:
        return ""
    axes = Axes(
        np.concatenate([one.at for one in drawn]),
        [e for one in drawn for found in one.found for e in _ends(found)],
        "",
        size=_SIZE,
        right=_NAMES,
    )
    body = [axes.svg(), _axis_names(x_label, measured.publication.columns[y].label)]
    for k, one in enumerate(drawn):
        colour = k % _COLOURS + 1
        low, high = (np.array([_ends(found)[side] for found in one.found]) for side in (0, 1))
        around = path_data(axes, np.concatenate([one.at, one.at[::-1]]), np.concatenate([low, high[::-1]]))
        line = path_data(axes, one.at, np.array([found.mean for found in one.found]))
        dots = "".join(
            f'<circle class="hit" r="3" cx="{axes.px(x):.1f}" cy="{axes.py(found.mean):.1f}">'
            f"<title>{escape_html(f'{one.label} at {x:g}: {estimate_text(found)}')}</title></circle>"
            for x, found in zip(one.at, one.found, strict=True)
        )
        body.append(
            f'<g class="s{colour}"><path class="band" d="{around}Z"/><path class="line" d="{line}"/>{dots}</g>'
        )
    places = [(one.label, axes.px(one.at[-1]), axes.py(one.found[-1].mean)) for one in drawn]
    return svg_chart("".join([*body, _names(places)]), title, (_SIZE[0], _SIZE[1] + _X_NAME))


def bar_chart(measured: Measured, column: str, title: str, rows: Sequence[str] = ()) -> str:
    """Every row's column as a horizontal bar with its interval; "" without a value."""
    found = [(measured.label(row), measured.estimate(row, column)) for row in rows or measured.rows()]
    found = [(label, one) for label, one in found if not math.isnan(one.mean)]
    if not found:
        return ""
    size = (_SIZE[0], 40 + 24 * len(found))
    axes = Axes(
        [0.0, *(e for _, one in found for e in _ends(one))],
        [0.0, 1.0],
        measured.publication.columns[column].label,
        size=size,
        right=_NAMES,
    )
    body = [re.sub(r'<text x="40".*?</text>|<line class="grid".*?/>', "", axes.svg())]
    for k, (label, one) in enumerate(found):
        y, zero, end = 12 + 24 * k, axes.px(0.0), axes.px(one.mean)
        low, high = _ends(one)
        body.append(
            f'<g class="s1"><title>{escape_html(f"{label}: {estimate_text(one)}")}</title>'
            f'<rect class="bar" x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" height="14"/>'
            f'<line class="thin" x1="{axes.px(low):.1f}" x2="{axes.px(high):.1f}" y1="{y + 7}" y2="{y + 7}"/></g>'
            f'<text class="label" x="{size[0] - _NAMES + 14}" y="{y + 7}" dy=".32em">{escape_html(label)}</text>'
        )
    return svg_chart("".join(body), title, size)


def standalone(svg: str) -> str:
    """The same SVG as a file: with its name space, its colours and a background for both themes."""
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    wanted = re.findall(r"(?ms)^(?::root|@media \(prefers-color-scheme).*?^\}\n", css)
    wanted += re.findall(r"(?m)^\.(?:chart|grid|line|mark|hit|thin|band|bar|leader|s1)\b.*\n|^\.s4 .*\n", css)
    style = "".join(wanted).replace("color-scheme: light dark;", "")
    font = ".chart { font-family: system-ui, sans-serif; background: var(--card); }"
    return svg.replace(
        '<svg class="chart"', '<svg xmlns="http://www.w3.org/2000/svg" class="chart"', 1
    ).replace(">", f"><style>{style}{font}</style>", 1)


def _ends(found: Estimate) -> tuple[float, float]:
    """The interval; the mean itself where there is none."""
    low, high = found.interval
    return (found.mean, found.mean) if math.isnan(low) else (low, high)


def _axis_names(x: str, y: str) -> str:
    below = f'x="{_SIZE[0] - _NAMES}" y="{_SIZE[1] + 6}" text-anchor="end"'
    return f'<text class="name" x="4" y="8">{escape_html(y)}</text><text class="name" {below}>{escape_html(x)}</text>'


def _names(places: Sequence[tuple[str, float, float]]) -> str:
    """Names at the right, in the order of their points' heights, each with a thin line to its point."""
    order = sorted(range(len(places)), key=lambda k: places[k][2])
    heights = [places[k][2] for k in order]
    # Each name at the height of its point, or below the one before it; then all up again where the last is too low.
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + _LINE)
    lowest = _SIZE[1] - 8
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], lowest - _LINE * (len(heights) - 1 - i))
    x, out = _SIZE[0] - _NAMES + 14, []
    for k, y in zip(order, heights, strict=True):
        label, px, py = places[k]
        out.append(
            f'<path class="leader" d="M{px + 5:.1f} {py:.1f}L{x - 10} {y:.1f}L{x - 3} {y:.1f}"/>'
            f'<text class="label s{k % _COLOURS + 1}" x="{x}" y="{y:.1f}" dy=".32em">{escape_html(label)}</text>'
        )
    return "".join(out)
