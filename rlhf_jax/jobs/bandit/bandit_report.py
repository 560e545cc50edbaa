"""Draws the bandit as the paper's figure 6: as an image, and as SVG on a page with the paper's finding beside ours.

Left axis: how likely each policy chooses each arm. Right axis: the learned reward above its lowest value, and the true
reward as a straight line that is scaled to the same range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.evaluation.report.charts import (
    Axes,
    escape_html,
    legend,
    line_chart,
    number_text,
    path_data,
    svg_chart,
    ticks,
)
from rlhf_jax.evaluation.report.curves import Chart, Series
from rlhf_jax.evaluation.report.page import whole_page
from rlhf_jax.evaluation.report.report_data import Report
from rlhf_jax.evaluation.report.report_sections import duration, header
from rlhf_jax.jobs.bandit.bandit_results import (
    POLICIES,
    Bandit,
    Number,
    claims_held,
    finding_text,
    gap,
    mean_text,
    over_seeds,
    policy_numbers,
    reward_range,
)

_SIZE, _RIGHT = (420, 250), 40
_HOVERED = 26  # Places with a tooltip on each curve.


class Curve(NamedTuple):
    """A line of the figure. kind: a class of report.css, as the dash pattern; right: whether its axis is the right one.

    What learns from somebody has its colour: SFT the teacher's, RLAIF the student's.
    """

    name: str
    values_K: np.ndarray
    colour: int
    kind: str = ""
    right: bool = False


def figure_curves(found: Bandit) -> list[Curve]:
    """The six lines, of the first seed."""
    looks = {"teacher": (1, "broken"), "sft": (1, ""), "rlaif": (2, ""), "student": (2, "broken")}
    curves = [Curve(POLICIES[name], found.policies[name][0], *look) for name, look in looks.items()]
    learned_K = found.rewards.table_SK[0].astype(np.float64)
    learned_K -= learned_K.min()
    true_K = np.linspace(0.0, learned_K.max(), len(learned_K))
    return [
        *curves,
        Curve("learned reward", learned_K, 3, right=True),
        Curve("true reward, scaled", true_K, 3, "dashed", right=True),
    ]


def draw_figure(found: Bandit, path: Path) -> None:
    """Writes the figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2))
    canvas = FigureCanvasAgg(figure)
    left = figure.add_axes((0.09, 0.12, 0.82, 0.84))
    right = left.twinx()
    dashes = {"": "-", "broken": "--", "dashed": ":"}
    lines = []
    for curve in figure_curves(found):
        axes, colour = (right if curve.right else left), ("#2166c4", "#c2540a", "#0d8068")[curve.colour - 1]
        width = 1.2 if curve.right else 1.8
        lines += axes.plot(
            curve.values_K, dashes[curve.kind], color=colour, linewidth=width, label=curve.name
        )
    left.set(xlabel="arm", ylabel="probability", ylim=(0, None), xlim=(0, len(curve.values_K) - 1))
    right.set(ylabel="reward", ylim=(0, None))
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines["top"].set_visible(False)
    left.legend(handles=lines, fontsize=8, frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))


def report_page(found: Bandit, config: ConfigDict, seconds: float) -> str:
    """The page, self-contained, in light and dark."""
    top = Report(
        title=f"Bandit of {config.arms} arms",
        leaderboard=(),
        subtitle=finding_text(found),
        facts={
            "seeds": f"{found.seeds[0]} to {found.seeds[-1]}"
            if len(found.seeds) > 1
            else str(found.seeds[0]),
            "reward model": f"{config.student.pairs:,} pairs of the student's samples ({found.ties_S[0]:,} ties), "
            f"{config.reward_model.steps:,} steps at {config.reward_model.learning_rate:g}",
            "RLAIF": f"student * exp(reward / {config.beta:g}) / Z",
            "SFT": f"{config.teacher.samples:,} samples of the teacher's, {config.sft.steps:,} steps at "
            f"{config.sft.learning_rate:g}",
            "time": duration(seconds),
        },
    )
    parts = {
        "figure": ("Policies and rewards", _figure(found)),
        "policies": ("Mean true rewards", _policies(found)),
        "finding": ("The paper's finding and ours", _finding(found)),
        "reward": ("Reward model", _reward(found)),
        "losses": ("Losses", _losses(found)),
    }
    return whole_page(top.title, header(top), parts)


def _figure(found: Bandit) -> str:
    curves = figure_curves(found)
    keys = "".join(
        f'<span><i class="key s{curve.colour} {curve.kind}"></i>{curve.name}</span>' for curve in curves
    )
    note = (
        f"Seed {found.seeds[0]}. Left axis: probability of each arm. Right axis: the learned reward above its lowest "
        "value; the true reward is scaled to the same range. The reward of an arm "
        "moves only as far as the student chooses it, so RLAIF does not come to the teacher's arms."
    )
    return (
        f'<figure class="card large"><figcaption><p class="legend">{keys}</p></figcaption>{_drawn(curves)}</figure>'
        f'<p class="note">{escape_html(note)}</p>'
    )


def _drawn(curves: Sequence[Curve]) -> str:
    """The SVG: both axes, then a path for each curve, with tooltips at some places of it."""
    arms_K = np.arange(len(curves[0].values_K))
    left, right = (
        Axes(
            arms_K,
            [0.0, *(float(c.values_K.max()) for c in curves if c.right == side)],
            "arm",
            size=_SIZE,
            right=_RIGHT,
        )
        for side in (False, True)
    )
    out, edge = [left.svg()], _SIZE[0] - _RIGHT + 6
    for y in ticks(right.y_low, right.y_high):
        out.append(f'<text x="{edge}" y="{right.py(y):.1f}" dy=".32em">{y:.4g}</text>')
    out.append('<text class="name" x="4" y="8">probability</text>')
    out.append(f'<text class="name" x="{_SIZE[0] - 4}" y="8" text-anchor="end">reward</text>')
    picked = np.unique(np.linspace(0, arms_K[-1], min(len(arms_K), _HOVERED)).round().astype(int))
    for c in curves:
        axes = right if c.right else left
        out.append(f'<path class="line s{c.colour} {c.kind}" d="{path_data(axes, arms_K, c.values_K)}"/>')
        for k in picked:
            place = f'cx="{axes.px(k):.1f}" cy="{axes.py(c.values_K[k]):.1f}"'
            title = f"{c.name}: {number_text(c.values_K[k])} at arm {k}"
            out.append(f'<circle class="hit s{c.colour}" r="3" {place}><title>{title}</title></circle>')
    return svg_chart("".join(out), "policies and rewards over arms", _SIZE)


def _policies(found: Bandit) -> str:
    rows = [
        (POLICIES[name], _first(one.reward), _mean(one.reward), str(one.arm), f"{one.peak:.4f}")
        for name, one in policy_numbers(found).items()
    ]
    names = ("mean true reward", "mean over seeds", "arg-max arm", "peak probability")
    return _table("policy", names, rows) + _note(
        f"Arm k is worth k. Mean, arm and peak are of seed {found.seeds[0]}; the mean over {len(found.seeds)} seeds "
        "has its 95 % interval, over draws of the samples (Student's t). Teacher and student are known exactly."
    )


def _finding(found: Bandit) -> str:
    rows = []
    for one in claims_held(found):
        ahead = gap(found, one.claim)
        rows.append(
            (
                one.claim.says,
                one.claim.published,
                f"{ahead.first:+.4f}",
                _mean(ahead, signed=True),
                one.verdict,
            )
        )
    names = ("published", "ours, by", "mean over seeds", "verdict")
    return _table("mean true reward", names, rows) + _note(
        f"{finding_text(found)} It shows where the whole interval is above 0."
    )


def _reward(found: Bandit) -> str:
    table_K, losses_ST = found.rewards.table_SK[0], found.rewards.losses_ST
    size, last, after = (
        over_seeds(x) for x in (reward_range(found), losses_ST[:, -1], found.rewards.after_S)
    )
    rows = [
        ("learned reward, max − min", _first(size), _mean(size)),
        ("loss of the last step, before its update", _first(last), _mean(last)),
        ("loss after it", _first(after), _mean(after)),
    ]
    return _table("", ("first seed", "mean over seeds"), rows) + _note(
        f"The highest reward is at arm {table_K.argmax()}, the lowest at arm {table_K.argmin()}. "
        "A tie is ln 2 of the loss, without gradient. Rewards begin at 0, so do those of arms that nobody chose."
    )


def _losses(found: Bandit) -> str:
    cards = []
    for name, fit in (("reward model", found.rewards), ("SFT", found.logits)):
        losses_T = fit.losses_ST[0].astype(np.float64)
        chart = Chart(name, (Series(f"{name}'s loss", np.arange(1, len(losses_T) + 1), losses_T, 0),))
        if len(losses_T) > 1:
            cards.append(
                f'<figure class="card"><figcaption>{legend(chart)}</figcaption>{line_chart(chart)}</figure>'
            )
    return f'<div class="cards two">{"".join(cards)}</div>' if cards else ""


def _first(number: Number) -> str:
    return f"{number.first:.4f}"


def _mean(number: Number, *, signed: bool = False) -> str:
    return mean_text(number, 4, signed=signed)


def _table(corner: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of a name and a cell for each column; on a narrow screen each is a card."""
    head = f"<th>{corner}</th>" + "".join(f'<th class="num">{name}</th>' for name in names)
    body = "".join(
        f"<tr><th>{escape_html(row[0])}</th>"
        + "".join(
            f'<td class="num" data-label="{name}">{escape_html(cell)}</td>'
            for name, cell in zip(names, row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="board"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _note(text: str) -> str:
    return f'<p class="note">{escape_html(text)}</p>'
