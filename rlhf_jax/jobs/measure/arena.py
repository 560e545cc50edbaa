"""Scores models as Arena-Hard does, from its own judgments or from our labels, with control of style where wanted.

Also measures how far the scores tell the models apart, and how they agree with a reference ranking.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.annotation.formats.arena_hard_files import (
    ArenaAnswer,
    is_arena_judgments,
    read_arena_answers,
    read_arena_judgments,
)
from rlhf_jax.data.files.tables import columns_of, read_results, read_table, require_columns, shown
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.benchmarks.arena_hard import ArenaBoard, ArenaGame, arena_board
from rlhf_jax.evaluation.benchmarks.response_style import style_counts, style_differences
from rlhf_jax.evaluation.benchmarks.separability import Alignment, Interval, alignment, separability
from rlhf_jax.jobs.label_rows import usable_labels
from rlhf_jax.jobs.measure.measure_results import ArenaResult, Measured

_SCORES = ("score", "rating")


class _Judged(NamedTuple):
    """A model's answer to a prompt against the baseline's, in both orders; texts: the baseline's and its own.

    judge: who says so, "" where the file does not tell.
    """

    prompt: str
    model: str
    baseline: str
    category: str
    games: tuple[tuple[float, bool], ...]
    judge: str
    texts: tuple[str, str] | None


def measure_arena(config: ConfigDict, found: Measured) -> None:
    """Fills in a board for every category and baseline. Raises UserError when too many judgments lack a verdict."""
    judged = _once([one for path in _paths(config.arena) for one in _judged(path, config.min_coverage)])
    answers, strong_weight = _answers(config.arena_answers), config.strong_weight
    reference = _reference(config.reference) if config.reference else None
    groups: dict[tuple[str, str], list[_Judged]] = defaultdict(list)
    for one in judged:
        groups[one.category, one.baseline].append(one)
    for (category, baseline), some in groups.items():
        styles = _words(config.style)
        if styles:
            some, covariates = _styled(some, answers, styles, config.min_coverage)
        games = [
            ArenaGame(one.prompt, one.model, score, strong_weight if strong else 1.0)
            for one in some
            for score, strong in one.games
        ]
        board = arena_board(
            games,
            category=category,
            baseline=baseline,
            covariates=covariates if styles else None,
            centred=config.style_centred,
            seed=config.seed,
            n_bootstrap=config.n_bootstrap,
        )
        for name in styles:
            if name not in board.styles:
                print(
                    f"style: {name} is the same on both sides of every game, and controls nothing", flush=True
                )
        found.arenas.append(_result(board, reference))


def _result(board: ArenaBoard, reference: tuple[dict[str, float], dict[str, Interval]] | None) -> ArenaResult:
    intervals = {row.model: row.interval for row in board.scores}
    share, n_pairs = separability(intervals)
    agreed: Alignment | None = None
    if reference is not None:
        scores = {row.model: row.score for row in board.scores}
        agreed = alignment(
            scores, reference[0], intervals=intervals, reference_intervals=reference[1], draws=board.draws
        )
    return ArenaResult(board, share, n_pairs, agreed)


def _paths(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _words(value: object) -> list[str]:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value)


def _judged(path: str, min_coverage: float) -> list[_Judged]:
    rows = read_table(path)
    if is_arena_judgments(rows):
        read, left_out = read_arena_judgments(rows, path)
        found = [_Judged(*one, None) for one in read]
    else:
        found, left_out = _of_labels(rows, path)
    reasons = ", ".join(f"{n} {why}" for why, n in left_out.items())
    total = len(found) + sum(left_out.values())
    print(
        f"{path}: {len(found)} judgments of {total} used{f'; left out: {reasons}' if reasons else ''}",
        flush=True,
    )
    again = left_out["of a prompt and model that stand there already"]
    if not found or len(found) < min_coverage * (total - again):
        raise UserError(
            f"arena: {path}: {len(found)} of {total} judgments have verdicts in both orders, fewer than "
            f"{100 * min_coverage:g} %; judge the missing ones again, or lower min_coverage"
        )
    return found


def _once(judged: Sequence[_Judged]) -> list[_Judged]:
    """A judgment that stands in several of the files, such as in a folder and beside it, weighs no more than others."""
    found = {(one.prompt, one.model, one.baseline, one.category, one.judge, one.texts): one for one in judged}
    if again := len(judged) - len(found):
        print(f"arena: {again} judgments stand in several of its files; each counts once", flush=True)
    return list(found.values())


def _of_labels(rows: Sequence[Mapping], path: str) -> tuple[list[_Judged], Counter[str]]:
    """Our own labels of a judge that was shown both orders; generator_1 is the baseline."""
    require_columns(
        rows, ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference"), path
    )
    usable = usable_labels(rows, path, ("output_1", "output_2", "generator_1", "generator_2"))
    left_out = Counter(usable.left_out)
    groups: dict[tuple, list[Mapping]] = defaultdict(list)
    for row in usable.rows:
        if row["generator_1"] == row["generator_2"]:
            left_out["of a model against itself"] += 1
            continue
        names = ("instruction", "input", "output_1", "output_2", "generator_1", "generator_2")
        groups[tuple(row[name] for name in names)].append(row)
    found = []
    for (instruction, extra, one, two, baseline, model), some in groups.items():
        games = [game for row in some for game in _games(row, path)]
        if None in games or len(games) != 2:
            left_out[
                "with a game without a verdict" if None in games else f"with {len(games)} games, not two"
            ] += 1
            continue
        # A judge that likes what it sees first would win or lose both.
        if len(some) == 2 and None is not some[0].get("order") == some[1].get("order"):
            left_out["with both games in one order"] += 1
            continue
        prompt = f"{instruction}\n\n{extra}" if extra else instruction
        judge = str(some[0].get("annotator") or "")
        found.append(_Judged(prompt, model, baseline, "", tuple(games), judge, (one, two)))
    return found, left_out


def _games(row: Mapping, source: str) -> list[tuple[float, bool] | None]:
    strong = row.get("strong") or False
    if strong not in (True, False):
        raise UserError(f"{source}: strong: found {shown(strong)}; it must be true, false or null")
    if row["output_1"] == row["output_2"]:
        return [(0.5, False)] * 2
    if row.get("order") == "both":
        labels = [row.get(name) for name in ("preference_first_order", "preference_swapped")]
    else:
        labels = [row["preference"]]
    return [None if x is None or x != x else (float(x) - 1.0, bool(strong)) for x in labels]


def _answers(text: str) -> dict[tuple[str, str], ArenaAnswer]:
    found: dict[tuple[str, str], ArenaAnswer] = {}
    for path in _paths(text):
        found |= read_arena_answers(read_table(path), path)
    return found


def _styled(
    judged: Sequence[_Judged],
    answers: Mapping[tuple[str, str], ArenaAnswer],
    styles: Sequence[str],
    min_coverage: float,
) -> tuple[list[_Judged], dict[str, Sequence[float]]]:
    """The judgments whose two responses are known, and of each of their games how the responses differ in style."""
    both = [(one, _two_answers(one, answers)) for one in judged]
    known = [(one, pair) for one, pair in both if pair is not None]
    if len(known) < len(judged):
        print(
            f"style: {len(judged) - len(known)} of {len(judged)} judgments have no answers of both",
            flush=True,
        )
    if len(known) < max(1, min_coverage * len(judged)):
        raise UserError(
            f"arena_answers: both answers are known of {len(known)} of {len(judged)} judgments; name the files of the "
            "models' and of the baseline's answers, the baseline named as in the judgments, or leave style out"
        )
    # Tokens of one answer and characters of another do not compare.
    counted = all(answer.counts is not None for _, pair in known for answer in pair)
    counts = [
        [answer.counts if counted else style_counts(answer.text) for answer in pair] for _, pair in known
    ]
    print(
        f"style: lengths are in {'tokens, as the files count them' if counted else 'characters'}", flush=True
    )
    twice = [pair for pair in counts for _ in range(2)]
    differences = style_differences([pair[1] for pair in twice], [pair[0] for pair in twice], styles)
    return [one for one, _ in known], {name: list(values) for name, values in differences.items()}


def _two_answers(
    one: _Judged, answers: Mapping[tuple[str, str], ArenaAnswer]
) -> tuple[ArenaAnswer, ArenaAnswer] | None:
    """The baseline's answer and the model's."""
    if one.texts is not None:
        return ArenaAnswer(one.texts[0], None), ArenaAnswer(one.texts[1], None)
    theirs, mine = answers.get((one.baseline, one.prompt)), answers.get((one.model, one.prompt))
    return None if theirs is None or mine is None else (theirs, mine)


def _reference(path: str) -> tuple[dict[str, float], dict[str, Interval]]:
    """Scores and, where the file has them, intervals by model: of a CSV file or a table, as this job writes both."""
    rows = read_results(path, ("model",))
    if not rows:
        raise UserError(f"reference: {path}: it has no rows")
    require_columns(rows, ("model",), path)
    name = next((name for name in _SCORES if name in columns_of(rows)), None)
    if name is None:
        raise UserError(
            f"reference: {path}: no score; it has {', '.join(columns_of(rows))} (needed: score or rating)"
        )
    scores, intervals = {}, {}
    for row in rows:
        model, ends = row["model"], [row.get(f"{name}_{end}") for end in ("low", "high")]
        where = f"reference: {path}: {shown(model)}"
        if model in scores:
            raise UserError(f"{where}: stands there twice; leave one out")
        try:
            scores[model] = float(row[name])
            known = [float(end) for end in ends if end not in (None, "")]
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {name}: {error}; give a number for each model") from None
        if not math.isfinite(scores[model]):
            raise UserError(f"{where}: {name}: {row[name]}; give a number for each model")
        # This job writes NaN where too few resamples had the model.
        known = [end for end in known if not math.isnan(end)]
        if known and (len(known) < 2 or known[0] > known[1]):
            raise UserError(f"{where}: {name}_low and {name}_high: found {known}; give both, the lower first")
        if known:
            intervals[model] = (known[0], known[1])
    return scores, intervals
