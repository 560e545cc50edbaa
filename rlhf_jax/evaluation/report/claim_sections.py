"""Writes what a study found of the published claims: verdicts, the table beside the published numbers, the figures.

Each function returns HTML, or "" when there is nothing to show. All text goes through `escape_html`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_jax.evaluation.claims.published_claims import ChartSpec, Publication
from rlhf_jax.evaluation.claims.verdicts import SHOWS, Measured, Verdict, estimate_text
from rlhf_jax.evaluation.report.charts import breakable_name, escape_html
from rlhf_jax.evaluation.report.claim_charts import bar_chart, curve_chart, scatter_chart

_MANY = 6  # Columns that have room for their intervals beside their means.


def verdicts_section(found: Sequence[Verdict]) -> str:
    """Show every claim with what was published, what was found here, and whether it shows."""
    if not found:
        return ""
    body = []
    for one in found:
        why = f"<small>{escape_html(one.claim.why)}</small>" if one.claim.why and one.verdict != SHOWS else ""
        kind = one.verdict.replace(" ", "-")
        body.append(
            f'<tr><th>{escape_html(one.claim.says)}</th><td><span class="verdict {kind}">{one.verdict}</span></td>'
            f'<td data-label="here">{escape_html(one.evidence)} {why}</td>'
            f'<td data-label="published">{escape_html(one.claim.published)}</td></tr>'
        )
    head = "".join(f"<th>{name}</th>" for name in ("claim", "verdict", "here", "published"))
    return (
        f'<div class="scroll"><table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        '</table></div><p class="note">[ ] 95 % over the seeds and the instructions, pairwise where two rows are '
        "compared. A difference shows where its whole interval lies on the published side, does not where it lies on "
        "the other, and cannot be told where it holds 0. Rows are about as high as each other where the difference is "
        "within error; where a margin is given, only where the whole interval lies within it.</p>"
    )


def comparison_section(measured: Measured | None) -> str:
    """Show every row with what was measured of it, with intervals, and the published numbers beside."""
    if measured is None:
        return ""
    paper = measured.publication
    head = [*(column.label for column in paper.columns.values()), *paper.published.values()]
    cells = "".join(f'<th class="num">{escape_html(name)}</th>' for name in head)
    body, digits = [], {key: _digits(paper, key) for key in paper.published}
    for row in sorted(measured.rows(), key=lambda row: -_first(measured, row)):
        values = [_cell(measured, row, column) for column in paper.columns]
        known = paper.rows[row].published if row in paper.rows else {}
        values += [f"{known[key]:.{digits[key]}f}" if key in known else "" for key in paper.published]
        columns = "".join(
            f'<td class="num" data-label="{escape_html(name)}">{value}</td>'
            for name, value in zip(head, values, strict=True)
        )
        body.append(f"<tr><th>{breakable_name(measured.label(row))}</th>{columns}</tr>")
    seeds = max((len(table.seeds) for table in measured.tables.values()), default=1)
    note = f"{seeds} seed{'s' if seeds > 1 else ''}; [ ] 95 % over seeds and instructions"
    note += "; with one seed, over instructions alone" if seeds == 1 else ""
    # Many columns have room for intervals only below their means.
    dense = " dense" if len(head) > _MANY else ""
    return (
        f'<div class="scroll"><table class="plain comparison{dense}"><thead><tr><th></th>{cells}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="note">{note}. {escape_html(paper.text)}</p>'
    )


def figures_section(measured: Measured | None) -> str:
    """Show the publication's figures, as they came out here."""
    if measured is None:
        return ""
    cards = []
    for chart in measured.publication.charts:
        drawn = claim_figure(measured, chart)
        if drawn:
            cards.append(
                f'<figure class="card"><figcaption><h4>{escape_html(chart.title)}</h4></figcaption>{drawn}</figure>'
            )
    return f'<div class="cards figures">{"".join(cards)}</div>' if cards else ""


def claim_figure(measured: Measured, chart: ChartSpec) -> str:
    """The SVG of one figure; "" where nothing was measured that it could show."""
    options = chart.options
    if chart.kind == "scatter":
        return scatter_chart(measured, options["x"], options["y"], chart.title, chart.rows)
    if chart.kind == "curves":
        return curve_chart(measured, options["y"], options["x_label"], chart.title, chart.rows)
    if chart.kind == "against":
        label = measured.publication.columns[options["x"]].label
        return curve_chart(measured, options["y"], label, chart.title, chart.rows, x=options["x"])
    return bar_chart(measured, options["column"], chart.title, chart.rows)


def _first(measured: Measured, row: str) -> float:
    """What rows are sorted by: the first column; rows without a value come last, in the publication's order."""
    mean = measured.estimate(row, next(iter(measured.publication.columns))).mean
    return -math.inf if math.isnan(mean) else mean


def _digits(paper: Publication, key: str) -> int:
    """How many digits the most exact of the published numbers has behind its point."""
    texts = [f"{row.published[key]:g}" for row in paper.rows.values() if key in row.published]
    return max((len(text.partition(".")[2]) for text in texts), default=0)


def _cell(measured: Measured, row: str, column: str) -> str:
    found = measured.estimate(row, column)
    mean, _, interval = estimate_text(found, measured.publication.columns[column].digits).partition(" ")
    return f"{mean} <small>{interval}</small>" if interval else mean
