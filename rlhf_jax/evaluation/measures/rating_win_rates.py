"""Win rates from ratings and from rankings, and how consistent the two are (Bansal et al. 2024, sparse_feedback).

A rating row is instruction (and input) or prompt, output and rating, None where the annotator failed. A ranking
row is instruction (and input) or prompt, output_1, output_2 and either `preference` in [1, 2] or `ranking`, one
of "(a)", "(b)" and "equal".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
# Who rated, as (judge_id, annotator), "" where a row does not say it; and the first rating of each of them.
Judge = tuple[str, ...]
Ratings = dict[Judge, float]

_VERDICT = {1.0: "output_1", 1.5: "equal", 2.0: "output_2"}


@dataclass(frozen=True)
class Consistency:
    """Whether the order of two ratings is what a ranking of the same two outputs says, in percent.

    table: what the ratings imply -> what the ranking says -> pairs; a decision between equal ratings is an
    inconsistency, and so is "equal" between different ones. n_unrated: ranked pairs of which an output has no
    rating. n_unranked: pairs without a usable ranking. n_other_judge: pairs whose ratings are of different judges.
    """

    consistency: float
    interval: tuple[float, float]
    n_total: int
    n_unrated: int
    n_unranked: int
    table: Mapping[str, Mapping[str, int]]
    n_other_judge: int = 0


class RatedPairs(NamedTuple):
    """Preferences by ratings, one for every prompt that either side has, None where there is none.

    n_other_judge: prompts that both sides rate, but no judge rates both. n_again: ratings beyond the first of a prompt
    on each side; one of them counts where it is the first that the other side has a rating of the same judge for.
    """

    preferences: list[float | None]
    n_other_judge: int
    n_again: int

    def lines(self, name: str) -> list[str]:
        """Says which ratings are not compared; [] when all are."""
        said = {
            f"{self.n_again} ratings are further ones of their prompt; the first that can be compared counts": (
                self.n_again
            ),
            f"on {self.n_other_judge} prompts the baseline is rated by another judge; they count as missing": (
                self.n_other_judge
            ),
        }
        return [f"{name}: {line}" for line, n in said.items() if n]


def win_rate_from_ratings(
    model: Sequence[Mapping], base: Sequence[Mapping], *, min_coverage: float = 0.8
) -> WinRate:
    """How often the model's output is rated above the base's on the same prompt; equal ratings are a draw.

    The pairs are those of `rated_pairs`. A prompt that only one side has, or without two ratings of one judge, is a
    missing row: its share is bounded by `min_coverage`. sparse_feedback's interval is the result's
    `normal_interval`.
    """
    return win_rate(rated_pairs(model, base).preferences, min_coverage=min_coverage)


def rated_pairs(model: Sequence[Mapping], base: Sequence[Mapping]) -> RatedPairs:
    """Joins the ratings of the same prompts by the same judge, of output_1 the base and output_2 the model.

    The first row of a prompt that has a rating counts, and further ones do not. Where both rows say who rated, by
    `judge_id` or `annotator`, that must be the same: a 9 of one judge is no more than a 7 of another. Raises UserError
    for a rating that is no number, no prompt in common, or when different judges rated all of them.
    """
    one, two = _by_prompt(base, "base"), _by_prompt(model, "model")
    if not one.keys() & two.keys():
        raise UserError(
            f"model: none of its {len(two)} prompts is among the {len(one)} of base; rate the same prompts"
        )
    preferences: list[float | None] = []
    apart: list[tuple[Ratings, Ratings]] = []
    for prompt in dict.fromkeys([*one, *two]):
        both = one.get(prompt, {}), two.get(prompt, {})
        preferences.append(_order(*both))
        if preferences[-1] is None and all(both):
            apart.append(both)
    if apart and not any(preferences):
        theirs, mine = _names_of_judges(*apart[0])
        raise UserError(
            f"model: its ratings are by {mine} and those of base by {theirs}, which do not compare; let one judge rate "
            "both"
        )
    n_rated = sum(_rating(row, "") is not None for row in (*base, *model))
    return RatedPairs(preferences, len(apart), n_rated - sum(map(bool, (*one.values(), *two.values()))))


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

    The first rating of an output and the first ranking of a pair count that are there, of ratings by different
    judges the first two of one judge. A graded preference is read as decided. Raises UserError when no ranked pair has
    two ratings, or fewer than `min_coverage` of them have.
    """
    rated: dict[tuple, Ratings] = {}
    for i, row in enumerate(ratings):
        where = f"ratings[{i}]"
        _add(rated.setdefault((*_prompt(row, where), row["output"]), {}), row, where)
    ranked: dict[tuple, float | None] = {}
    for i, (row, label) in enumerate(zip(rankings, ranking_preferences(rankings), strict=True)):
        pair = (*_prompt(row, f"rankings[{i}]"), row["output_1"], row["output_2"])
        if ranked.get(pair) is None:
            ranked[pair] = label
    table = {implied: dict.fromkeys(VERDICTS, 0) for implied in VERDICTS}
    unrated = unranked = other_judge = 0
    for (*prompt, one, two), label in ranked.items():
        # Ratings are of an output, whatever it stood beside when it was rated.
        both = rated.get((*prompt, one), {}), rated.get((*prompt, two), {})
        implied = _order(*both)
        if label is None:
            unranked += 1
        elif implied is None and all(both):
            other_judge += 1
        elif implied is None:
            unrated += 1
        else:
            said = 1.0 if label < 1.5 else 2.0 if label > 1.5 else 1.5
            table[_VERDICT[implied]][_VERDICT[said]] += 1
    n = sum(sum(row.values()) for row in table.values())
    if n == 0 or n < min_coverage * len(ranked):
        raise UserError(
            f"ratings: {n} of {len(ranked)} ranked pairs have a ranking and two ratings of one judge; at least one and "
            f"{100 * min_coverage:g} % are needed: rate the same outputs that were ranked"
        )
    share = sum(table[verdict][verdict] for verdict in VERDICTS) / n
    return Consistency(100 * share, wilson_interval(share, n), n, unrated, unranked, table, other_judge)


def _order(ratings_1: Ratings, ratings_2: Ratings) -> float | None:
    """1, 1.5 or 2: which is rated higher, by the first two ratings that compare; None where none do."""
    two = ((a, b) for judge, a in ratings_1.items() for other, b in ratings_2.items() if _same(judge, other))
    a, b = next(two, (None, None))
    if a is None or b is None:
        return None
    return 1.0 if a > b else 2.0 if b > a else 1.5


def _same(one: Judge, other: Judge) -> bool:
    """Whether one judge rated; the id, a hash of all that can change a rating, tells more than the name."""
    return next((a == b for a, b in zip(one, other, strict=True) if a and b), True)


def _names_of_judges(ratings_1: Ratings, ratings_2: Ratings) -> tuple[str, str]:
    one, two = next(iter(ratings_1)), next(iter(ratings_2))
    # Two judges of one name differ in their ids, which say more only then.
    k = 1 if one[1] and two[1] and one[1] != two[1] else 0
    return shown(one[k]), shown(two[k])


def _by_prompt(rows: Iterable[Mapping], name: str) -> dict[tuple[str, str], Ratings]:
    found: dict[tuple[str, str], Ratings] = {}
    for i, row in enumerate(rows):
        _add(found.setdefault(_prompt(row, f"{name}[{i}]"), {}), row, f"{name}[{i}]")
    return found


def _add(ratings: Ratings, row: Mapping, where: str) -> None:
    """Adds a row's rating, unless the row has none or its judge has rated before."""
    rating = _rating(row, where)
    if rating is not None:
        ratings.setdefault((_said(row, "judge_id"), _said(row, "annotator")), rating)


def _said(row: Mapping, name: str) -> str:
    value = row.get(name)
    # NaN, which pandas writes for an empty cell, is not itself.
    if value is None or value != value:
        return ""
    return value if isinstance(value, str) else shown(value)


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
