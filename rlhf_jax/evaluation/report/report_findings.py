"""Writes the report's findings: what the doctor found, each with its curves, and what it looked for.

Returns HTML, or "" when nothing was looked for. All text goes through `escape_html`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation.doctor.findings import Finding
from rlhf_jax.evaluation.report.charts import escape_html, legend, line_chart
from rlhf_jax.evaluation.report.curves import choose_charts
from rlhf_jax.evaluation.report.report_data import ReportStage

# More charts than these say nothing new about one finding.
_MOST_CHARTS = 2


def findings_section(
    found: Sequence[Finding], looked_for: Mapping[str, Sequence[str]], stages: Sequence[ReportStage]
) -> str:
    """Show findings, and per subject what was looked for; that nothing was found is said, too."""
    looked = {subject: names for subject, names in looked_for.items() if names}
    if not found and not looked:
        return ""
    rows = {stage.name: stage.rows for stage in stages}
    cards = "".join(_card(one, rows.get(one.subject, ())) for one in found)
    if not found:
        cards = '<p class="none">No findings.</p>'
    items = "".join(
        f"<div><dt>{escape_html(subject)}</dt><dd>{escape_html(', '.join(names))}</dd></div>"
        for subject, names in looked.items()
    )
    below = (
        f'<details class="looked"><summary>Looked for</summary><dl>{items}</dl></details>' if items else ""
    )
    # Without findings the list is what the section has to say, so it stands open.
    return cards + (below if found else below.replace("<details", "<details open", 1))


def _card(finding: Finding, rows: Sequence[Mapping[str, object]]) -> str:
    charts = choose_charts(finding.subject, rows, {finding.subject: finding.curves})
    drawn = [chart for chart in charts if max(len(s.steps) for s in chart.series) > 1][:_MOST_CHARTS]
    curves = "".join(f"<figure>{legend(chart)}{line_chart(chart)}</figure>" for chart in drawn)
    subject = f"<small>{escape_html(finding.subject)}</small>" if finding.subject else ""
    facts = {"Usual cause": finding.cause, "Decided by": finding.setting}
    said = "".join(
        f"<div><dt>{name}</dt><dd>{escape_html(text)}</dd></div>" for name, text in facts.items() if text
    )
    return (
        f'<article class="finding is-{finding.severity}"><div><h3><i>{finding.severity}</i>{escape_html(finding.name)} '
        f"{subject}</h3><p>{escape_html(finding.evidence)}</p><dl>{said}</dl></div>"
        f'{f"""<div class="curves">{curves}</div>""" if curves else ""}</article>'
    )
