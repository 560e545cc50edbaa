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

_PLOT, _HEIGHT = 450, 340
_X_NAME = 14  # Room below the axis for its name, which is long here and would hide the last of the ticks.
# The names of what is drawn stand at the right, as they would cover each other beside their points: about so wide a
# letter, and no more of them than this.
_LETTER, _LONGEST = 6.4, 56
_COLOURS = 6
_FEW_BANDS = 4  # The bands of more curves than this lie over each other, and are drawn fainter.
_LINE = 15  # Height of a name.
_ROW = 38  # Height of a bar and its name.


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
    columns, room = measured.publication.columns, _room([label for label, _, _ in points])
    axes = Axes(
        [e for _, a, _ in points for e in _ends(a)],
        [e for _, _, b in points for e in _ends(b)],
        "",
        size=(_PLOT + room, _HEIGHT),
        right=room,
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
    return svg_chart("".join([*body, _names(places)]), title, (_PLOT + room, _HEIGHT + _X_NAME))


def curve_chart(
    measured: Measured, y: str, x_label: str, title: str, rows: Sequence[str] = (), *, x: str = ""
) -> str:
    """Every row's column along its places, as a line in a band of its intervals; "" without a curve.

    x: the column whose means the places are drawn at, of the same table; "": at their own numbers.
    """
    drawn = []
    for row in rows or measured.rows():
        curve_SXN, at_X = measured.curve(row, y), measured.at(y)
        if x:
            at_X = np.array([estimate(one).mean for one in np.moveaxis(measured.curve(row, x), 1, 0)])
        known = [i for i in range(len(at_X)) if not (np.isnan(curve_SXN[:, i]).all() or np.isnan(at_X[i]))]
        if len(known) > 1:
            found = [measured.estimate_of(curve_SXN[:, i], y) for i in known]
            drawn.append(_Drawn(measured.label(row), at_X[known], found))
    if not drawn:
        return ""
    room = _room([one.label for one in drawn])
    axes = Axes(
        np.concatenate([one.at for one in drawn]),
        [e for one in drawn for found in one.found for e in _ends(found)],
        "",
        size=(_PLOT + room, _HEIGHT),
        right=room,
    )
    lines, bands, faint = [], [], " faint" if len(drawn) > _FEW_BANDS else ""
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
        bands.append(f'<path class="band{faint} s{colour}" d="{around}Z"/>')
        lines.append(f'<g class="s{colour}"><path class="line{_dashed(k)}" d="{line}"/>{dots}</g>')
    # Behind all lines, whose colours tell them apart.
    body = [axes.svg(), _axis_names(x_label, measured.publication.columns[y].label), *bands, *lines]
    places = [(one.label, axes.px(one.at[-1]), axes.py(one.found[-1].mean)) for one in drawn]
    return svg_chart("".join([*body, _names(places)]), title, (_PLOT + room, _HEIGHT + _X_NAME))


def bar_chart(measured: Measured, column: str, title: str, rows: Sequence[str] = ()) -> str:
    """Every row's column as a horizontal bar with its interval, below its name; "" without a value."""
    found = [(measured.label(row), measured.estimate(row, column)) for row in rows or measured.rows()]
    found = [(label, one) for label, one in found if not math.isnan(one.mean)]
    if not found:
        return ""
    # Names above, not beside: a narrow screen would show bars without them.
    size = (_PLOT, 40 + _ROW * len(found))
    axes = Axes([0.0, *(e for _, one in found for e in _ends(one))], [0.0, 1.0], "", size=size)
    body = [re.sub(r'<text x="40".*?</text>|<line class="grid".*?/>', "", axes.svg())]
    for k, (label, one) in enumerate(found):
        y, zero, end = 22 + _ROW * k, axes.px(0.0), axes.px(one.mean)
        low, high = _ends(one)
        body.append(
            f'<g class="s1"><title>{escape_html(f"{label}: {estimate_text(one)}")}</title>'
            f'<rect class="bar" x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" height="14"/>'
            f'<line class="thin" x1="{axes.px(low):.1f}" x2="{axes.px(high):.1f}" y1="{y + 7}" y2="{y + 7}"/></g>'
            f'<text class="label" x="{axes.px(0.0):.1f}" y="{y - 10}" dy=".32em">{escape_html(_short(label))}</text>'
        )
    body.append(_x_name(measured.publication.columns[column].label, size[1]))
    svg = svg_chart("".join(body), title, (size[0], size[1] + _X_NAME))
    return svg.replace('class="chart"', 'class="chart bars"', 1)


def standalone(svg: str) -> str:
    """The same SVG as a file: with its name space, its colours and a background for both themes."""
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    wanted = re.findall(r"(?ms)^(?::root|@media \(prefers-color-scheme).*?^\}\n", css)
    wanted += re.findall(r"(?m)^\.(?:chart|grid|line|mark|hit|thin|band|bar|leader|s1)\b.*\n|^\.s4 .*\n", css)
    style = "".join(wanted).replace("color-scheme: light dark;", "")
    font = ".chart { font-family: system-ui, sans-serif; background: var(--card); }"
    named = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return named.replace(">", f"><style>{style}{font}</style>", 1)


def _ends(found: Estimate) -> tuple[float, float]:
    """The interval; the mean itself where there is none."""
    low, high = found.interval
    return (found.mean, found.mean) if math.isnan(low) else (low, high)


def _axis_names(x: str, y: str) -> str:
    return f'<text class="name" x="50" y="7">{escape_html(y)}</text>{_x_name(x, _HEIGHT)}'


def _x_name(name: str, height: int) -> str:
    return f'<text class="name" x="{_PLOT}" y="{height + 6}" text-anchor="end">{escape_html(name)}</text>'


def _names(places: Sequence[tuple[str, float, float]]) -> str:
    """Names at the right, in the order of their points' heights, each with a thin line to its point."""
    order = sorted(range(len(places)), key=lambda k: places[k][2])
    heights = [places[k][2] for k in order]
    # Each name at the height of its point, or below the one before it; then all up again where the last is too low.
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + _LINE)
    lowest = _HEIGHT - 8
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], lowest - _LINE * (len(heights) - 1 - i))
    x, out = _PLOT + 14, []
    for k, y in zip(order, heights, strict=True):
        (label, px, py), colour = places[k], f"s{k % _COLOURS + 1}"
        out.append(
            f'<path class="leader {colour}{_dashed(k)}" d="M{px + 5:.1f} {py:.1f}L{x - 10} {y:.1f}L{x - 3} {y:.1f}"/>'
            f'<text class="label {colour}" x="{x}" y="{y:.1f}" dy=".32em">'
            f"{escape_html(_short(label))}</text>"
        )
    return "".join(out)


def _dashed(k: int) -> str:
    """The class that tells a row from the one before it that has its colour."""
    return " dashed" if k >= _COLOURS else ""


def _room(labels: Sequence[str]) -> int:
    """The width that names need at the right of a figure."""
    return round(24 + _LETTER * max(len(_short(label)) for label in labels))


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
