"""sparse_feedback's CSV files, without a header: its feedback scripts append to them.

    ratings    instruction, input, response, score
    rankings   instruction, input, response1, response2, label: (a), (b) or equal

Its scripts write an empty input as "nan" and some versions of the files have a header; both are read. What is
written has no header and an empty input as nothing.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import labelled, pair, rated, write_whole_text
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RATING
from rlhf_jax.errors import UserError

_LABELS = {"(a)": 1.0, "(b)": 2.0, "equal": 1.5}
_HEADERS = {
    ("instruction", "input", "response", "score"),
    ("instruction", "input", "response1", "response2", "label"),
}
# The csv module refuses fields of more than 131,072 characters, which a long response can reach.
_FIELD_BYTES = 16 * 1024 * 1024


def read_ratings(path: str | Path) -> list[dict]:
    """Read one rated row per line; a score that is no number gets the status parse_error."""
    rows = []
    for _, (instruction, input_text, response, score) in _lines(path, 4):
        try:
            rating = float(score)
        except ValueError:
            rating = None
        rows.append(rated(instruction, _input(input_text), response, rating))
    return rows


def read_rankings(path: str | Path) -> list[dict]:
    """Read one labelled pair per line; "equal" is a tie."""
    rows = []
    for where, (instruction, input_text, one, two, label) in _lines(path, 5):
        if label not in _LABELS:
            raise UserError(f"{where}: label: found {label!r}; it must be {', '.join(_LABELS)}")
        rows.append(pair(instruction, _input(input_text), (one, two), _LABELS[label]))
    return rows


def write_ratings(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write rated rows, whole ratings as integers; return how many."""
    # Fifteen digits are as many as a float surely has, and write a 4 as "4".
    return _write(
        path,
        [
            (row["instruction"], row["input"], row["output"], f"{row['rating']:.15g}")
            for row in labelled(rows, RATING, path)
        ],
    )


def write_rankings(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write labelled pairs, a preference below a tie as (a), above it as (b); return how many."""
    made = []
    for row in labelled(rows, PAIRWISE, path):
        label = "equal" if row["preference"] == 1.5 else "(a)" if row["preference"] < 1.5 else "(b)"
        made.append((row["instruction"], row["input"], row["output_1"], row["output_2"], label))
    return _write(path, made)


def _input(text: str) -> str:
    # Its scripts read with pandas, which makes NaN of an empty field, and write that as text.
    return "" if text == "nan" else text


def _lines(path: str | Path, width: int) -> list[tuple[str, list[str]]]:
    """(where, fields) of every line; a header is left out. Errors: UserError naming file and line."""
    # A setting of the whole process: put back below.
    limit = csv.field_size_limit(_FIELD_BYTES)
    try:
        # utf-8-sig drops the mark that Excel puts first; newline="" keeps line breaks inside quoted fields.
        with open(path, encoding="utf-8-sig", newline="") as file:
            found = [(f"{path}: line {i + 1}", row) for i, row in enumerate(csv.reader(file)) if row]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a CSV of sparse_feedback") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); make it again") from None
    finally:
        csv.field_size_limit(limit)
    # csv.reader also yields a header; only a row of exactly these names is one.
    if found and tuple(found[0][1]) in _HEADERS:
        found = found[1:]
    if not found:
        raise UserError(f"{path}: it has no rows")
    wrong = next(((where, row) for where, row in found if len(row) != width), None)
    if wrong is not None:
        raise UserError(
            f"{wrong[0]}: has {len(wrong[1])} columns, not {width}; is it the other kind of file?"
        )
    return found


def _write(path: str | Path, rows: Sequence[Sequence[str]]) -> int:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_whole_text(path, text.getvalue())
    return len(rows)
