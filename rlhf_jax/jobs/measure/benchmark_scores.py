"""Measures judges and reward models on RewardBench 2 or JudgeBench, by their labels or scores of its rows.

The labels are files of other jobs, joined to the benchmark by the texts themselves: scores of a reward model
(responses and scores), ratings (output and rating), rankings (completions), pairs (output_1, output_2, preference), or
the file that JudgeBench's own run_judge.py wrote.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.annotation.answers.answers import LABELLED
from rlhf_jax.data.files.tables import columns_of, read_table, shown
from rlhf_jax.data.records.benchmark_rows import (
    SUBSETS,
    TIES,
    BestOf,
    JudgedPair,
    is_judged_pairs,
    read_benchmark,
)
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.benchmarks.judge_bench import Decided, judge_bench
from rlhf_jax.evaluation.benchmarks.reward_bench import (
    BY_PAIRS,
    BY_RANKS,
    BY_SCORES,
    Scores,
    best_of_credit,
    pairs_credit,
    reward_bench,
)
from rlhf_jax.evaluation.measures.win_rate import read_preferences
from rlhf_jax.jobs.measure.measure_results import Measured
from rlhf_jax.training.run.missing_inputs import named_paths

_Score = Callable[[str, str], float | None]
_Games = Callable[[str, str, str], list[float | None]]
_SWAPPED = {"12": "21", "21": "12"}


class _Said(NamedTuple):
    """What a file says. score: of a prompt's response; games: preferences of a pair, in its order; one is not there."""

    by: str
    score: _Score | None
    games: _Games | None
    left_out: Counter[str]


def measure_benchmark(config: ConfigDict, found: Measured) -> None:
    """Fills in a row for every file of config.benchmark_labels. Raises UserError when either field names nothing."""
    labels = named_paths(config.benchmark_labels, "benchmark_labels")
    if not config.benchmark or not labels:
        lacking = "benchmark" if not config.benchmark else "benchmark_labels"
        raise UserError(f"{lacking}: names no file; a benchmark is measured by labels or scores of its rows")
    items = read_benchmark(read_table(config.benchmark), config.benchmark)
    for name, path in labels.items():
        rows = read_table(path)
        if isinstance(items[0], JudgedPair):
            pairs = _own_decisions(items, rows, path) if is_judged_pairs(rows) else None
            pairs = _decided(items, _tell(name, _said(rows, path))) if pairs is None else pairs
            found.judge_benches.append(judge_bench(name, pairs, min_coverage=config.min_coverage))
        else:
            said = _tell(name, _said(rows, path))
            found.reward_benches.append(_best_of_four(name, items, said, config))


def _tell(name: str, said: _Said) -> _Said:
    if said.left_out:
        reasons = ", ".join(f"{n} {why}" for why, n in said.left_out.items())
        print(f"{name}: left out: {reasons}", flush=True)
    return said


def _best_of_four(name: str, items: Sequence[BestOf], said: _Said, config: ConfigDict) -> object:
    credits: dict[str, list[float | None]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    ties: dict[tuple[str, int], Scores | None] = {}
    for item in items:
        if item.subset == TIES:
            ties[item.id] = _scores(item, said) if said.by == BY_SCORES else None
        else:
            credits[item.subset].append(_credit(item, said))
            sizes[item.subset].append(len(item.responses))
    if unknown := [subset for subset in credits if subset not in SUBSETS]:
        print(
            f"{name}: {', '.join(unknown)}: no subset of RewardBench 2, and no part of the score", flush=True
        )
    return reward_bench(
        name,
        said.by,
        credits,
        sizes,
        ties,
        subsets=SUBSETS,
        ties_name=TIES,
        seed=config.seed,
        n_bootstrap=config.n_bootstrap,
        min_coverage=config.min_coverage,
    )


def _scores(item: BestOf, said: _Said) -> Scores | None:
    sides = [[said.score(item.prompt, text) for text in texts] for texts in (item.correct, item.wrong)]
    return None if None in sides[0] + sides[1] else Scores(*sides)


def _credit(item: BestOf, said: _Said) -> float | None:
    if said.score is not None:
        scores = _scores(item, said)
        return None if scores is None else best_of_credit(scores)
    pairs = [said.games(item.prompt, item.correct[0], wrong) for wrong in item.wrong]
    if any(not games or None in games for games in pairs):
        return None
    # Both orders of a pair are one comparison here; their mean is a draw where they contradict each other.
    return pairs_credit([2.0 - math.fsum(games) / len(games) for games in pairs])


def _decided(items: Sequence[JudgedPair], said: _Said) -> list[Decided]:
    return [Decided(item.source, item.label, _decisions(item, said)) for item in items]


def _decisions(item: JudgedPair, said: _Said) -> list[str | None]:
    if said.games is not None:
        return [_side(x) for x in said.games(item.question, *item.outputs)]
    a, b = (said.score(item.question, text) for text in item.outputs)
    # Scores are of each response by itself: there is no order to reverse.
    return [None if a is None or b is None else _side(1.5 + 0.5 * ((b > a) - (a > b)))]


def _side(preference: float | None) -> str | None:
    if preference is None:
        return None
    return "A=B" if preference == 1.5 else "A>B" if preference < 1.5 else "B>A"


def _own_decisions(items: Sequence[JudgedPair], rows: Sequence[Mapping], path: str) -> list[Decided]:
    """What run_judge.py wrote beside each pair; a pair that its file lacks has no decision."""
    written = {item.id: item for item in read_benchmark(rows, path)}
    if not any(item.decisions for item in written.values()):
        raise UserError(
            f"{path}: judgments: missing; this is the benchmark itself, give a judge's labels of it"
        )
    known = [written.get(item.id) for item in items]
    return [
        Decided(item.source, item.label, own.decisions if own else ())
        for item, own in zip(items, known, strict=True)
    ]


def _said(rows: Sequence[Mapping], path: str) -> _Said:
    columns = set(columns_of(rows))
    left_out: Counter[str] = Counter()
    if "scores" in columns and columns & {"responses", "outputs"}:
        triples = [x for row in rows for x in _of_lists(row, path, left_out)]
        return _Said(BY_SCORES, _score_of(triples, left_out), None, left_out)
    if "rating" in columns and _any(rows, "rating"):
        triples = [(_prompt(row), row.get("output"), _value(row, "rating", left_out)) for row in rows]
        return _Said(BY_SCORES, _score_of(triples, left_out), None, left_out)
    if "completions" in columns and _any(rows, "completions"):
        triples = [x for row in rows for x in _of_ranks(row, path, left_out)]
        return _Said(BY_RANKS, _score_of(triples, left_out), None, left_out)
    if {"output_1", "output_2", "preference"} <= columns:
        return _Said(BY_PAIRS, None, _games_of(rows, path, left_out), left_out)
    raise UserError(
        f"{path}: no labels or scores; it has {', '.join(columns_of(rows))} (needed: responses and scores, output and "
        "rating, completions with ranks, or output_1, output_2 and preference)"
    )


def _any(rows: Sequence[Mapping], name: str) -> bool:
    # A label file has every kind's columns, null where they are another kind's.
    return any(row.get(name) is not None for row in rows)


def _prompt(row: Mapping) -> str:
    """The prompt as the benchmark has it: an instruction, with its input behind a blank line, or one user message."""
    said = row.get("instruction") if row.get("instruction") is not None else row.get("prompt")
    if isinstance(said, list | tuple) and len(said) == 1 and isinstance(said[0], Mapping):
        said = said[0].get("content")
    extra = row.get("input")
    return f"{said}\n\n{extra}" if isinstance(extra, str) and extra else str(said)


def _of_lists(row: Mapping, path: str, left_out: Counter[str]) -> list[tuple[str, object, float | None]]:
    texts = row.get("responses") if row.get("responses") is not None else row.get("outputs")
    scores = row.get("scores")
    if (
        not isinstance(texts, list | tuple)
        or not isinstance(scores, list | tuple)
        or len(texts) != len(scores)
    ):
        raise UserError(
            f"{path}: scores: {_prompt(row)[:60]!r} has not one for each response; score them again"
        )
    left_out.update("responses without a score" for score in scores if not _number(score))
    known = [float(score) if _number(score) else None for score in scores]
    return [(_prompt(row), text, score) for text, score in zip(texts, known, strict=True)]


def _of_ranks(row: Mapping, path: str, left_out: Counter[str]) -> list[tuple[str, object, float | None]]:
    usable = row.get("status", LABELLED[0]) in LABELLED
    found = row.get("completions") or ()
    if not isinstance(found, list | tuple) or not all(isinstance(one, Mapping) for one in found):
        raise UserError(
            f"{path}: completions: found {shown(found)}; it must be a list of outputs with their ranks"
        )
    if not usable:
        left_out["rankings without a label"] += 1
    ranks = [one.get("rank") if usable else None for one in found]
    return [
        (_prompt(row), one.get("output"), -float(rank) if _number(rank) else None)
        for one, rank in zip(found, ranks, strict=True)
    ]


def _value(row: Mapping, name: str, left_out: Counter[str]) -> float | None:
    usable = row.get("status", LABELLED[0]) in LABELLED and _number(row.get(name))
    if not usable:
        left_out["ratings without a label"] += 1
    return float(row[name]) if usable else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _score_of(triples: Sequence[tuple[str, object, float | None]], left_out: Counter[str]) -> _Score:
    """The mean score of a response to a prompt. Several may score it, such as the judges of a pool."""
    by: dict[tuple[str, object], list[float]] = defaultdict(list)
    for prompt, text, score in triples:
        if not isinstance(text, str):
            left_out["responses that are no text"] += 1
        elif score is not None:
            by[prompt, text].append(score)
    # Equal texts of one row have one score, so only further ones that differ say something else.
    if again := sum(len(set(scores)) > 1 for scores in by.values()):
        left_out["of several scores of a response, whose mean is taken"] += again
    return lambda prompt, text: (
        math.fsum(by[prompt, text]) / len(by[prompt, text]) if (prompt, text) in by else None
    )


def _games_of(rows: Sequence[Mapping], path: str, left_out: Counter[str]) -> _Games:
    """The preferences of a pair in its own order, one for each order it was shown in."""
    by: dict[tuple[str, str, str], dict[str, float | None]] = defaultdict(dict)
    for i, row in enumerate(rows):
        texts = row.get("output_1"), row.get("output_2")
        if not all(isinstance(text, str) for text in texts):
            left_out["rows that are no pairs"] += 1
            continue
        for order, value in _by_order(row).items():
            read = read_preferences([value], f"{path}: row {i + 1}: preference")[0]
            if math.isnan(read):
                left_out["judgments without a label"] += 1
            games = by[_prompt(row), *texts]
            if order in games:
                left_out["judgments of a pair in an order that stands there already"] += 1
            games.setdefault(order, None if math.isnan(read) else float(read))

    def games(prompt: str, one: str, two: str) -> list[float | None]:
        if one == two:
            return [1.5, 1.5]
        turned = by.get((prompt, two, one), {})
        # A row the other way round shows the other output first.
        as_here = {_SWAPPED[order]: None if x is None else 3.0 - x for order, x in turned.items()}
        return list((as_here | by.get((prompt, one, two), {})).values())

    return games


def _by_order(row: Mapping) -> dict[str, object]:
    """A row's preferences by the order the judge saw: of one, or of both where the row joins them."""
    if row.get("order") == "both":
        return {"12": row.get("preference_first_order"), "21": row.get("preference_swapped")}
    usable = row.get("status", LABELLED[0]) in LABELLED
    return {"21" if row.get("order") == "21" else "12": row.get("preference") if usable else None}
