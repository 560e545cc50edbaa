"""Export and import of the answer cache as parquet, to move answers between machines or publish them."""

from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.annotation.answers.cache import ALL_COLUMNS, VERSION, AnswerCache, wrong_column
from rlhf_jax.data.files.tables import whole_file
from rlhf_jax.errors import UserError

_META = b"rlhf_jax.answers.version"
_ROWS = 20_000
_INTEGERS = (
    *("body_bytes", "n_attempts", "created_at"),
    *("tokens_in", "tokens_cached", "tokens_out", "tokens_reasoning", "tokens_cache_write"),
)


def _schema() -> object:
    # pyarrow is imported where it is used: it loads slowly, and few runs export anything.
    import pyarrow as pa

    kinds = dict.fromkeys(_INTEGERS, pa.int64()) | {"latency_ms": pa.float64()}
    fields = [(name, kinds.get(name, pa.string())) for name in ALL_COLUMNS]
    return pa.schema(fields, metadata={_META: str(VERSION).encode()})


def export_answers(cache: AnswerCache, path: str | Path) -> int:
    """Write all answers, sorted by request hash, to a parquet file that appears complete or not at all.

    Returns how many. `top_logprobs` is JSON text. Errors: UserError when the path cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, n = _schema(), 0
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        query = f"SELECT {', '.join(ALL_COLUMNS)} FROM answers ORDER BY request_hash"
        for chunk in cache.chunks(query, _ROWS):
            columns = zip(*chunk, strict=True)
            arrays = [_array(c, field, cache.path) for c, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            n += len(chunk)
    return n


def import_answers(cache: AnswerCache, path: str | Path) -> int:
    """Add the answers of a file of `export_answers` to the cache; answers that it has already stay.

    Returns how many were new. Errors: UserError when the file is missing, broken, or no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a parquet file of exported answers") from None
    except (OSError, pa.ArrowInvalid) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable parquet file ({said}); export the answers again") from None
    with file:
        version = (file.schema_arrow.metadata or {}).get(_META, b"none").decode()
        if version != str(VERSION):
            raise UserError(
                f"{path}: answers of version {version}, not {VERSION}; export them again with this version"
            )
        new = 0
        for rows in _rows_of(file, path):
            new += cache.insert(rows)
    return new


def _array(values: tuple, field: object, path: Path | None) -> object:
    import pyarrow as pa

    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"cache {path}: the column {field.name} cannot be exported ({said}); restore a copy of the file"
        ) from None


def _rows_of(file: object, path: str | Path) -> Iterator[list[tuple]]:
    """The rows of a file of answers, checked. Errors: UserError when it is broken inside."""
    import pyarrow as pa

    try:
        # Opening a parquet file reads its footer only; damage further inside shows here.
        for batch in file.iter_batches(_ROWS):
            rows = list(zip(*(batch.column(name).to_pylist() for name in ALL_COLUMNS), strict=True))
            _check(rows, path)
            yield rows
    except (OSError, pa.ArrowException, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: broken inside ({said}); export the answers again") from None


def _check(rows: list[tuple], path: str | Path) -> None:
    # In the cache one of these would break every later run that reads its row.
    for row in rows:
        if wrong := wrong_column(dict(zip(ALL_COLUMNS, row, strict=True))):
            raise UserError(
                f"{path}: the answer {str(row[0])[:16]} has no usable {wrong}; export the answers again"
            )
