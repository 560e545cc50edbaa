"""Reads arena-hard-auto's files: judgments of models against a baseline, and the models' answers.

A judgment is {"uid", "model", "category", "judge", "games": [{"score": "A>B"}, {"score": "B>A"}]}, first with the
baseline as A, then with the model as A; version 0.1 says question_id for uid and has no category. A score of null is an
answer without a readable verdict, a game of null one that was never given.

An answer is {"uid", "model", "messages": [..., {"content": {"answer": TEXT}}], "metadata": {"token_len",
"header_count", "list_count", "bold_count"}}, or, in version 0.1, {"question_id", "model_id", "choices":
[{"turns": [{"content": TEXT}]}]}.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.annotation.parsing.parse_verdicts import VERDICTS
from rlhf_jax.data.files.tables import columns_of, shown
from rlhf_jax.errors import UserError

# What the metadata calls the counts, one number each or one by kind: {"h1": 2, "h2": 0}.
_METADATA = {"length": "token_len", "headers": "header_count", "lists": "list_count", "bold": "bold_count"}


class ArenaJudgment(NamedTuple):
    """A model's answer to a prompt against the baseline's. games: (the model's score in [0, 1], whether strong)."""

    prompt: str
    model: str
    baseline: str
    category: str
    games: tuple[tuple[float, bool], ...]
    judge: str = ""


class ArenaAnswer(NamedTuple):
    """An answer's text and, where the file holds them, its counts: length in tokens, headers, lists, bold."""

    text: str
    counts: Mapping[str, float] | None


def is_arena_judgments(rows: Sequence[Mapping]) -> bool:
    """Whether rows are arena-hard-auto's judgments."""
    return {"model", "games"} <= set(columns_of(rows))


def read_arena_judgments(rows: Sequence[Mapping], source: str) -> tuple[list[ArenaJudgment], Counter[str]]:
    """Reads judgments with both their games, and counts the others by reason, as a game alone would bear the position.

    So does a model against itself, which is half its games whatever it says. Raises UserError for a row without its
    prompt or model, and for a score that is no verdict.
    """
    found: list[ArenaJudgment] = []
    left_out: Counter[str] = Counter()
    seen = set()
    for i, row in enumerate(rows):
        where = f"{source}: row {i + 1}"
        prompt = row.get("uid") if row.get("uid") is not None else row.get("question_id")
        model = row.get("model")
        if not isinstance(prompt, str | int) or not isinstance(model, str):
            raise UserError(
                f"{where}: uid, model: found {shown(prompt)} and {shown(model)}; each row needs both"
            )
        baseline, category, judge = (str(row.get(name) or "") for name in ("baseline", "category", "judge"))
        if model == baseline:
            left_out["of a model against itself"] += 1
            continue
        # Its own reader counts a row that a resumed run wrote again as a further judgment.
        if (key := (prompt, model, judge)) in seen:
            left_out["of a prompt and model that stand there already"] += 1
            continue
        seen.add(key)
        games = row.get("games")
        if not isinstance(games, list | tuple) or len(games) != 2:
            left_out["without two games"] += 1
            continue
        first, second = (_verdict(game, where) for game in games)
        if first is None or second is None:
            left_out["with a game without a verdict"] += 1
            continue
        # The model is B in the first game and A in the second; a preference of 1 is for A.
        scores = ((first[0] - 1.0, first[1]), (2.0 - second[0], second[1]))
        found.append(ArenaJudgment(str(prompt), model, baseline, category, scores, judge))
    return found, left_out


def _verdict(game: Any, where: str) -> tuple[float, bool] | None:
    score = game.get("score") if isinstance(game, Mapping) else None
    if score is None:
        return None
    if not isinstance(score, str) or score not in VERDICTS:
        raise UserError(
            f"{where}: games: score: found {shown(score)}; it must be one of {', '.join(VERDICTS)}"
        )
    return VERDICTS[score]


def read_arena_answers(rows: Sequence[Mapping], source: str) -> dict[tuple[str, str], ArenaAnswer]:
    """Reads answers by (model, prompt).

    Raises UserError, naming the row, for one without a model, prompt or text, and for a count that is none.
    """
    found = {}
    for i, row in enumerate(rows):
        prompt = row.get("uid") if row.get("uid") is not None else row.get("question_id")
        model = row.get("model") if row.get("model") is not None else row.get("model_id")
        text = _answer(row)
        if not isinstance(prompt, str | int) or not isinstance(model, str) or not isinstance(text, str):
            raise UserError(
                f"{source}: row {i + 1}: uid, model, answer: found {shown(prompt)}, {shown(model)}, {shown(text)}; "
                "give arena-hard-auto's answers"
            )
        found[model, str(prompt)] = ArenaAnswer(text, _counts(row.get("metadata"), f"{source}: row {i + 1}"))
    return found


def _answer(row: Mapping) -> Any:
    try:
        if row.get("messages") is not None:
            said = row["messages"][-1]["content"]
            return said["answer"] if isinstance(said, Mapping) else said
        return row["choices"][0]["turns"][-1]["content"]
    except (KeyError, IndexError, TypeError):
        return None


def _counts(metadata: Any, where: str) -> dict[str, float] | None:
    if not isinstance(metadata, Mapping) or not set(_METADATA.values()) <= set(metadata):
        return None
    found = {}
    for name, key in _METADATA.items():
        given = metadata[key]
        numbers = list(given.values()) if isinstance(given, Mapping) else [given]
        if not all(isinstance(x, int | float) and 0 <= x < math.inf for x in numbers):
            raise UserError(
                f"{where}: metadata: {key}: found {shown(given)}; give a count, or leave metadata out"
            )
        found[name] = float(sum(numbers))
    return found
