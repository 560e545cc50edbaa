"""Reads the rows of one table file: parquet, JSON or JSONL, the latter two also compressed.

Whatever cannot be read is a UserError of one line that names the file and the place in it.
"""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError, object_of

# The text of JSON and JSONL files is parsed into rows; errors name the line.

# Python refuses to convert integers of more than 4,300 digits; so long ones become floats, that is infinity.
_DIGITS = 4000


def decode_json(data: bytes, path: Path) -> str:
    """Decodes UTF-8, or UTF-16 where its byte order mark stands in front. UserError names the line that is not."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: cannot be read (broken UTF-16, {e.reason}); save it as UTF-8") from e
    # utf-8-sig takes off the byte order mark that Windows programs write, and that json refuses.
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError(
            f"{path}: cannot be read (line {line} is not UTF-8, {e.reason}); save it as UTF-8"
        ) from e


def parse_json(text: str, path: Path) -> list[Any]:
    """Parses a list of objects, or several objects one after the other: a JSONL file that is named .json."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":
            return parse_lines(text, path)
        raise UserError(f"{path}: broken JSON at line {e.lineno} ({e.msg})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: broken JSON ({_reason(e)})") from e
    if not isinstance(value, list):
        raise UserError(
            f"{path}: holds one {type(value).__name__}; a table is a list of objects{_way_out(value)}"
        )
    return value


def _way_out(value: Any) -> str:
    """Says what to do with one object: which of its keys holds the table, or that it is a row itself."""
    if not isinstance(value, dict):
        return ""
    tables = [key for key, x in value.items() if isinstance(x, list) and x and isinstance(x[0], dict)]
    # A conversation is a list of objects, too, and then the object is a row.
    tables = [key for key in tables if not {"role", "from"} & set(value[key][0])]
    if tables:
        return f"; write what its key {tables[0]!r} holds to a file of its own"
    return "; if it is a row, put [ ] around it, or name the file .jsonl with the row on one line"


def parse_lines(text: str, path: Path) -> list[Any]:
    """Parses one value a line; empty lines are skipped."""
    rows = []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_DECODER.decode(line))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: broken JSON at line {number} ({_reason(e)})") from e
    return rows


def _lines(text: str) -> Iterator[str]:
    """The lines of a text, one at a time: all of them beside the text would be as much memory again."""
    # str.splitlines would also split at U+2028 and others, which may stand within a JSON string.
    start = 0
    while (stop := text.find("\n", start)) >= 0:
        yield text[start:stop]
        start = stop + 1
    yield text[start:]


def _reason(e: Exception) -> str:
    if isinstance(e, RecursionError):
        return "lists or objects are nested too deeply"
    return e.msg if isinstance(e, json.JSONDecodeError) else str(e)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=object_of, parse_int=_integer)


Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json")
# The first bytes of compressed files: some are compressed although their name does not say so.
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
COMPRESSED = tuple(_MAGIC.values())


def suffix(path: Path) -> str:
    """Returns the ending that says what kind of table a file is, without that of a compression."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def read_file(path: Path) -> list[Row]:
    """Reads all rows of a file. Raises UserError in one line for whatever cannot be read."""
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of table {kind!r}; use {', '.join(SUFFIXES)}")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty")
        if kind == ".parquet":
            return _read_parquet(path)
        data = _decompressed(path.read_bytes(), path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())}); make it again") from e
    text = decode_json(data, path)
    # Gigabytes may be read, and one form of them in memory is enough.
    del data
    rows = parse_lines(text, path) if kind != ".json" else parse_json(text, path)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            # A whole table on one line, as .json files have it.
            rename = kind != ".json" and isinstance(row, list) and len(rows) == 1
            way_out = "; a list of rows belongs in a .json file, so rename it" if rename else ""
            raise UserError(
                f"{path}: row {i + 1} is a {type(row).__name__}, not an object with named columns{way_out}"
            )
    return rows


def _decompressed(data: bytes, path: Path) -> bytes:
    """Decompresses what its name or its first bytes say is compressed."""
    how = (
        path.suffix
        if path.suffix in COMPRESSED
        else next((s for m, s in _MAGIC.items() if data[: len(m)] == m), "")
    )
    # Python has no zstd before 3.14; pyarrow, which reads parquet, has it.
    if how == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    return {"": bytes, ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}[how](data)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{path}: two columns are named {twice[0]!r}; rename one")
        # Column by column, so that one with values that Python cannot hold does not take the others along.
        table = pq.read_table(path)
        columns = [_values(table.column(name)) for name in names]
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path}: broken parquet ({str(e).splitlines()[0]}); make the file again") from e
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    """Converts a column to Python values; those that Python cannot hold, such as the year 10000, become text."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    # One by one, so that a value of which Python can make nothing costs its own row alone.
    except (OverflowError, ValueError, pa.ArrowException):
        return [_as_text(value) for value in column]


def _as_text(value: Any) -> Any:
    import pyarrow as pa

    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _with_surrogates(value)
    except (OverflowError, ValueError, pa.ArrowException):
        try:
            return value.cast(pa.string()).as_py()
        except pa.ArrowException:
            return f"a {value.type} that cannot be read"


def _with_surrogates(value: Any) -> Any:
    """Converts a value with invalid UTF-8; its bytes stay as lone surrogates, for which trainers drop the row."""
    import pyarrow as pa

    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        return {name: _with_surrogates(x) for name, x in value.items()}
    if isinstance(value, pa.DictionaryScalar):
        return _with_surrogates(value.value)
    if isinstance(value, pa.MapScalar):
        return [tuple(map(_with_surrogates, x.values())) for x in value.values]
    if isinstance(value, pa.ListScalar):
        return [_with_surrogates(x) for x in value.values]
    if isinstance(value, pa.StringScalar):
        return value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return _as_text(value)
