"""Formats the tables of evaluators and of model ratings as terminal text and CSV, every number with its n."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation.measures.bradley_terry import Rating
from rlhf_jax.evaluation.measures.evaluators import Evaluator, Share
from rlhf_jax.evaluation.measures.rating_win_rates import Consistency

# Fields of `Evaluator` that are a `Share`, a value and the n it rests on. Each becomes two columns.
_SHARES = ("human_agreement", "bias", "variance", "spearman", "pearson", "prefers_1", "usd", "seconds")
# What an annotator may favour. `Biases` has a rate prefers_<name> and a count n_<name> for each.
_TASTES = ("longer", "list", "first")
EVALUATOR_COLUMNS = (
    "name",
    *(column for name in _SHARES for column in (name, f"n_{name}")),
    *(column for name in _TASTES for column in (f"prefers_{name}", f"n_{name}")),
    *("n_parsed", "n_rows"),
)
RATING_COLUMNS = (
    "rank",
    "model",
    "rating",
    "rating_low",
    "rating_high",
    "win_rate",
    "n_games",
    "elo",
    "elo_spread",
)


def evaluators_text(rows: Sequence[Evaluator]) -> str:
    """AlpacaEval's table of evaluators in aligned columns, n in brackets where it is not that of the row."""
    head = ["annotator", "agreement", "bias", "variance", "spearman", "pearson", "longer", "list", "first"]
    head += ["output_1", "$/1000", "s/1000", "labels"]
    body = []
    for row in rows:
        b = row.biases
        tastes = [Share(getattr(b, f"prefers_{t}"), getattr(b, f"n_{t}")) for t in _TASTES]
        shares = [(row.human_agreement, ".1f"), (row.bias, ".1f"), (row.variance, ".1f")]
        shares += [(row.spearman, ".2f"), (row.pearson, ".2f"), *((t, ".1f") for t in tastes)]
        shares += [(row.prefers_1, ".1f"), (row.usd, ".2f"), (row.seconds, ".0f")]
        # A dash is a value that does not exist, such as the variance of an annotator with one label per pair.
        cells = ["-" if math.isnan(s.value) else f"{s.value:{form}} ({s.n})" for s, form in shares]
        body.append([row.name, *cells, f"{row.n_parsed} of {row.n_rows}"])
    return aligned([head, *body])


def evaluators_csv(rows: Sequence[Evaluator]) -> str:
    """Write `EVALUATOR_COLUMNS` as CSV at full precision; an empty field is a value that does not exist."""
    records = []
    for row in rows:
        record: dict[str, object] = {"name": row.name, "n_parsed": row.n_parsed, "n_rows": row.n_rows}
        for name in _SHARES:
            share = getattr(row, name)
            record |= {name: _known(share.value), f"n_{name}": share.n}
        for taste in _TASTES:
            record[f"prefers_{taste}"] = _known(getattr(row.biases, f"prefers_{taste}"))
            record[f"n_{taste}"] = getattr(row.biases, f"n_{taste}")
        records.append(record)
    return csv_text(EVALUATOR_COLUMNS, records)


def ratings_text(rows: Sequence[Rating], elo: Mapping[str, tuple[float, float]]) -> str:
    """Show Bradley-Terry ratings with intervals beside Elo ratings with their spread over game orders."""
    # Elo depends on the order in which games are played, Bradley-Terry does not. The last column says by how
    # much.
    head = ["#", "model", "rating", "95 %", "win rate", "games", "Elo", "± order"]
    body = [
        [
            *(str(rank), row.model, f"{row.rating:.0f}"),
            *(f"[{row.interval[0]:.0f}, {row.interval[1]:.0f}]", f"{row.win_rate:.1f}", str(row.n_games)),
            *(f"{elo[row.model][0]:.0f}", f"{elo[row.model][1]:.0f}"),
        ]
        for rank, row in enumerate(rows, 1)
    ]
    return aligned([head, *body])


def ratings_csv(rows: Sequence[Rating], elo: Mapping[str, tuple[float, float]]) -> str:
    """Write `RATING_COLUMNS` as CSV at full precision."""
    records = [
        {
            "rank": rank,
            "model": row.model,
            "rating": row.rating,
            "rating_low": row.interval[0],
            "rating_high": row.interval[1],
            "win_rate": row.win_rate,
            "n_games": row.n_games,
            "elo": elo[row.model][0],
            "elo_spread": elo[row.model][1],
        }
        for rank, row in enumerate(rows, 1)
    ]
    return csv_text(RATING_COLUMNS, records)


def consistency_csv(found: Consistency) -> str:
    """A line: how often ratings and rankings of the same pairs agree, in percent, with its interval and counts."""
    low, high = found.interval
    record = {
        "measure": "ratings against rankings",
        "consistency": found.consistency,
        "low": low,
        "high": high,
    }
    record |= {"n_total": found.n_total, "n_unrated": found.n_unrated, "n_unranked": found.n_unranked}
    return csv_text(list(record), [record])


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value


def csv_text(columns: Sequence[str], records: Sequence[Mapping[str, object]]) -> str:
    """Write records as CSV, at full precision as they stand."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; text columns to the left."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    left = {i for i, name in enumerate(table[0]) if name in ("annotator", "model")}

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in pairs).rstrip()

    return "\n".join(map(line, table)) + "\n"
