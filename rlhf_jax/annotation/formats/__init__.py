"""Reading and writing labels in the file formats of other projects.

Readers give rows of the kinds of `labels.parquet` (kind, status, preference or rating, ...), so that whatever
was labelled elsewhere can be trained on, expanded and evaluated as if it had been labelled here. Writers take
such rows; each says which rows it leaves out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.annotation.formats import alpaca_eval_farm, sparse_feedback, trl_rrhf, ultrafeedback
from rlhf_jax.annotation.judges.fields import closest_name
from rlhf_jax.errors import UserError

__all__ = ["FORMATS", "Format", "format_named", "read_feedback", "write_feedback"]


class Format(NamedTuple):
    """A format: read(path) returns labelled rows, write(path, rows) the number written. suffix: of a new file."""

    read: Callable[[str | Path], list[dict]]
    write: Callable[[str | Path, Sequence[dict]], int]
    suffix: str


FORMATS: dict[str, Format] = {
    "alpaca_farm": Format(alpaca_eval_farm.read_alpaca_farm, alpaca_eval_farm.write_alpaca_farm, ".json"),
    "alpaca_eval": Format(alpaca_eval_farm.read_alpaca_eval, alpaca_eval_farm.write_alpaca_eval, ".json"),
    "trl": Format(trl_rrhf.read_trl, trl_rrhf.write_trl, ".jsonl"),
    # Read like the other one, since the reader tells texts from chat messages; only the writers differ.
    "trl_conversational": Format(trl_rrhf.read_trl, trl_rrhf.write_conversational, ".jsonl"),
    "ultrafeedback": Format(ultrafeedback.read_ultrafeedback, ultrafeedback.write_ultrafeedback, ".jsonl"),
    "rrhf": Format(trl_rrhf.read_rrhf, trl_rrhf.write_rrhf, ".jsonl"),
    "sparse_ratings": Format(sparse_feedback.read_ratings, sparse_feedback.write_ratings, ".csv"),
    "sparse_rankings": Format(sparse_feedback.read_rankings, sparse_feedback.write_rankings, ".csv"),
}


def format_named(name: str) -> Format:
    """Look up a format. Errors: UserError that names the closest."""
    if name not in FORMATS:
        raise UserError(f"format: unknown {name!r}; {closest_name(name, list(FORMATS))}")
    return FORMATS[name]


def read_feedback(path: str | Path, name: str) -> list[dict]:
    """Read labelled rows from a file in the format `name`. Errors: UserError naming the file, row and column."""
    return format_named(name).read(path)


def write_feedback(path: str | Path, rows: Sequence[dict], name: str) -> int:
    """Write labelled rows in the format `name`; return how many. Errors: UserError when none can be written."""
    return format_named(name).write(path, rows)
