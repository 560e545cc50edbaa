"""Expansion of ratings and rankings into what trainers read: pairs, and scored responses (RRHF)."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rlhf_jax.annotation.kinds.pairs import ended_sides
from rlhf_jax.annotation.labels.judgment_rows import is_labelled
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RANKING, RATING
from rlhf_jax.errors import UserError

# What of a row holds for all pairs made of it. Cost and raw answer are of one judgment, and would be counted again.
_SOURCE = ("dataset", "split", "annotator", "judge_id", "pool")


def pairs_of(rows: Sequence[Mapping]) -> list[dict]:
    """Pair every two labelled outputs of each prompt, with the preference that their ratings or ranks imply.

    rows: labelled ratings, rankings or pairs (which stay as they are). A higher rating or a better rank wins,
    equal ones are a tie (1.5). Ratings are compared only when one judge gave both.
    """
    made = [dict(row) for row in rows if row["kind"] == PAIRWISE and is_labelled(row)]
    for row, scored in _scored_groups(rows):
        for (one, a, name_1, ended_1), (two, b, name_2, ended_2) in itertools.combinations(scored, 2):
            made.append(
                {
                    **row,
                    "kind": PAIRWISE,
                    "output_1": one,
                    "output_2": two,
                    "generator_1": name_1,
                    "generator_2": name_2,
                    "preference": 1.5 if a == b else 1.0 if a > b else 2.0,
                    "tie": a == b,
                    "status": "ok",
                    **ended_sides(ended_1, ended_2),
                }
            )
    return made


def scored_of(rows: Sequence[Mapping]) -> list[dict]:
    """Make one row per prompt: instruction, input, responses, scores (higher is better).

    A rating is its score. Of a ranking, the score is the share of the other outputs it beats, a tie counting
    half. Of pairs, the same share over the comparisons an output was in; prompts with one output are left out.
    """
    groups = [(row, scored) for row, scored in _scored_groups(rows) if len(scored) > 1]
    groups += _shares_of_pairs([r for r in rows if r["kind"] == PAIRWISE and is_labelled(r)])
    return [
        {
            "instruction": row["instruction"],
            "input": row["input"],
            "responses": [one[0] for one in scored],
            "scores": [float(one[1]) for one in scored],
        }
        for row, scored in groups
    ]


Scored = list[tuple[str, float, str | None, bool | None]]  # (output, score, generator, ended by itself)


def _scored_groups(rows: Sequence[Mapping]) -> list[tuple[dict, Scored]]:
    """(prompt columns, its distinct outputs with scores) of every rated or ranked prompt, in order."""
    rated: dict[tuple, dict[str, tuple]] = defaultdict(dict)
    groups: list[tuple[dict, Scored]] = []
    source: dict[tuple, dict] = {}
    for row in rows:
        if not is_labelled(row):
            continue
        if row["kind"] == RANKING:
            groups.append((_prompt(row), _ranked(row["completions"])))
        elif row["kind"] == RATING:
            # The judge is part of the key: a 5 of one judge is not a 5 of another.
            key = (row["instruction"], row["input"], row.get("judge_id"))
            source.setdefault(key, _prompt(row))
            # An output that was rated twice keeps its first rating.
            rated[key].setdefault(row["output"], _rated(row))
        elif row["kind"] != PAIRWISE:
            raise UserError(f"rows: kind: found {row['kind']!r}; ratings, rankings and pairs can be expanded")
    return groups + [(source[key], list(outputs.values())) for key, outputs in rated.items()]


def _prompt(row: Mapping) -> dict:
    columns = ("instruction", "input", *_SOURCE)
    return {name: row[name] for name in columns if row.get(name) is not None} | {
        "input": row.get("input") or ""
    }


def _rated(row: Mapping) -> tuple[str, float, str | None, bool | None]:
    return row["output"], row["rating"], row.get("generator"), row.get("ended")


def _ranked(completions: Sequence[Mapping]) -> Scored:
    """A rank as the share of the other outputs beaten, a tie counting half."""
    ranks = [one["rank"] for one in completions]
    others = max(1, len(ranks) - 1)
    scored = []
    for one in completions:
        beaten = sum(rank > one["rank"] for rank in ranks) + 0.5 * (ranks.count(one["rank"]) - 1)
        scored.append((one["output"], beaten / others, one.get("generator"), one.get("ended")))
    return scored


def _share(got: list[tuple[float, Mapping, str]]) -> tuple[float, str | None, bool | None]:
    # Who wrote an output, and whether it ended, is the same in all its comparisons.
    _, row, side = got[0]
    share = sum(points for points, _, _ in got) / len(got)
    return share, row.get(f"generator{side}"), row.get(f"ended{side}")


def _shares_of_pairs(rows: Sequence[Mapping]) -> list[tuple[dict, Scored]]:
    points: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    source: dict[tuple, dict] = {}
    for row in rows:
        key = (row["instruction"], row["input"])
        source.setdefault(key, _prompt(row))
        # preference = 1 + P(second is better): the two sides of a pair share one point.
        points[key][row["output_1"]].append((2.0 - row["preference"], row, "_1"))
        points[key][row["output_2"]].append((row["preference"] - 1.0, row, "_2"))
    return [
        (
            source[key],
            [(out, *_share(got)) for out, got in outputs.items()],
        )
        for key, outputs in points.items()
        if len(outputs) > 1
    ]
