"""One table file -> rows: parquet, JSON and JSONL, the latter two also compressed."""

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any

from rlhf_jax.data.json_text import decode, parse_json, parse_lines
from rlhf_jax.errors import UserError

Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json")
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
COMPRESSED = tuple(_MAGIC.values())


def suffix(path: Path) -> str:
    """What kind of table the name says, be it compressed or not."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def read_file(path: Path) -> list[Row]:
    """All rows of a file. Raises UserError in one line for whatever cannot be read."""
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
    text = decode(data, path)
    rows = parse_lines(text, path) if kind != ".json" else parse_json(text, path)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: row {i + 1} is a {type(row).__name__}, not an object with named columns"
            )
    return rows


def _decompressed(data: bytes, path: Path) -> bytes:
    """What its name or its first bytes say is compressed, unpacked."""
    how = (
        path.suffix
        if path.suffix in COMPRESSED
        else next((s for m, s in _MAGIC.items() if data[: len(m)] == m), "")
    )
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
        table = pq.read_table(path)
        columns = [_values(table.column(name)) for name in names]
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path}: broken parquet ({str(e).splitlines()[0]}); make the file again") from e
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    """A column's values; those that Python cannot hold, such as dates after the year 9999, as text."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Such rows are counted where their text is used.
        texts = column.cast(pa.binary()).to_pylist()
        return [None if x is None else x.decode("utf-8", "surrogateescape") for x in texts]
    except (OverflowError, ValueError):
        return [_as_text(value) for value in column]


def _as_text(value: Any) -> Any:
    import pyarrow as pa

    try:
        return value.as_py()
    except (OverflowError, ValueError):
        try:
            return value.cast(pa.string()).as_py()
        except pa.ArrowException:
            return f"a {value.type} that cannot be read"
