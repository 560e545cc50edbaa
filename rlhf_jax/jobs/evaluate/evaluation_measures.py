"""Computes what judges' labels say beyond win rates: length-controlled ones, and differences between methods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.data.files.tables import read_table, require_columns
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.alpaca_eval_files import read_gamed
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.leaderboards.published import read_published
from rlhf_jax.evaluation.measures.bootstrap import Difference, paired_differences
from rlhf_jax.evaluation.measures.length_control import (
    LengthControlled,
    any_vs_any,
    instruction_key,
    length_controlled_win_rate,
)


@dataclass(frozen=True)
class Measures:
    """The further measures of a set of methods.

    controlled: method -> its length-controlled win rate. differences: every two methods, paired.

    against: method -> other method (the baseline too) -> length-controlled win rate in percent. notes: what
    could not be measured, and why.
    """

    controlled: Mapping[str, LengthControlled] = field(default_factory=dict)
    differences: Sequence[Difference] = ()
    against: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Extras:
    """Files beside the outputs: difficulties by instruction, regulariser rows, others' published rows."""

    difficulty: Mapping[str, float] | None
    regulariser: Sequence[Mapping]
    published: Sequence[LeaderboardRow]


def read_extras(config: ConfigDict) -> Extras:
    """Reads the files that config.difficulty, config.regulariser and config.published name; "" is none.

    A regulariser that is a CSV file is AlpacaEval's df_gamed.csv, whose index counts the rows of
    config.baseline; its difficulties are used unless config.difficulty names others.

    Raises UserError for a missing file, a missing column or a number that is none, before a judge is paid.
    """
    difficulty = None
    if config.difficulty:
        rows = read_table(config.difficulty)
        require_columns(rows, ("instruction", "difficulty"), config.difficulty)
        try:
            difficulty = {instruction_key(row): float(row["difficulty"]) for row in rows}
        except (TypeError, ValueError) as error:
            raise UserError(f"difficulty: {config.difficulty}: {error}; give a number in every row") from None
    # AlpacaEval adds outputs of the baseline's own model, told to be verbose or
    # concise, to the fit: they hold the effect of length to what length alone does.
    regulariser: list[dict] = []
    if config.regulariser.endswith(".csv"):
        gamed = read_gamed(config.regulariser, read_table(config.baseline))
        regulariser, difficulty = gamed.rows, gamed.difficulty if difficulty is None else difficulty
    elif config.regulariser:
        regulariser = read_table(config.regulariser)
        wanted = ("instruction", "output_1", "output_2", "preference", "generator_2")
        require_columns(regulariser, wanted, config.regulariser)
    published = [row.row() for row in read_published(config.published).values()] if config.published else []
    return Extras(difficulty, regulariser, published)


def measure(
    rows: Mapping[str, Sequence[Mapping]],
    preferences: Mapping[str, np.ndarray],
    baseline: str,
    extras: Extras,
    *,
    length_control: bool,
    min_coverage: float,
    seed: int,
) -> Measures:
    """Computes all measures of the methods' label rows; one that is refused becomes a note."""
    controlled, notes = {}, []
    for method, labelled in rows.items() if length_control else ():
        try:
            found = length_controlled_win_rate(
                labelled,
                difficulty=extras.difficulty,
                regulariser=extras.regulariser,
                min_coverage=min_coverage,
            )
        # Labels are paid for by now: a fit that is refused must not take the other numbers along.
        except UserError as error:
            notes.append(f"length control: {method}: {error}")
            continue
        controlled[method] = found
        if found.extreme:
            notes.append(
                f"length control: {method}: {found.win_rate:.1f} after {found.raw.win_rate:.1f} is a large "
                "change; its outputs may differ too much in length for the fit to hold"
            )
    differences: list[Difference] = []
    try:
        differences = paired_differences(preferences, seed=seed, min_coverage=min_coverage)
    except UserError as error:
        notes.append(f"differences: {error}")
    return Measures(controlled, differences, _against(controlled, baseline, rows, extras.difficulty), notes)


def pool_id(pool: PoolSpec) -> str:
    """Returns a judge's id, or 16 hex digits of a hash over the ids and weights of a pool's judges."""
    if len(pool.judges) == 1:
        return pool.judges[0].judge_id
    said = json.dumps([[judge.judge_id for judge in pool.judges], list(pool.weights)])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """Writes terminal lines: which method is better than which, by how much, and how sure that is."""
    if not differences:
        return []
    width = max(len(f"{d.a} - {d.b}") for d in differences)
    lines = ["win rate differences on the same instructions, points; [ ] paired bootstrap, 95 %"]
    for d in differences:
        ends = f"[{d.interval[0]:+.1f}, {d.interval[1]:+.1f}]"
        pair = f"{d.a} - {d.b}"
        lines.append(f"  {pair:<{width}}  {d.difference:+.1f} {ends}  p {d.p_value:.4f}  n {d.n_total}")
    return [*lines, ""]


def _against(
    controlled: Mapping[str, LengthControlled],
    baseline: str,
    rows: Mapping[str, Sequence[Mapping]],
    difficulty: Mapping[str, float] | None,
) -> dict[str, dict[str, float]]:
    """Computes win rates of every fitted method against every other and the baseline; {} for fewer than two methods."""
    if len(controlled) < 2:
        return {}
    # Every fit is against the baseline, whose own weights are therefore zero.
    weights = {baseline: {}} | {name: found.weights for name, found in controlled.items()}
    # All methods have the same instructions, so the rows of any of them will do.
    some = next(iter(rows.values()))
    known = [0.0] if difficulty is None else [difficulty[instruction_key(row)] for row in some]
    return {
        a: {b: any_vs_any(weights, a, b, known) for b in weights if b != a} for a in [*controlled, baseline]
    }
