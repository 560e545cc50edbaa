"""Reads tables as lists of rows, and writes them: parquet, JSON, JSONL, folders of them, Hugging Face datasets.

What the columns mean is not known here, see `records`. Writing is atomic: a reader sees the old file or the new one,
never a half.
"""

import contextlib
import csv
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.files.splits import is_hub_name, read_folder, read_hub, split_of_folder
from rlhf_jax.data.files.table_files import read_file
from rlhf_jax.errors import UserError

__all__ = ["is_hub_name", "read_results", "read_rows", "read_table", "write_jsonl", "write_parquet"]

Row = dict[str, Any]


def read_table(source: str | Path, columns: Sequence[str] | None = None, *, made_by: str = "") -> list[Row]:
    """Reads all rows as `read_rows` does, and puts U+FFFD where a text is not valid Unicode, which is printed.

    JSON can hold half of a surrogate pair, which nothing that takes a text can send, write or tokenise.
    """
    rows = read_rows(source, columns, made_by=made_by)
    mended = 0
    for i, row in enumerate(rows):
        valid = valid_values(row)
        mended += valid != row
        rows[i] = valid
    if mended:
        print(
            f"{source}: {mended} rows hold text that is not valid Unicode; U+FFFD stands in its place",
            flush=True,
        )
    return rows


def read_results(path: str, names: Sequence[str]) -> list[Row]:
    """The rows of a table that a job has measured; in a CSV file what reads as a number is one.

    names: columns that name something and stay text, such as a model that is called 7.
    """
    if not path.endswith(".csv"):
        return read_table(path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        # DictReader fills a short row with None, and keeps what a long one has more under the name None.
        if None in row or None in row.values():
            raise UserError(f"{path}: row {i + 1}: not as many cells as there are columns; mend the file")
    return [
        {column: text if column in names else _as_number(text) for column, text in row.items()}
        for row in rows
    ]


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def read_rows(source: str | Path, columns: Sequence[str] | None = None, *, made_by: str = "") -> list[Row]:
    """Reads all rows of a table, in the order stored.

    source: a .parquet, .json (a list of objects) or .jsonl file, .gz, .bz2, .xz or .zst of the latter two; a folder
        of such files, read in the order of their names; a folder saved by `datasets`; FOLDER:SPLIT where a folder
        holds several splits; or, when no such path exists, the name of a Hugging Face dataset as org/name,
        org/name:split or org/name:configuration:split.
    columns: read only these; each must be there.
    made_by: the command that makes the file, shown when it is missing.
    Raises UserError when the source is missing, empty, broken, or lacks a column.
    """
    path = Path(source)
    if path.is_dir():
        rows = read_folder(path)
    elif path.exists():
        rows = read_file(path)
    elif named := split_of_folder(str(source)):
        rows = read_folder(*named)
    else:
        rows = read_hub(str(source), _hint(made_by))
    if not rows:
        raise UserError(f"{source}: it has no rows{_hint(made_by)}")
    if columns is not None:
        require_columns(rows, columns, source)
        rows = [{name: row.get(name) for name in columns} for row in rows]
    return rows


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Returns the names of all columns, in the order first seen (rows of JSON files may lack some)."""
    return list(dict.fromkeys(name for row in rows for name in row))


def require_columns(rows: Sequence[Row], columns: Iterable[str], source: str | Path) -> None:
    """Raises UserError for the first of `columns` that no row has, naming what was found and the closest."""
    found = columns_of(rows)
    for name in columns:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"{source}: no column {name!r}; {hint}it has {', '.join(found)}")


def write_parquet(
    path: str | Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes rows as zstd parquet, atomically; a column some rows lack is null there.

    metadata: strings kept in the file's schema. Raises UserError when the place cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pyarrow's from_pylist would keep only the columns of the first row.
    names = columns_of(rows)
    table = pa.Table.from_pydict({name: _column([row.get(name) for row in rows]) for name in names})
    if metadata:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, atomically. Raises UserError when the place cannot be written."""
    with whole_file(path) as partial, partial.open("wb") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _column(values: list[Any]) -> Any:
    """Makes an Arrow array of a column; values of several kinds, or too large for any, become JSON texts."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.array([json_text(value) for value in values])


def json_text(value: Any) -> str | None:
    """Writes a value of a column of several kinds as text: texts as they are, others as JSON, NaN as null."""
    if value is None or value != value:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return valid_text(text)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; it is renamed to `path` at the end, or removed after an error.

    Raises UserError when the place cannot be written.
    """
    path = Path(path)
    # In the same folder, as os.replace is atomic within a file system only. Hidden, so that nobody reads it as a part
    # of its folder; with the process's number, so that two may write at once.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            # Without it a crash of the machine can leave the new name with an empty file behind it.
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            # After a success it has been renamed already.
            partial.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); choose another place") from e


def _hint(made_by: str) -> str:
    return f"; make it with: {made_by}" if made_by else ""


# Makes texts valid Unicode, so that every file, database and request can hold them.


def valid_text(text: str) -> str:
    """Joins pairs of surrogates to the character they stand for, and replaces each lone one by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # In UTF-16 two halves side by side decode to one character; what stands alone is replaced.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shown(value: object) -> str:
    """Writes a value of a record as an error message shows it: on one line and at most 60 characters long."""
    try:
        text = repr(value)
    # An integer of more digits than Python converts to text.
    except ValueError:
        return f"a long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def valid_values(value: object) -> object:
    """Makes every text in `value` valid, which may be nested as JSON is."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, Mapping):
        return {valid_values(key): valid_values(item) for key, item in value.items()}
    # The exact types: a NamedTuple could not be made again from one argument.
    if type(value) in (list, tuple):
        return type(value)(valid_values(item) for item in value)
    return value
