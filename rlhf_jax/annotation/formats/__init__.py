"""Feedback in the files of other projects: what they hold becomes labelled rows, and labelled rows become them.

Readers give rows of the kinds of `labels.parquet` (kind, status, preference or rating, ...), so that whatever
was labelled elsewhere can be trained on, expanded and evaluated as if it had been labelled here. Writers take
such rows; each says which rows it leaves out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.annotation.fields import closest
from rlhf_jax.annotation.formats import alpaca_eval, alpaca_farm, rrhf, sparse_feedback, trl, ultrafeedback
from rlhf_jax.errors import UserError

__all__ = ["FORMATS", "Format", "format_named", "read_feedback", "write_feedback"]


class Format(NamedTuple):
    """read(path) gives labelled rows; write(path, rows) says how many rows it wrote. suffix: of a new file."""

    read: Callable[[str | Path], list[dict]]
    write: Callable[[str | Path, Sequence[dict]], int]
    suffix: str


FORMATS: dict[str, Format] = {
    "alpaca_farm": Format(alpaca_farm.read, alpaca_farm.write, ".json"),
    "alpaca_eval": Format(alpaca_eval.read, alpaca_eval.write, ".json"),
    "trl": Format(trl.read, trl.write, ".jsonl"),
    "trl_conversational": Format(trl.read, trl.write_conversational, ".jsonl"),
    "ultrafeedback": Format(ultrafeedback.read, ultrafeedback.write, ".jsonl"),
    "rrhf": Format(rrhf.read, rrhf.write, ".jsonl"),
    "sparse_ratings": Format(sparse_feedback.read_ratings, sparse_feedback.write_ratings, ".csv"),
    "sparse_rankings": Format(sparse_feedback.read_rankings, sparse_feedback.write_rankings, ".csv"),
}


def format_named(name: str) -> Format:
    """The format of this name. Errors: UserError that names the closest."""
    if name not in FORMATS:
        raise UserError(f"format: unknown {name!r}; {closest(name, list(FORMATS))}")
    return FORMATS[name]


def read_feedback(path: str | Path, name: str) -> list[dict]:
    """Labelled rows from a file in the format `name`. Errors: UserError naming the file, row and column."""
    return format_named(name).read(path)


def write_feedback(path: str | Path, rows: Sequence[dict], name: str) -> int:
    """Write labelled rows in the format `name`; how many went in. Errors: UserError when none can."""
    return format_named(name).write(path, rows)
