"""Reads and writes AlpacaEval's files for length-controlled win rates: regulariser rows and fitted weights.

The fit itself is in `evaluation.measures.length_control`. AlpacaEval numbers an instruction's difficulty by
its row in the evaluation set. Here difficulties are looked up by instruction, so that a missing row does not
shift all the rows after it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.length_control import DIFFICULTY, MODEL, SCALED, instruction_key

# Our names of the model's terms, and AlpacaEval's: expressions of the formula that it hands to patsy, which
# thereby became the column names of its files.
_TERMS = {
    "length": "np.tanh(std_delta_len)",
    DIFFICULTY: "instruction_difficulty",
    MODEL: "not_gamed_baseline.astype(float)",
}

# The baseline against itself: with every term at zero the predicted win rate is one half.
NO_WEIGHTS = dict.fromkeys(_TERMS, 0.0)


class Gamed(NamedTuple):
    """A regulariser file's rows for `length_controlled_win_rate`, and every instruction's difficulty.

    difficulty: keyed by `instruction_key`, that is by the instruction with its input after a blank line.
    """

    rows: list[dict]
    difficulty: dict[str, float]


def read_gamed(path: str | Path, evaluation_set: Sequence[Mapping]) -> Gamed:
    """Read AlpacaEval's df_gamed.csv, the results of the baseline's model prompted to be verbose or concise.

    The columns used are index, std_delta_len (in standard deviations), instruction_difficulty, preference in
    [0, 1] and model. evaluation_set: the rows that the index counts, each with its instruction. Raises
    UserError for a missing column, a number that is none, or an index beyond the evaluation set.
    """
    wanted = ("index", "std_delta_len", "instruction_difficulty", "preference", "model")
    rows, difficulty = [], {}
    for i, record in enumerate(_records(path, wanted)):
        where = f"{path}: row {i + 1}"
        index = _number(record, "index", where)
        # A whole number may be written as 3.0, so the value is checked and not the text.
        if index != int(index) or not 0 <= index < len(evaluation_set):
            raise UserError(
                f"{where}: index: found {record['index']}; the evaluation set has {len(evaluation_set)} rows"
            )
        asked = evaluation_set[int(index)]
        hard = _number(record, "instruction_difficulty", where)
        difficulty[instruction_key(asked)] = hard
        # An empty preference is a pair that nobody labelled. It stays in the table, because its difficulty is
        # still needed for the prediction.
        label = _number(record, "preference", where) if record["preference"] else math.nan
        rows.append(
            {
                "instruction": asked["instruction"],
                "input": asked.get("input") or "",
                SCALED: _number(record, "std_delta_len", where),
                # AlpacaEval's file has preferences from 0 to 1; our label rows have them from 1 to 2.
                "preference": None if math.isnan(label) else 1 + label,
                # The fit tells the verbose from the concise baseline by this name.
                "generator_2": record["model"],
            }
        )
    return Gamed(rows, difficulty)


def read_weights(path: str | Path) -> dict[str, dict[str, float]]:
    """Read fitted weights by model, for `any_vs_any`, from AlpacaEval's file for one judge or from our own.

    Raises UserError for a missing column or a number that is none.
    """
    return {
        # pandas wrote AlpacaEval's files with the model as the index, a first column without a name.
        record[""]: {
            name: _number(record, term, f"{path}: {record['']}")
            for name, term in _TERMS.items()
            if record.get(term)
        }
        for record in _records(path, ("", _TERMS["length"], _TERMS[MODEL]))
    }


def weights_csv(weights: Mapping[str, Mapping[str, float]]) -> str:
    """Format fitted weights as AlpacaEval's CSV; a term that a model was fitted without is left empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["", *_TERMS.values()], lineterminator="\n")
    writer.writeheader()
    for model, found in weights.items():
        terms = {term: f"{found[name]:.16f}" for name, term in _TERMS.items() if name in found}
        writer.writerow({"": model, **terms})
    return out.getvalue()


def _records(path: str | Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    try:
        # The csv module wants newline="", or it would change line breaks inside quoted fields.
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
    # float() also accepts "nan" and "inf", so finiteness is checked too. Only a preference may be missing.
    if not math.isfinite(value) and column != "preference":
        raise UserError(f"{where}: {column}: found {record[column]!r}; it must be a number")
    return value
