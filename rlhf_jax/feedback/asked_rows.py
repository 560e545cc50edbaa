"""Responses that a judge is asked about during a run: rows for the annotation layer, and numbers out of its labels.

A rating is the number that the judge gives. A pairwise judge says +1, 0 or -1 for a response that is better than
another one, as good, or worse; one that tells how sure it is says 2p - 1 for a win probability p. The other one is the
baseline's response to the prompt; without a baseline each of the k responses to a prompt meets the k - 1 others, and
the mean counts. A ranking of k responses is read as the pairs that it decides. Needs no jax.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.annotation.answers.answers import API_ERROR, EXPIRED, LABELLED, NOT_RECORDED
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.pairs import annotate_pairs
from rlhf_jax.annotation.kinds.ratings_and_rankings import annotate_rankings, annotate_ratings
from rlhf_jax.annotation.labels.judgment_rows import is_labelled
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RANKING, RATING
from rlhf_jax.data.records.messages import messages_of, prompt_columns
from rlhf_jax.errors import UserError

# A request that brought no answer; it may bring one when it is sent again.
UNANSWERED = (API_ERROR, EXPIRED, NOT_RECORDED)
ANNOTATE = {PAIRWISE: annotate_pairs, RANKING: annotate_rankings, RATING: annotate_ratings}
# Which responses a row of labels is about, in the order of its outputs; None is the baseline.
Members = tuple[int | None, ...]


class Question(NamedTuple):
    """A row for the annotation layer, and the numbers of the responses that it is about."""

    row: dict
    members: Members


class Judged(NamedTuple):
    """What a judge says of each response: (score, whether it could be read, dollars)."""

    scores: list[float]
    readable: list[bool]
    usd: list[float]


def asked(record: Mapping) -> dict[str, str]:
    """The prompt of a record as judges are shown it: instruction and input; a conversation is one text."""
    if record.get("messages") is None and record.get("prompt") is None:
        return {"instruction": record["instruction"], "input": record.get("input") or ""}
    found = prompt_columns(messages_of(record))
    return {"instruction": found.get("prompt") or found["instruction"], "input": found.get("input", "")}


def prompt_key(record: Mapping) -> tuple[str, str]:
    """What two records of the same prompt have in common."""
    return tuple(asked(record).values())


def questions(
    kind: str,
    records: Sequence[Mapping],
    responses: Sequence[str],
    baseline: Mapping[tuple[str, str], str] | None = None,
) -> list[Question]:
    """The rows that a judge of this kind is asked about.

    records: of the prompts. Where one and the same object stands several times in a row, these are the responses to one
    prompt, which are compared. baseline: its response by `prompt_key`, for pairwise judges.
    """
    rows = [asked(record) for record in records]
    if kind == RATING:
        return [
            Question(row | {"output": text}, (b,)) for b, (row, text) in enumerate(_with(rows, responses))
        ]
    if baseline is not None:
        return [
            Question(row | {"output_1": baseline[tuple(row.values())], "output_2": text}, (None, b))
            for b, (row, text) in enumerate(_with(rows, responses))
        ]
    found = []
    # By identity: the same prompt may have been drawn twice, and was then sampled twice, too.
    for _, group in itertools.groupby(range(len(rows)), key=lambda b: id(records[b])):
        members = tuple(group)
        # One response alone is neither better nor worse than another.
        if len(members) < 2:
            continue
        row = rows[members[0]]
        if kind == RANKING:
            found.append(Question(row | {"outputs": [responses[b] for b in members]}, members))
            continue
        found += [
            Question(row | {"output_1": responses[i], "output_2": responses[j]}, (i, j))
            for i, j in itertools.combinations(members, 2)
        ]
    return found


def judged_responses(count: int, members: Sequence[Members], labels: Sequence[Mapping | None]) -> Judged:
    """Turns labels into numbers of `count` responses. labels: one for each of `members`, None where there is none.

    A response is scored by the mean over the labels that could be read, and is unreadable where it stands in some
    and none of them could. One that stands in none is alone, and scores 0.
    """
    scores: dict[int, list[float]] = defaultdict(list)
    asked_of, usd, paid = [0] * count, [0.0] * count, set()
    for places, row in zip(members, labels, strict=True):
        mine = [b for b in places if b is not None]
        for b in mine:
            asked_of[b] += 1
        if row is None:
            continue
        # Rows with the same question have one answer, which was paid for once.
        if row["transport"] is not None and row["label_id"] not in paid:
            paid.add(row["label_id"])
            price = math.nan if row["price_usd"] is None else row["price_usd"]
            for b in mine:
                usd[b] += price / len(mine)
        if row["status"] in LABELLED and is_labelled(row):
            for b, score in _scores(row, places).items():
                scores[b].append(score)
    readable = [bool(scores[b]) or not asked_of[b] for b in range(count)]
    means = [math.fsum(scores[b]) / len(scores[b]) if scores[b] else 0.0 for b in range(count)]
    return Judged(means, readable, usd)


def _scores(row: Mapping, places: Members) -> dict[int, float]:
    """The score of every response that a label is about."""
    if row["kind"] == RATING:
        return {places[0]: float(row["rating"])}
    if row["kind"] == PAIRWISE:
        # A preference of 2 says that output_2 is better.
        score = 2.0 * row["preference"] - 3.0
        return {b: score * sign for b, sign in zip(places, (-1.0, 1.0), strict=True) if b is not None}
    ranks = [one["rank"] for one in row["completions"]]
    return {
        b: sum((other > mine) - (other < mine) for other in ranks) / (len(ranks) - 1)
        for b, mine in zip(places, ranks, strict=True)
    }


def baseline_outputs(
    rows: Sequence[Mapping], field: str, path: str
) -> tuple[dict[tuple[str, str], str], int]:
    """The first output to each prompt of a table of outputs, and how many rows repeat a prompt."""
    found: dict[tuple[str, str], str] = {}
    for i, row in enumerate(rows):
        if not isinstance(row.get("output"), str):
            raise UserError(
                f"{field}: {path}: row {i} has no output that is text; give a file that generate wrote"
            )
        found.setdefault(prompt_key(row), row["output"])
    return found, len(rows) - len(found)


def check_pool(pool: PoolSpec, field: str, *kinds: str) -> str:
    """The kind of a pool's judges; UserError where they are of several, or of one that is not among `kinds`."""
    found = sorted({judge.kind for judge in pool.judges})
    if len(found) > 1 or found[0] not in kinds:
        raise UserError(
            f"{field}: {pool.name} is of kind {' and '.join(found)}; give a judge of kind {' or '.join(kinds)}"
        )
    return found[0]


def _with(rows: list[dict], responses: Sequence[str]) -> list[tuple[dict, str]]:
    return list(zip(rows, responses, strict=True))
