"""Writes the report's comparisons: method against method, evaluators against a gold crowd, model ratings.

Each function returns HTML, or "" when there is nothing to show. All text goes through `escape_html`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation.measures.bootstrap import PAIRED_NAME, Difference
from rlhf_jax.evaluation.measures.bradley_terry import CENTRE, Rating
from rlhf_jax.evaluation.measures.evaluators import Evaluator, Share
from rlhf_jax.evaluation.report.charts import escape_html, track

# The page shows this many and says how many more there are: 28 pairs are those of 8 methods.
_MOST_PAIRS = 28
_MOST_METHODS = 12


def comparisons(differences: Sequence[Difference], against: Mapping[str, Mapping[str, float]]) -> str:
    """Show paired differences of win rates, and length-controlled win rates between any two methods."""
    parts = [_differences(differences), _against(against)]
    return "".join(part for part in parts if part)


def evaluators(rows: Sequence[Evaluator]) -> str:
    """Show AlpacaEval's table of evaluators."""
    if not rows:
        return ""
    names = ("agreement %", "bias %", "variance %", "Spearman", "Pearson", "longer %", "list %", "first %")
    names += ("output_1 %", "$/1,000", "s/1,000", "labels")
    head = "<th>annotator</th>" + "".join(f'<th class="num">{name}</th>' for name in names)
    body = "".join(_evaluator_row(row) for row in rows)
    note = (
        "Agreement: of single labels with the majority of the gold ones. Bias: of the annotator's majority, "
        "variance: of one label with the annotator's others, both as errors. Correlations are over the win rates "
        "of generators. Longer, list, first, output_1: how often that one is preferred. A dash is a value that "
        "does not exist or is not known; small numbers are n."
    )
    return f"{_scrolled(head, body)}{_note(note)}"


def ratings_section(rows: Sequence[Rating]) -> str:
    """Show models on one rating scale, with intervals."""
    if not rows:
        return ""
    # The scale is symmetric about CENTRE, and at least one point wide: equal ratings would divide by zero.
    reach = max(1.0, *(abs(x - CENTRE) for row in rows for x in (row.rating, *row.interval)))
    body = []
    for rank, row in enumerate(rows, 1):
        said = f"[{row.interval[0]:.0f}, {row.interval[1]:.0f}]"
        title = f"{row.model}: {row.rating:.1f} {said}, {row.n_games} games"
        # The track's dashed line is at 50 of 100: here that is the rating 1000.
        at, low, high = (50 + 50 * (x - CENTRE) / reach for x in (row.rating, *row.interval))
        body.append(
            f'<tr><td class="rank">{rank}</td><th>{escape_html(row.model)}</th>'
            f'<td class="value" data-label="rating">{row.rating:.0f} <small>{said}</small></td>'
            f'<td class="wide">{track(at, (low, high), title)}</td>'
            f'<td class="num" data-label="win rate">{row.win_rate:.1f} %</td>'
            f'<td class="num" data-label="games">{row.n_games}</td></tr>'
        )
    head = '<th>#</th><th>model</th><th>rating</th><th></th><th class="num">win rate</th><th class="num">games</th>'
    note = (
        "Bradley-Terry strengths on Elo's scale: 400 points are odds of 10 to 1, the dashed line is 1000. [ ] "
        "percentile bootstrap over instructions, 95 %."
    )
    return f"{_scrolled(head, ''.join(body), 'board')}{_note(note)}"


def _differences(differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    reach = max(1.0, *(abs(end) for d in differences for end in (*d.interval, d.difference)))
    body = []
    for d in differences[:_MOST_PAIRS]:
        ends = f"[{d.interval[0]:+.1f}, {d.interval[1]:+.1f}]"
        title = f"{d.a} - {d.b}: {d.difference:+.2f} points {ends}, n {d.n_total}, {d.n_missing} missing"
        at, low, high = (50 + 50 * x / reach for x in (d.difference, *d.interval))
        body.append(
            f"<tr><th>{escape_html(d.a)} − {escape_html(d.b)}</th>"
            f'<td class="value" data-label="difference">{d.difference:+.1f} <small>{ends} n {d.n_total}</small></td>'
            f'<td class="wide">{track(at, (low, high), title, colour=3)}</td>'
            f'<td class="num" data-label="p">{d.p_value:.4f}</td></tr>'
        )
    more = len(differences) - _MOST_PAIRS
    note = f"Difference of judge win rates in points; [ ] {PAIRED_NAME}; the dashed line is 0."
    note += f" {more} more pairs are in summary.json." if more > 0 else ""
    head = '<th>methods</th><th>difference</th><th></th><th class="num">p</th>'
    return f"{_scrolled(head, ''.join(body), 'board')}{_note(note)}"


def _against(against: Mapping[str, Mapping[str, float]]) -> str:
    names = list(against)[:_MOST_METHODS]
    if not names:
        return ""
    head = "<th>% against</th>" + "".join(f'<th class="num">{escape_html(name)}</th>' for name in names)
    body = []
    for a in names:
        # The diagonal, a method against itself, has no entry.
        cells = (f"{against[a][b]:.1f}" if b in against[a] else "–" for b in names)
        body.append(
            f"<tr><th>{escape_html(a)}</th>"
            + "".join(f'<td class="num">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    note = (
        "Length-controlled win rate of the row's method against the column's, from the fits against the "
        "baseline: nobody was asked to compare the two."
    )
    return f"<h3>Any method against any</h3>{_scrolled(head, ''.join(body))}{_note(note)}"


def _evaluator_row(row: Evaluator) -> str:
    b = row.biases
    shares = [row.human_agreement, row.bias, row.variance]
    cells = [_share(share, ".1f") for share in shares]
    cells += [_share(share, ".2f") for share in (row.spearman, row.pearson)]
    tastes = ((b.prefers_longer, b.n_longer), (b.prefers_list, b.n_list), (b.prefers_first, b.n_first))
    cells += [_share(Share(value, n), ".1f") for value, n in tastes]
    cells += [_share(row.prefers_1, ".1f"), _share(row.usd, ".2f"), _share(row.seconds, ".0f")]
    cells.append(f"{row.n_parsed} of {row.n_rows}")
    return (
        f"<tr><th>{escape_html(row.name)}</th>"
        + "".join(f'<td class="num">{c}</td>' for c in cells)
        + "</tr>"
    )


def _share(share: Share, form: str) -> str:
    return "–" if math.isnan(share.value) else f"{share.value:{form}} <small>{share.n}</small>"


def _scrolled(head: str, body: str, kind: str = "plain") -> str:
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape_html(text)}</p>'
