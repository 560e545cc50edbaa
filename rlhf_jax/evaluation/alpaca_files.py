"""AlpacaEval's files for length control: the regulariser's rows and the fitted weights, read and written.

Its difficulties are numbered by the row of the evaluation set. Here they are looked up by instruction, so that a row
that is missing does not shift those that follow.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.length_control import DIFFICULTY, MODEL, SCALED, instruction_key

# AlpacaEval's names of the terms, by ours.
_TERMS = {
    "length": "np.tanh(std_delta_len)",
    DIFFICULTY: "instruction_difficulty",
    MODEL: "not_gamed_baseline.astype(float)",
}

NO_WEIGHTS = dict.fromkeys(_TERMS, 0.0)  # the baseline's own


class Gamed(NamedTuple):
    """rows: regulariser rows for `length_controlled_win_rate`. difficulty: by instruction."""

    rows: list[dict]
    difficulty: dict[str, float]


def read_gamed(path: str | Path, evaluation_set: Sequence[Mapping]) -> Gamed:
    """AlpacaEval's df_gamed.csv: outputs of the baseline's model told to be verbose and concise, as numbers.

    The columns used are index, std_delta_len (in standard deviations), instruction_difficulty, preference in
    [0, 1] and model. evaluation_set: the rows that the index counts, each with its instruction. Raises
    UserError for a missing column, a number that is none, or an index beyond the evaluation set.
    """
    wanted = ("index", "std_delta_len", "instruction_difficulty", "preference", "model")
    rows, difficulty = [], {}
    for i, record in enumerate(_records(path, wanted)):
        where = f"{path}: row {i + 1}"
        index = _number(record, "index", where)
        if index != int(index) or not 0 <= index < len(evaluation_set):
            raise UserError(
                f"{where}: index: found {record['index']}; the evaluation set has {len(evaluation_set)} rows"
            )
        asked = evaluation_set[int(index)]
        hard = _number(record, "instruction_difficulty", where)
        difficulty[instruction_key(asked)] = hard
        label = _number(record, "preference", where) if record["preference"] else math.nan
        rows.append(
            {
                "instruction": asked["instruction"],
                "input": asked.get("input") or "",
                SCALED: _number(record, "std_delta_len", where),
                "preference": None if math.isnan(label) else 1 + label,
                "generator_2": record["model"],
            }
        )
    return Gamed(rows, difficulty)


def read_weights(path: str | Path) -> dict[str, dict[str, float]]:
    """Fitted weights by model, for `any_vs_any`: AlpacaEval's file of a judge and a baseline, or our own.

    Raises UserError for a missing column or a number that is none.
    """
    return {
        record[""]: {
            name: _number(record, term, f"{path}: {record['']}")
            for name, term in _TERMS.items()
            if record.get(term)
        }
        for record in _records(path, ("", _TERMS["length"], _TERMS[MODEL]))
    }


def weights_csv(weights: Mapping[str, Mapping[str, float]]) -> str:
    """Weights as AlpacaEval's file has them; terms that are not there are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["", *_TERMS.values()], lineterminator="\n")
    writer.writeheader()
    for model, found in weights.items():
        terms = {term: f"{found[name]:.16f}" for name, term in _TERMS.items() if name in found}
        writer.writerow({"": model, **terms})
    return out.getvalue()


def _records(path: str | Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in wanted if name not in (reader.fieldnames or ())]
            if lacking:
                there = ", ".join(map(repr, reader.fieldnames or ())) or "none"
                raise UserError(f"{path}: no column {lacking[0]!r}; it has {there}")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error}); give AlpacaEval's file") from None


def _number(record: Mapping[str, str], column: str, where: str) -> float:
    try:
        value = float(record[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) and column != "preference":
        raise UserError(f"{where}: {column}: found {record[column]!r}; it must be a number")
    return value
