"""Writes the report's header with the headline numbers, its sample responses and its timings.

Each function returns HTML, or "" when there is nothing to show. All text goes through `escape_html`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_jax.evaluation.leaderboards.leaderboard import interval_text, sort_rows
from rlhf_jax.evaluation.report.charts import escape_html
from rlhf_jax.evaluation.report.report_data import Report, ReportSample, ReportStage, Response

# Characters of one text on the page: a model that never stops would fill it. The outputs files hold the rest.
_MOST_CHARS = 4000


def header(report: Report) -> str:
    """Show title, headline numbers and facts about the run."""
    tiles = "".join(
        f'<div class="tile"><span>{escape_html(name)}</span><strong>{escape_html(value)}</strong>'
        f"<small>{escape_html(note)}</small></div>"
        for name, value, note in _headlines(report)
    )
    facts = "".join(
        f"<div><dt>{escape_html(k)}</dt><dd>{escape_html(v)}</dd></div>" for k, v in report.facts.items()
    )
    subtitle = f'<p class="subtitle">{escape_html(report.subtitle)}</p>' if report.subtitle else ""
    tiles = f'<div class="tiles">{tiles}</div>' if tiles else ""
    facts = f'<dl class="facts">{facts}</dl>' if facts else ""
    return f"<header><h1>{escape_html(report.title)}</h1>{subtitle}{tiles}{facts}</header>"


def samples_section(rows: Sequence[ReportSample]) -> str:
    """Show instructions, each with all methods' responses side by side."""
    return "".join(_sample(s) for s in rows)


def timings(stages: Sequence[ReportStage]) -> str:
    """Show how long each stage took, as a bar and as a share of the total."""
    timed = [s for s in stages if s.seconds is not None]
    if not timed:
        return ""
    # Every time may be zero, for stages too short to measure; the 1.0 keeps the divisions below defined.
    longest, total = max(s.seconds for s in timed) or 1.0, sum(s.seconds for s in timed)
    body = []
    for s in timed:
        bar = f'<div style="width:{100 * s.seconds / longest:.1f}%" title="{duration(s.seconds)}"></div>'
        share = f"{100 * s.seconds / (total or 1):.0f} %"
        body.append(
            f'<tr><th>{escape_html(s.name)}</th><td class="bar">{bar}</td>'
            f'<td class="num">{duration(s.seconds)}</td><td class="num">{share}</td>'
            f"<td>{escape_html(s.summary)}</td></tr>"
        )
    return (
        f'<div class="scroll"><table class="plain times"><tbody>{"".join(body)}</tbody>'
        f'<tfoot><tr><th>all</th><td></td><td class="num">{duration(total)}</td>'
        "<td></td><td></td></tr></tfoot></table></div>"
    )


def duration(seconds: float) -> str:
    """Format seconds for people: 4.2 s, 3 min 05 s, 2 h 10 min."""
    # From 59.95 on, one decimal would print "60.0 s".
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _headlines(report: Report) -> list[tuple[str, str, str]]:
    """List (name, value, note) of the few numbers that sum up the report."""
    out = []
    # The true utility is the better measure where it is known; a judge's win rate stands in for it elsewhere.
    # The two best methods are enough here, the table has the others.
    rivals = [r for r in report.leaderboard if r.utility and r.method != r.utility_base]
    for r in sorted(rivals, key=lambda r: -r.utility.win_rate)[:2]:
        ends = interval_text(r.utility.interval)
        note = f"true utility win rate against {r.utility_base}, 95 % {ends}, n {r.utility.n_total}"
        out.append((r.method, f"{r.utility.win_rate:.1f} %", note))
    if not rivals:
        for r in [r for r in sort_rows(report.leaderboard) if r.win_rate][:2]:
            note = f"win rate against {r.baseline}, judge {r.judge}, n {r.win_rate.n_total}"
            out.append((r.method, f"{r.win_rate.win_rate:.1f} %", note))
    if report.judges:
        a, name = report.judges[0].agreement, report.judges[0].name
        out.append(("judge", f"{a.agreement:.1f} %", f"{name} agrees with the human, n {a.n_total}"))
    if (c := report.calibration) is not None:
        note = f"accuracy, 95 % {interval_text(c.interval)}, n {c.n_total}"
        out.append(("reward model", f"{c.accuracy:.1f} %", note))
    seconds = [s.seconds for s in report.stages if s.seconds is not None]
    if seconds:
        out.append(
            (
                "time",
                duration(sum(seconds)),
                f"training and judging, {len(seconds)} stage{'s' if len(seconds) > 1 else ''}",
            )
        )
    return out


def _sample(sample: ReportSample) -> str:
    known = [r.utility for r in sample.responses.values() if r.utility is not None]
    # A star needs a rival: with one known utility there is nothing to be better than.
    best = max(known) if len(known) > 1 else None
    columns = "".join(_response(name, r, best) for name, r in sample.responses.items())
    given = ""
    if sample.input:
        given = f'<div class="input"><b>input</b><p dir="auto">{_text(sample.input)}</p></div>'
    return (
        f'<article class="sample"><h3 dir="auto">{_text(sample.instruction)}</h3>{given}'
        f'<div class="responses">{columns}</div></article>'
    )


def _response(name: str, response: Response, best: float | None) -> str:
    badge = ""
    if response.utility is not None:
        star = " ★" if response.utility == best else ""
        share = 100 * min(max(response.utility, 0.0), 1.0)
        badge = (
            f'<span class="badge" style="--u:{share:.0f}%" title="true utility, 0 to 1; ★ is the best here">'
            f"{response.utility:.2f}{star}</span>"
        )
    shown = _text(response.text) if response.text.strip() else '<em class="empty">empty response</em>'
    return f'<div class="response"><h4>{escape_html(name)}{badge}</h4><p dir="auto">{shown}</p></div>'


def _text(text: str) -> str:
    if len(text) <= _MOST_CHARS:
        return escape_html(text)
    return f"{escape_html(text[:_MOST_CHARS])} <em>… {len(text) - _MOST_CHARS} more characters</em>"
