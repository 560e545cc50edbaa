"""Table files: parquet, JSON, JSONL (also gzipped), folders of them, Hugging Face datasets -> lists of rows.

Writing is atomic: a reader sees the old file or the new one, never a half.
"""

import difflib
import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_jax.errors import UserError

Row = dict[str, Any]
_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:\w[\w.-]*)?")


def read_table(source: str | Path, columns: Sequence[str] | None = None, *, made_by: str = "") -> list[Row]:
    """Reads all rows of a table, in the order stored.

    source: a .parquet, .json (a list of objects) or .jsonl file, .gz of the latter two; a folder of such
        files, read in the order of their names; a folder saved by `datasets`; or, when no such path exists,
        the name of a Hugging Face dataset as org/name or org/name:split.
    columns: read only these; each must be there.
    made_by: the command that makes the file, shown when it is missing.
    Raises UserError when the source is missing, empty, broken, or lacks a column.
    """
    path = Path(source)
    if path.is_dir():
        rows = _read_folder(path)
    elif path.exists():
        rows = _read_file(path)
    else:
        rows = _read_hub(str(source), made_by)
    if not rows:
        raise UserError(f"{source}: it has no rows{_hint(made_by)}")
    if columns is not None:
        require_columns(rows, columns, source)
        rows = [{name: row.get(name) for name in columns} for row in rows]
    return rows


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The names of all columns, in the order first seen (rows of JSON files may lack some)."""
    return list(dict.fromkeys(name for row in rows for name in row))


def require_columns(rows: Sequence[Row], columns: Iterable[str], source: str | Path) -> None:
    """Raises UserError for the first of `columns` that no row has, naming what was found and the closest."""
    found = columns_of(rows)
    for name in columns:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"{source}: no column {name!r}; {hint}it has {', '.join(found)}")


def is_hub_name(source: str) -> bool:
    """Whether a source that is no local path may name something on the Hugging Face hub: org/name.

    "runs/sft.parquet" and "runs/sft" look like that too; a known ending, or an existing folder "runs", says
    that a local file is meant.
    """
    looks_so = _HUB_NAME.fullmatch(source) is not None and _suffix(Path(source)) not in _SUFFIXES
    return looks_so and not Path(source).parent.is_dir()


def write_parquet(
    path: str | Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes rows as zstd parquet, atomically; a column some rows lack is null there.

    metadata: strings kept in the file's schema. Raises UserError when the place cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = columns_of(rows)  # from_pylist alone would keep only the columns of the first row
    table = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
    if metadata:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    _write_atomically(Path(path), lambda file: pq.write_table(table, file, compression="zstd"))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, atomically. Raises UserError when the place cannot be written."""

    def write(file: BinaryIO) -> None:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    _write_atomically(Path(path), write)


def _write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # gone already when all went well
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); choose another place") from e


def _read_folder(folder: Path) -> list[Row]:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        import datasets

        return _one_split(datasets.load_from_disk(str(folder)), str(folder), "").to_list()
    files = sorted(path for path in folder.iterdir() if _suffix(path) in _SUFFIXES)
    if not files:
        raise UserError(f"{folder}: the folder holds no table; put {', '.join(_SUFFIXES)} files there")
    kinds = sorted({_suffix(path) for path in files})
    if len(kinds) > 1:
        raise UserError(f"{folder}: the folder mixes {', '.join(kinds)} files; name one file")
    return [row for path in files for row in _read_file(path)]


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _read_file(path: Path) -> list[Row]:
    suffix = _suffix(path)
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: unknown kind of table {suffix!r}; use {', '.join(_SUFFIXES)}")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty")
        if suffix == ".parquet":
            return _read_parquet(path)
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({e}); make it again") from e
    rows = _parse_lines(text, path) if suffix != ".json" else _parse_json(text, path)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: row {i + 1} is a {type(row).__name__}, not an object with named columns"
            )
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as e:
        raise UserError(f"{path}: broken parquet ({str(e).splitlines()[0]}); make the file again") from e


def _parse_json(text: str, path: Path) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":  # several objects: a JSONL file by another name
            return _parse_lines(text, path)
        raise UserError(f"{path}: broken JSON at line {e.lineno} ({e.msg})") from e
    if not isinstance(value, list):
        raise UserError(f"{path}: holds one {type(value).__name__}; a table is a list of objects")
    return value


def _parse_lines(text: str, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as e:
            raise UserError(f"{path}: broken JSON at line {number} ({e.msg})") from e
    return rows


def _read_hub(source: str, made_by: str) -> list[Row]:
    if not is_hub_name(source):
        raise UserError(f"{source}: no such file{_hint(made_by)}")
    import datasets

    name, _, split = source.partition(":")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as e:  # datasets and the hub client raise many kinds; all mean it could not be had
        reason = " ".join(str(e).split())[:160]
        raise UserError(
            f"{source}: no such file, nor could a Hugging Face dataset of that name be loaded ({reason})"
            + _hint(made_by)
        ) from e
    return _one_split(loaded, name, split).to_list()


def _one_split(loaded: Any, name: str, split: str) -> Any:
    if not hasattr(loaded, "keys"):
        return loaded
    if split in loaded:
        return loaded[split]
    if not split and len(loaded) == 1:
        return next(iter(loaded.values()))
    found = ", ".join(loaded)
    if split:
        raise UserError(f"{name}: no split {split!r}; it has {found}")
    raise UserError(f"{name}: it has several splits ({found}); name one, as in {name}:{next(iter(loaded))}")


def _hint(made_by: str) -> str:
    return f"; make it with: {made_by}" if made_by else ""
