"""What all formats use: making labelled rows, checking columns, selecting rows, writing files atomically."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.answers.answers import OK, PARSE_ERROR, TIE_IDENTICAL
from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError, is_labelled
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RATING, is_number
from rlhf_jax.data.files.tables import whole_file
from rlhf_jax.errors import UserError


def column(row: Mapping, name: str, where: str, *, default: str | None = None) -> str:
    """Return a text column, `default` where it is missing, null or NaN. Errors: UserError beginning with `where`."""
    # pandas writes a missing text as NaN, a float.
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        if default is not None:
            return default
        raise UserError(f"{where}: {name}: missing; the row has {', '.join(map(repr, row))}")
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}: found {value!r}; it must be text")
    return value


def pair(instruction: str, input_text: str, outputs: tuple[str, str], preference: float | None) -> dict:
    """Make a labelled pair; without a preference, one with the status parse_error."""
    same = outputs[0] == outputs[1]
    # Equal outputs with a draw get the status of those that are not even asked about here.
    status = PARSE_ERROR if preference is None else TIE_IDENTICAL if same and preference == 1.5 else OK
    return {
        "kind": PAIRWISE,
        "instruction": instruction,
        "input": input_text,
        "output_1": outputs[0],
        "output_2": outputs[1],
        "preference": preference,
        "p_2": None if preference is None else preference - 1.0,
        "tie": preference == 1.5,
        "status": status,
    }


def rated(instruction: str, input_text: str, output: str, rating: float | None) -> dict:
    """Make a rated output; without a finite rating, one with the status parse_error."""
    rating = rating if is_number(rating) else None
    status = PARSE_ERROR if rating is None else OK
    return {
        "kind": RATING,
        "instruction": instruction,
        "input": input_text,
        "output": output,
        "rating": rating,
        "status": status,
    }


def preference_of(value: object, where: str) -> float | None:
    """Read a preference of AlpacaEval or AlpacaFarm: 0 is an older draw, -1 and null were never parsed.

    Errors: UserError for anything else outside [1, 2].
    """
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == -1:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{where}: preference: found {value!r}; it must be a number")
    # AlpacaFarm up to 0.1.12 and AlpacaEval's first results wrote a draw as 0.
    if value == 0:
        return 1.5
    if not 1 <= value <= 2:
        raise UserError(f"{where}: preference: found {value!r}; it must be within 1 and 2, or 0 for a draw")
    return float(value)


def labelled(rows: Sequence[Mapping], kind: str, path: str | Path) -> list[Mapping]:
    """Select the rows of a kind that have a label (`is_labelled`). Errors: NothingToWriteError without any."""
    kept = [row for row in rows if row["kind"] == kind and is_labelled(row)]
    if not kept:
        raise NothingToWriteError(
            f"{path}: none of {len(rows)} rows is a labelled {kind} row; this format needs them"
        )
    return kept


def prompt_of_row(row: Mapping) -> str:
    """Merge instruction and input into one prompt, as AlpacaFarm does."""
    return random_choices.merged_instruction(row["instruction"], row.get("input") or "")


def write_whole_text(path: str | Path, text: str) -> None:
    """Write a file atomically. Errors: UserError when the path cannot be written."""
    with whole_file(path) as partial:
        # surrogatepass: a lone surrogate in an output must not cost the whole file.
        partial.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_json_rows(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write rows as an indented JSON list; return how many."""
    # default=str: columns that were kept may hold times, for which JSON has no form.
    write_whole_text(path, json.dumps(list(rows), indent=2, ensure_ascii=False, default=str) + "\n")
    return len(rows)


def write_lines(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write rows as a JSON object per line; return how many."""
    write_whole_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
