"""What the formats share: making labelled rows, checking columns, choosing rows, writing whole files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation import seeding
from rlhf_jax.annotation.answers import OK, PARSE_ERROR, TIE_IDENTICAL
from rlhf_jax.annotation.contracts import PAIRWISE, RATING, is_number
from rlhf_jax.annotation.label_checks import NothingToWriteError, is_labelled
from rlhf_jax.annotation.whole_files import whole_file
from rlhf_jax.errors import UserError


def column(row: Mapping, name: str, where: str, *, default: str | None = None) -> str:
    """A text column; missing, null or not a number it is `default`. Errors: UserError beginning with `where`."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        if default is not None:
            return default
        raise UserError(f"{where}: {name}: missing; the row has {', '.join(map(repr, row))}")
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}: found {value!r}; it must be text")
    return value


def pair(instruction: str, input_text: str, outputs: tuple[str, str], preference: float | None) -> dict:
    """A labelled pair; without a preference one whose label could not be read."""
    same = outputs[0] == outputs[1]
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
    """A rated output; without a rating, or with one that is no finite number, one whose rating could not be read."""
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
    """A preference as AlpacaEval and AlpacaFarm write it: 0 is a draw of old, -1 and null were never parsed.

    Errors: UserError for anything else outside [1, 2].
    """
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == -1:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{where}: preference: found {value!r}; it must be a number")
    if value == 0:
        return 1.5
    if not 1 <= value <= 2:
        raise UserError(f"{where}: preference: found {value!r}; it must be within 1 and 2, or 0 for a draw")
    return float(value)


def labelled(rows: Sequence[Mapping], kind: str, path: str | Path) -> list[Mapping]:
    """The rows of a kind that carry a label (`is_labelled`). Errors: NothingToWriteError when there are none."""
    kept = [row for row in rows if row["kind"] == kind and is_labelled(row)]
    if not kept:
        raise NothingToWriteError(
            f"{path}: none of {len(rows)} rows is a labelled {kind} row; this format needs them"
        )
    return kept


def prompt_of(row: Mapping) -> str:
    """Instruction and input as one prompt, AlpacaFarm's way."""
    return seeding.merged_instruction(row["instruction"], row.get("input") or "")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all. Errors: UserError when the place cannot be written."""
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_json(path: str | Path, rows: Sequence[Mapping]) -> int:
    """A JSON list of objects, indented; how many."""
    write_text(path, json.dumps(list(rows), indent=2, ensure_ascii=False, default=str) + "\n")
    return len(rows)


def write_lines(path: str | Path, rows: Sequence[Mapping]) -> int:
    """A JSON object per line; how many."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
