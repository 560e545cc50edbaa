"""Writes the report's tables with drawings: leaderboard, judges against the human, reward model by margin.

Each function returns HTML, or "" when there is nothing to show. All text goes through `escape_html`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_jax.evaluation.leaderboards.leaderboard import (
    LeaderboardRow,
    caption,
    interval_text,
    sort_rows,
)
from rlhf_jax.evaluation.measures.agreement import Calibration
from rlhf_jax.evaluation.measures.length_control import LengthControlled
from rlhf_jax.evaluation.report.charts import breakable_name, calibration_chart, escape_html, track
from rlhf_jax.evaluation.report.report_data import JudgeResult


def leaderboard(rows: Sequence[LeaderboardRow]) -> str:
    """Show methods by win rate with error bars; on a narrow screen every row becomes a card."""
    if not rows:
        return ""
    has_utility = any(row.utility for row in rows)
    has_length = any(row.length_controlled for row in rows)
    head = ["<th>#</th><th>method</th>", _scale_head("judge win rate %", 0)]
    head += ['<th class="num">length-controlled %</th>'] if has_length else []
    if has_utility:
        head += [_scale_head("true utility win rate %", 0), '<th class="num">mean utility</th>']
    head.append('<th class="num">length</th>')
    body = [_board_row(i, row, has_utility, has_length) for i, row in enumerate(sort_rows(rows), 1)]
    # The caption names a judge only if all rows share it, so several are listed after it.
    judged = sorted({f"{row.judged_by} against {row.baseline}" for row in rows})
    notes = caption(rows) + ([f"judges: {', '.join(judged)}"] if len(judged) > 1 else [])
    return _table(head, body) + _note("; ".join(notes) + "; length: mean characters.")


def judges(results: Sequence[JudgeResult]) -> str:
    """Show how often each judge agrees with the human, and how much it favours length, lists and position."""
    if not results:
        return ""
    # Agreement lies mostly between 50 and 80, so the scale starts at 40, or at the ten below the lowest
    # interval.
    low = min(40, *(math.floor(r.agreement.interval[0] / 10) * 10 for r in results))
    head = [
        "<th>labels by</th>",
        _scale_head("agreement %", low),
        '<th class="num">kappa</th>',
    ]
    rates = ("clear pairs %", "prefers longer %", "prefers list %", "prefers first %")
    head += [f'<th class="num">{name}</th>' for name in rates]
    return _table(head, [_judge_row(r, low) for r in results]) + _note(
        "Agreement counts a tie against a decided label as half; [ ] Wilson score interval, 95 %; the dashed "
        "line marks 50 %. Kappa is Cohen's with linear weights. Preferences for length, lists and the first "
        "place: 50 is indifferent."
    )


def calibration(table: Calibration | None) -> str:
    """Show the reward model's accuracy by margin, as a chart and a table."""
    if table is None:
        return ""
    bins = table.bins
    chart = calibration_chart(bins)
    head = [f'<th class="num">{name}</th>' for name in ("margin", "confidence %", "accuracy %", "n")]
    body = []
    for b in bins:
        cells = (f"{b.low:.2f} to {b.high:.2f}", f"{b.confidence:.1f}")
        cells += (f"{b.accuracy:.1f} <small>{interval_text(b.interval)}</small>", f"{b.n}")
        body.append("<tr>" + "".join(f'<td class="num">{c}</td>' for c in cells) + "</tr>")
    missing = f", {table.n_missing} more without a label" if table.n_missing else ""
    note = _note(
        f"Accuracy {table.accuracy:.1f} % {interval_text(table.interval)} on {table.n_total} pairs{missing}; "
        f"expected calibration error {table.calibration_error:.1f} points. Confidence is the "
        "Bradley-Terry probability of the output it prefers; on the dashed line it equals the accuracy."
    )
    return (
        '<div class="pair"><figure class="card"><figcaption><h4>accuracy against confidence, %</h4>'
        f"</figcaption>{chart}</figure><div>{_table(head, body, kind='plain')}{note}</div></div>"
    )


def _board_row(rank: int, row: LeaderboardRow, has_utility: bool, has_length: bool) -> str:
    # The data-label attributes are the column names that report.css shows when a narrow screen hides the
    # head.
    cells = [f'<td class="rank">{rank}</td><th>{breakable_name(row.method)}</th>']
    w, u = row.win_rate, row.utility
    if w is None:
        # The baseline keeps its row without a drawing: an error bar would suggest that it was measured.
        what = "baseline, 50 by construction" if row.method == row.baseline else "not judged"
        cells.append(_measure("judge win rate", "", what, ""))
    else:
        error = "" if math.isnan(w.standard_error) else f" ± {w.standard_error:.1f}"
        # Rows published by others may have a rate without counts.
        counts = f"{w.n_wins} wins, {w.n_draws} draws, {w.n_wins_base} losses, "
        title = (
            f"{row.method}: {w.win_rate:.2f} % {interval_text(w.interval)}; "
            f"{counts if w.n_wins is not None else ''}{w.n_missing} missing; "
            f"judge {row.judged_by} against {row.baseline}"
        )
        n = f"n {w.n_total}" + (f", {w.n_missing} missing" if w.n_missing else "")
        value = f"{w.win_rate:.1f}{error}"
        cells.append(_measure("judge win rate", value, n, track(w.win_rate, w.interval, title)))
    if has_length:
        cells.append(_length_controlled(row.length_controlled))
    if has_utility and u is None:
        cells.append(_measure("true utility win rate", "", "not known", "") + '<td class="num"></td>')
    elif has_utility:
        ends = interval_text(u.interval)
        counts = f"{u.n_wins} wins, {u.n_ties} ties, {u.n_losses} losses"
        title = f"{row.method}: {u.win_rate:.2f} % {ends}; {counts} against {row.utility_base}"
        drawing = track(u.win_rate, u.interval, title, colour=2)
        cells.append(_measure("true utility win rate", f"{u.win_rate:.1f}", f"{ends} n {u.n_total}", drawing))
        cells.append(f'<td class="num" data-label="mean utility">{u.mean_utility:.3f}</td>')
    length = "–" if row.avg_length is None else row.avg_length
    cells.append(f'<td class="num" data-label="length">{length}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _length_controlled(found: LengthControlled | None) -> str:
    if found is None:
        return '<td class="num"></td>'
    error = "" if math.isnan(found.standard_error) else f" ± {found.standard_error:.1f}"
    return (
        f'<td class="num" data-label="length-controlled">{found.win_rate:.1f}{error} '
        f"<small>n {found.n_total}</small></td>"
    )


def _judge_row(result: JudgeResult, low: float) -> str:
    a, b = result.agreement, result.biases
    ends = interval_text(a.interval)
    title = f"{result.name}: {a.agreement:.2f} % {ends}, n {a.n_total}, {a.n_missing} missing"
    drawing = track(a.agreement, a.interval, title, low=low)
    kappa = "–" if math.isnan(a.kappa) else f"{a.kappa:.2f}"
    cells = [
        f"<th>{breakable_name(result.name)}</th>",
        _measure("agreement", f"{a.agreement:.1f}", f"{ends} n {a.n_total}", drawing),
        f'<td class="num" data-label="kappa">{kappa}</td>',
        _rate("clear pairs", a.clear_agreement, a.n_clear),
        _rate("prefers longer", b.prefers_longer if b else math.nan, b.n_longer if b else 0),
        _rate("prefers list", b.prefers_list if b else math.nan, b.n_list if b else 0),
        _rate("prefers first", b.prefers_first if b else math.nan, b.n_first if b else 0),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _measure(label: str, value: str, note: str, drawing: str) -> str:
    """Two cells: the number with its small print, and its drawing."""
    return (
        f'<td class="value" data-label="{label}">{escape_html(value)} <small>{escape_html(note)}</small></td>'
        f'<td class="wide">{drawing}</td>'
    )


def _scale_head(label: str, low: float) -> str:
    # The line at 50 is in the middle only when the scale starts at 0.
    middle = 100 * (50 - low) / (100 - low)
    ends = f'<i style="left:0">{low:.0f}</i><i style="left:{middle:.1f}%">50</i><i style="left:100%">100</i>'
    return f'<th>{label}</th><th class="scale"><div>{ends}</div></th>'


def _rate(label: str, value: float, n: int) -> str:
    shown = "–" if math.isnan(value) else f"{value:.1f} <small>n {n}</small>"
    return f'<td class="num" data-label="{label}">{shown}</td>'


def _table(head: Sequence[str], body: Sequence[str], kind: str = "board") -> str:
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _note(text: str) -> str:
    # Notes are built from caption lines, which start in lower case.
    return f'<p class="note">{escape_html(text[:1].upper() + text[1:])}</p>'
