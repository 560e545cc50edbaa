"""Formats the leaderboard, one sorted row per method, as terminal text, Markdown and CSV.

It only lays out what `evaluation.measures` has computed, and shows every rate with the n it rests on.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_jax.evaluation.measures.length_control import LengthControlled
from rlhf_jax.evaluation.measures.win_rate import (
    BOOTSTRAP_NAME,
    INTERVAL_NAME,
    UtilityWinRate,
    WinRate,
)

# Fields of `WinRate` that become CSV columns under the same name.
_RATE = ("win_rate", "standard_error", "discrete_win_rate", "n_wins", "n_draws", "n_wins_base", "n_total")
_RATE += ("n_missing", "coverage")
CSV_COLUMNS = (
    *("rank", "method", "judge", "judge_id", "baseline"),
    *(*_RATE[:2], "win_rate_low", "win_rate_high", *_RATE[2:]),
    *("length_controlled", "length_controlled_error", "n_length_controlled"),
    *("utility_base", "utility_win_rate", "utility_low", "utility_high", "n_utility", "mean_utility"),
    *("avg_length", "n_outputs"),
)
_TEXT_COLUMNS = ("method", "judge", "baseline")


@dataclass(frozen=True)
class LeaderboardRow:
    """One method's results, as far as they were measured.

    win_rate: against `baseline`, by `judge`; None for the baseline itself (50 by construction) and for a
      method that was not judged.
    judge_id: a hash of everything that can change the judge's labels, "" where it is not known.
    length_controlled: from the same labels; None where it was not asked for or could not be fitted.
    utility: against the outputs of `utility_base`; None on data without a known utility.
    avg_length: mean characters over all `n_outputs` outputs, truncated to an integer as AlpacaEval does.
    """

    method: str
    judge: str
    baseline: str
    win_rate: WinRate | None
    avg_length: int | None
    n_outputs: int
    utility: UtilityWinRate | None = None
    utility_base: str = ""
    judge_id: str = ""
    length_controlled: LengthControlled | None = None

    @property
    def judged_by(self) -> str:
        """The judge's name, followed by its id in brackets where that is known."""
        return f"{self.judge} ({self.judge_id})" if self.judge_id else self.judge


def average_length(outputs: Sequence[str]) -> int:
    """Mean length of the outputs in characters, truncated (AlpacaEval `avg_length`); 0 for no outputs."""
    return int(sum(map(len, outputs)) / len(outputs)) if outputs else 0


def sort_rows(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Best first: by judge win rate (baseline at 50, methods not judged last), then utility, then name."""

    def key(row: LeaderboardRow) -> tuple[float, float, str]:
        # The name comes last, so that ties have the same order in every run and in all three formats.
        return (-_rank_value(row), -(row.utility.win_rate if row.utility else -math.inf), row.method)

    return sorted(rows, key=key)


def leaderboard_text(rows: Sequence[LeaderboardRow]) -> str:
    """Aligned columns for a terminal, with a caption that names judge, baseline and intervals."""
    header, body = _cells(rows)
    table = [header, *body]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    left = {i for i, name in enumerate(header) if name in _TEXT_COLUMNS}

    def line(cells: list[str]) -> str:
        padded = (
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(header), rule, *(line(cells) for cells in body), "", *caption(rows)]) + "\n"


def leaderboard_markdown(rows: Sequence[LeaderboardRow]) -> str:
    """A Markdown table: the terminal's cells, and judge, baseline and coverage in every row."""
    # A Markdown table gets copied without its caption, so each row names its judge, baseline and coverage.
    header, body = _cells(rows, whole=True)
    align = [":--" if name in _TEXT_COLUMNS else "--:" for name in header]
    lines = ["| " + " | ".join(_markdown(c) for c in cells) + " |" for cells in [header, align, *body]]
    return "\n".join([*lines, "", _markdown("; ".join(caption(rows)) + ".")]) + "\n"


def leaderboard_csv(rows: Sequence[LeaderboardRow]) -> str:
    """CSV at full precision (`CSV_COLUMNS`); an empty field is a value that does not exist."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for rank, row in enumerate(sort_rows(rows), 1):
        writer.writerow({"rank": rank, **_record(row)})
    return out.getvalue()


def caption(rows: Sequence[LeaderboardRow]) -> list[str]:
    """Explain the numbers in lines: the judge, the baseline, and how the intervals were computed."""
    # Rows that share judge and baseline do not repeat them: the caption names both once.
    who = f": judge {rows[0].judged_by} against {rows[0].baseline}" if rows and not _mixed(rows) else ""
    lines = [f"win rate{who}, ± standard error over n rows; [ ] {INTERVAL_NAME}"]
    if any(row.length_controlled for row in rows):
        lines.append("length-controlled: the same n labels as if all outputs were as long as the baseline's")
    bases = sorted({row.utility_base for row in rows if row.utility})
    if bases:
        lines.append(f"utility win rate: true utility against {', '.join(bases)}; [ ] {BOOTSTRAP_NAME}")
    return lines


def interval_text(interval: tuple[float, float]) -> str:
    """An interval as the tables print it: [66.0, 74.9]."""
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]"


def _mixed(rows: Sequence[LeaderboardRow]) -> bool:
    """Whether judges or baselines differ; the rows then do not compare, and each must name its own."""
    return len({(row.judge, row.judge_id, row.baseline) for row in rows}) > 1


def _rank_value(row: LeaderboardRow) -> float:
    if row.win_rate is not None:
        return row.win_rate.win_rate
    # A baseline wins half of the comparisons with itself, so it ranks at 50 without being judged.
    return 50.0 if row.method == row.baseline else -math.inf


def _cells(rows: Sequence[LeaderboardRow], whole: bool = False) -> tuple[list[str], list[list[str]]]:
    who, has_utility = whole or _mixed(rows), any(row.utility for row in rows)
    has_length = any(row.length_controlled for row in rows)
    # Columns that no row can fill are left out: many runs have no length control, and only the embedded world
    # has a known utility.
    header = ["#", "method", *(["judge", "baseline"] if who else []), "win rate", "95 %", "n"]
    header += ["coverage"] if whole else []
    header += ["length-controlled"] if has_length else []
    header += ["utility win rate", "95 %", "n", "mean utility"] if has_utility else []
    header.append("length")
    body = []
    for rank, row in enumerate(sort_rows(rows), 1):
        cells = [str(rank), row.method, *([row.judged_by, row.baseline] if who else []), *_win_cells(row)]
        cells += [f"{100 * row.win_rate.coverage:.1f} %" if row.win_rate else ""] if whole else []
        cells += [_length_cell(row.length_controlled)] if has_length else []
        cells += _utility_cells(row.utility) if has_utility else []
        body.append([*cells, "" if row.avg_length is None else str(row.avg_length)])
    return header, body


def _win_cells(row: LeaderboardRow) -> list[str]:
    w = row.win_rate
    if w is None:
        return ["baseline" if row.method == row.baseline else "not judged", "", ""]
    # A single label has no standard error.
    error = "" if math.isnan(w.standard_error) else f" ± {w.standard_error:.1f}"
    # "300 of 305" says that five pairs have no label. A rate over fewer pairs must not pass for one over all.
    n = f"{w.n_total}" if w.n_missing == 0 else f"{w.n_total} of {w.n_total + w.n_missing}"
    return [f"{w.win_rate:.1f}{error}", interval_text(w.interval), n]


def _length_cell(found: LengthControlled | None) -> str:
    if found is None:
        return ""
    error = "" if math.isnan(found.standard_error) else f" ± {found.standard_error:.1f}"
    return f"{found.win_rate:.1f}{error}"


def _utility_cells(u: UtilityWinRate | None) -> list[str]:
    if u is None:
        return ["", "", "", ""]
    return [f"{u.win_rate:.1f}", interval_text(u.interval), f"{u.n_total}", f"{u.mean_utility:.3f}"]


def _markdown(cell: str) -> str:
    """Escape a cell: the name of a method or judge must not end it, nor the line, nor bring in HTML."""
    # The order matters: "&" before "<" and the backslash before "|", or the escapes just written would be
    # escaped again.
    escaped = cell.replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\").replace("|", "\\|")
    return " ".join(escaped.split())


def _known(value: float) -> float | str:
    # Readers of CSV disagree about "nan"; all of them take an empty field for a missing value.
    return "" if math.isnan(value) else value


def _record(row: LeaderboardRow) -> dict[str, object]:
    record: dict[str, object] = {"method": row.method, "judge": row.judge, "judge_id": row.judge_id}
    record |= {"baseline": row.baseline, "avg_length": row.avg_length, "n_outputs": row.n_outputs}
    if (w := row.win_rate) is not None:
        record |= {name: getattr(w, name) for name in _RATE}
        record |= {"win_rate_low": w.interval[0], "win_rate_high": w.interval[1]}
        record["standard_error"] = _known(w.standard_error)
    if (c := row.length_controlled) is not None:
        record |= {"length_controlled": c.win_rate, "length_controlled_error": _known(c.standard_error)}
        record["n_length_controlled"] = c.n_total
    if (u := row.utility) is not None:
        record |= {"utility_base": row.utility_base, "utility_win_rate": u.win_rate, "n_utility": u.n_total}
        record |= {"utility_low": u.interval[0], "utility_high": u.interval[1]}
        record["mean_utility"] = u.mean_utility
    return record
