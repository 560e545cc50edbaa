"""Win rates from ratings and from rankings, and how consistent the two are (Bansal et al. 2024, sparse_feedback).

A rating row is instruction (and input) or prompt, output and rating, None where the annotator failed. A ranking
row is instruction (and input) or prompt, output_1, output_2 and either `preference` in [1, 2] or `ranking`, one
of "(a)", "(b)" and "equal".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_jax.data.files.tables import shown
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.win_rate import (
    WinRate,
    read_preferences,
    wilson_interval,
    win_rate,
)

RANKINGS = {"(a)": 1.0, "equal": 1.5, "(b)": 2.0}
VERDICTS = ("output_1", "equal", "output_2")
_VERDICT = {1.0: "output_1", 1.5: "equal", 2.0: "output_2"}


@dataclass(frozen=True)
class Consistency:
    """Whether the order of two ratings is what a ranking of the same two outputs says, in percent.

    table: what the ratings imply -> what the ranking says -> pairs; a decision between equal ratings is an
    inconsistency, and so is "equal" between different ones. n_unrated: ranked pairs of which an output has no
    rating. n_unranked: pairs without a usable ranking.
    """

    consistency: float
    interval: tuple[float, float]
    n_total: int
    n_unrated: int
    n_unranked: int
    table: Mapping[str, Mapping[str, int]]


def win_rate_from_ratings(
    model: Sequence[Mapping], base: Sequence[Mapping], *, min_coverage: float = 0.8
) -> WinRate:
    """How often the model's output is rated above the base's on the same prompt; equal ratings are a draw.

    The first row of a prompt counts. A prompt that only one side has, or with a rating missing, is a missing
    row: its share is bounded by `min_coverage`. sparse_feedback's interval is the result's
    `normal_interval`. Raises UserError for a rating that is no number or no prompt in common.
    """
    one, two = _by_prompt(base, "base"), _by_prompt(model, "model")
    if not one.keys() & two.keys():
        raise UserError(
            f"model: none of its {len(two)} prompts is among the {len(one)} of base; rate the same prompts"
        )
    keys = list(dict.fromkeys([*one, *two]))
    return win_rate([_order(one.get(k), two.get(k)) for k in keys], min_coverage=min_coverage)


def win_rate_from_rankings(rows: Sequence[Mapping], *, min_coverage: float = 0.8) -> WinRate:
    """The win rate of output_2 over output_1; "equal" is a draw, anything unreadable a missing row."""
    return win_rate(ranking_preferences(rows), min_coverage=min_coverage)


def ranking_preferences(rows: Sequence[Mapping]) -> list[float | None]:
    """Preferences [N] of ranking rows, by `preference` or `ranking`.

    Raises UserError when a row has neither column or a ranking is none of `RANKINGS` and not empty.
    """
    out: list[float | None] = []
    for i, row in enumerate(rows):
        if "preference" in row:
            value = read_preferences([row["preference"]], f"rows[{i}]: preference")[0]
            out.append(None if math.isnan(value) else float(value))
        elif "ranking" in row:
            # What was said may be NaN, which pandas writes for an empty cell and which alone is not itself.
            found = row["ranking"]
            said = found.strip().lower() if isinstance(found, str) else found
            if not (said in ("", None) or said != said or (isinstance(said, str) and said in RANKINGS)):
                raise UserError(
                    f"rows[{i}]: ranking: found {shown(row['ranking'])}; give one of {', '.join(RANKINGS)}"
                )
            out.append(RANKINGS.get(said) if isinstance(said, str) else None)
        else:
            raise UserError(f"rows[{i}]: has no preference and no ranking; it has {', '.join(row)}")
    return out


def consistency(
    ratings: Sequence[Mapping], rankings: Sequence[Mapping], *, min_coverage: float = 0.0
) -> Consistency:
    """How often ratings and rankings agree on the better of two outputs, over pairs that have both.

    The first rating of an output and the first ranking of a pair count. A graded preference is read as
    decided. Raises UserError when no ranked pair has two ratings, or fewer than `min_coverage` of them have.
    """
    rated: dict[tuple, float | None] = {}
    for i, row in enumerate(ratings):
        rated.setdefault((*_prompt(row, f"ratings[{i}]"), row["output"]), _rating(row, f"ratings[{i}]"))
    table = {implied: dict.fromkeys(VERDICTS, 0) for implied in VERDICTS}
    seen: set[tuple] = set()
    unrated = unranked = 0
    for i, (row, label) in enumerate(zip(rankings, ranking_preferences(rankings), strict=True)):
        prompt = _prompt(row, f"rankings[{i}]")
        pair = (*prompt, row["output_1"], row["output_2"])
        if pair in seen:
            continue
        seen.add(pair)
        # Ratings are of an output, whatever it stood beside when it was rated.
        implied = _order(*(rated.get((*prompt, row[name])) for name in ("output_1", "output_2")))
        if label is None:
            unranked += 1
        elif implied is None:
            unrated += 1
        else:
            said = 1.0 if label < 1.5 else 2.0 if label > 1.5 else 1.5
            table[_VERDICT[implied]][_VERDICT[said]] += 1
    n = sum(sum(row.values()) for row in table.values())
    if n == 0 or n < min_coverage * len(seen):
        raise UserError(
            f"ratings: {n} of {len(seen)} ranked pairs have a ranking and two ratings; at least one and "
            f"{100 * min_coverage:g} % are needed: rate the same outputs that were ranked"
        )
    share = sum(table[verdict][verdict] for verdict in VERDICTS) / n
    return Consistency(100 * share, wilson_interval(share, n), n, unrated, unranked, table)


def _order(rating_1: float | None, rating_2: float | None) -> float | None:
    """1, 1.5 or 2: which is rated higher; None where a rating is missing."""
    if rating_1 is None or rating_2 is None:
        return None
    return 1.0 if rating_1 > rating_2 else 2.0 if rating_2 > rating_1 else 1.5


def _by_prompt(rows: Iterable[Mapping], name: str) -> dict[tuple[str, str], float | None]:
    found: dict[tuple[str, str], float | None] = {}
    for i, row in enumerate(rows):
        found.setdefault(_prompt(row, f"{name}[{i}]"), _rating(row, f"{name}[{i}]"))
    return found


def _prompt(row: Mapping, where: str) -> tuple[str, str]:
    text = row.get("instruction", row.get("prompt"))
    if not isinstance(text, str):
        raise UserError(f"{where}: instruction: found {shown(text)}; it must be text (or give prompt)")
    extra = row.get("input")
    if extra is None or extra != extra:
        return text, ""
    if not isinstance(extra, str):
        raise UserError(f"{where}: input: found {shown(extra)}; it must be text")
    return text, extra


def _rating(row: Mapping, where: str) -> float | None:
    value = row.get("rating")
    if value is None:
        return None
    try:
        # True is the number 1 to Python, and no rating.
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise UserError(f"{where}: rating: found {shown(value)}; give a number, or null where it failed")
    return None if math.isnan(number) else number
