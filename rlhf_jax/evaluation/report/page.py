"""Builds report.html, the results of a study in one self-contained file without scripts, fonts or requests.

The file can be mailed or opened offline. This module only arranges the sections that others write.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from rlhf_jax.evaluation.report import claim_sections as claims
from rlhf_jax.evaluation.report import report_measures as measures
from rlhf_jax.evaluation.report import report_sections as sections
from rlhf_jax.evaluation.report import report_tables as tables
from rlhf_jax.evaluation.report.charts import escape_html, frontier_chart, legend, line_chart, number_text
from rlhf_jax.evaluation.report.curves import (
    Curve,
    Series,
    choose_charts,
    metric_names,
    read_series,
    thin,
)
from rlhf_jax.evaluation.report.report_data import Report, ReportStage
from rlhf_jax.evaluation.report.report_findings import findings_section

# Were an output to slip through escaping, the browser would still refuse to run it or fetch for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# Each dot has a tooltip; more of them would cover each other.
_FRONTIER_POINTS = 40
# Metric names in order of preference: the first pattern with a match is taken, PPO's own names first.
_KL = ("objective/kl", "*/kl")
_SCORES = ("objective/scores", "objective/score", "objective/score*", "objective/rlhf_reward")
_UTILITIES = ("eval/utility", "eval/mean_utility", "eval/*utility*", "eval/*win_rate*")


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write the report to `path` and return the path. A rename keeps readers from seeing half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The draft lies in the same folder, since a rename is atomic only within one file system.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render_page(report), encoding="utf-8")
    os.replace(draft, path)
    return path


def render_page(report: Report) -> str:
    """Return the whole page as a string."""
    parts = {
        # The order of the page: results first and what spoils them, then how training got there, then what
        # the results rest on.
        "verdicts": ("Published and found", claims.verdicts_section(report.verdicts)),
        "figures": ("Figures", claims.figures_section(report.measured)),
        "comparison": ("Table", claims.comparison_section(report.measured)),
        "leaderboard": ("Leaderboard", tables.leaderboard(report.leaderboard)),
        "findings": ("Findings", findings_section(report.findings, report.looked_for, report.stages)),
        "ratings": ("Ratings of models", measures.ratings_section(report.ratings)),
        "methods": ("Method against method", measures.comparisons(report.differences, report.against)),
        "evaluators": ("Evaluators", measures.evaluators(report.evaluators)),
        "curves": ("Training curves", "".join(_curves(s, report.curves) for s in report.stages if s.rows)),
        "frontier": ("Reward against KL", _frontiers(report.stages)),
        "judges": ("Judges against the human", tables.judges(report.judges)),
        "reward-model": ("Reward model by margin", tables.calibration(report.calibration)),
        "samples": ("Sample responses", sections.samples_section(report.samples)),
        "timings": ("Timings", sections.timings(report.stages)),
    }
    return whole_page(report.title, sections.header(report), parts)


def whole_page(title: str, top: str, parts: Mapping[str, tuple[str, str]]) -> str:
    """Arranges HTML that is escaped already: `top`, then a section (heading, inner) for each id, in the order given."""
    # An empty section loses its heading and its link too.
    parts = {key: part for key, part in parts.items() if part[1]}
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, (heading, _) in parts.items())
    body = "".join(
        f'<section id="{key}"><h2>{heading}</h2>{inner}</section>' for key, (heading, inner) in parts.items()
    )
    # The style sheet is copied into the page: a link would be a second file and, by the policy, be refused.
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape_html(title)}</title>'
        f"<style>\n{style}</style>"
    )
    page = f"{top}<nav>{links}</nav><main>{body}</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{page}</body></html>\n'


def _curves(stage: ReportStage, curves: Mapping[str, Sequence[Curve]]) -> str:
    """Draw a stage's charts; metrics with a single point are listed as numbers below them."""
    charts = choose_charts(stage.name, stage.rows, curves)
    if not charts:
        return ""
    drawn = [c for c in charts if max(len(s.steps) for s in c.series) > 1]
    cards = "".join(_card(legend(c), line_chart(c)) for c in drawn)
    once = [s for c in charts if c not in drawn for s in c.series]
    values = ", ".join(f"{escape_html(s.name)} {number_text(s.values[-1])}" for s in once)
    note = f'<p class="note">Logged once: {values}.</p>' if once else ""
    summary = f" <small>{escape_html(stage.summary)}</small>" if stage.summary else ""
    return f'<h3>{escape_html(stage.name)}{summary}</h3><div class="cards">{cards}</div>{note}'


def _frontiers(stages: Sequence[ReportStage]) -> str:
    """For every stage that logged KL: reward, and true utility or win rate if evaluated, against KL."""
    cards = []
    for stage in stages:
        names = metric_names(stage.rows)
        kl_name = _first(names, _KL)
        # Training scores are logged in the same row as the KL. Evaluations come at steps of their own and
        # take the KL of the rollout before them.
        for metric, join in ((_first(names, _SCORES), _same_step), (_first(names, _UTILITIES), _kl_before)):
            if kl_name is None or metric is None:
                continue
            kl, score = join(read_series(stage.rows, kl_name), read_series(stage.rows, metric))
            if len(score.steps) > 1:
                title = f"<h4>{escape_html(stage.name)}: {escape_html(metric)} against {escape_html(kl_name)}</h4>"
                kl, score = thin(kl, _FRONTIER_POINTS), thin(score, _FRONTIER_POINTS)
                cards.append(_card(title, frontier_chart(kl, score)))
    if not cards:
        return ""
    note = (
        "Each dot is a moment of the run (a mean over neighbouring steps where the run is long), pale at the "
        "start and full at the end. A reward that climbs with KL while the true "
        "utility falls is over-optimised."
    )
    return f'<div class="cards two">{"".join(cards)}</div><p class="note">{note}</p>'


def _card(caption: str, chart: str) -> str:
    return f'<figure class="card"><figcaption>{caption}</figcaption>{chart}</figure>'


def _first(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    return next((n for p in patterns for n in names if fnmatchcase(n, p)), None)


def _same_step(kl: Series, score: Series) -> tuple[Series, Series]:
    steps = np.intersect1d(kl.steps, score.steps)
    return _at(kl, np.searchsorted(kl.steps, steps)), _at(score, np.searchsorted(score.steps, steps))


def _kl_before(kl: Series, score: Series) -> tuple[Series, Series]:
    """Pair each evaluation with the KL logged last at or before its step.

    It is that of the rollout which the evaluated policy was trained on last.
    """
    at = np.searchsorted(kl.steps, score.steps, side="right") - 1
    return _at(kl, at[at >= 0]), _at(score, np.flatnonzero(at >= 0))


def _at(series: Series, index: np.ndarray) -> Series:
    return Series(series.name, series.steps[index], series.values[index], series.n_nonfinite)
