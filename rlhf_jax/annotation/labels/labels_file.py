"""labels.parquet: one row per judgment, written whole or not at all, with the run's settings in the file."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_jax.annotation.labels.judgment_rows import ASKED_COLUMNS, status_counts
from rlhf_jax.annotation.parsing.contracts import COMPLETION, PAIRWISE, RANKING, RATING
from rlhf_jax.data.files.tables import json_text, shown, whole_file
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Labels",
    "check_columns",
    "read_labels",
    "schema",
    "status_counts",
    "write_labels",
]

# Raised when a column changes its meaning; new columns leave it as it is.
SCHEMA_VERSION = 1
_META_VERSION, _META_CONFIG = b"rlhf_jax.labels.version", b"rlhf_jax.labels.config"
_ROW_GROUP = 50_000

# Columns that are not text; created_at is a timestamp; aspects, completions and top_logprobs are lists.
_FLOAT32 = ("preference", "p_2", "preference_clean", "preference_first_order", "preference_swapped")
_FLOAT32 += ("rating", "coverage_mass", "p_label_flip", "latency_ms")
_INT32 = ("tokens_in", "tokens_cached", "tokens_out", "tokens_reasoning")
_INT16 = ("pool_index", "parser_version", "n_attempts", "examples_in_request", "sample_index")
_IDENTITY = """
    label_id example_id pair_id dataset split kind instruction input output_1 output_2 generator_1 generator_2
    output generator sample_index completions
"""
_LABEL = """
    preference p_2 tie strong rating aspects status status_detail coverage_mass preference_clean is_noisy p_label_flip
    seed order preference_first_order preference_swapped position_consistent explanation
"""
_PROVENANCE = """
    pool pool_index judge_id annotator provider endpoint_origin api model_requested model_returned
    system_fingerprint prompt_template prompt_template_sha parser parser_version sampling transport
    batch_id request_hash request_hash_swapped request_id created_at latency_ms n_attempts examples_in_request
    library_version
"""
_COST = "tokens_in tokens_cached tokens_out tokens_reasoning price_usd"
_RAW = "raw_text raw_text_swapped top_logprobs finish_reason refusal_category"
COLUMNS = tuple(" ".join([_IDENTITY, _LABEL, _PROVENANCE, _COST, _RAW]).split())


class Labels(NamedTuple):
    """rows: dicts as they were written. config: the settings of the run that wrote them."""

    rows: list[dict]
    config: dict


@functools.cache
def schema() -> "pa.Schema":
    """Return the columns of every labels.parquet, in order: identity, label, provenance, cost, raw answer.

    preference is in [1, 2] (1: output_1 is better) or null, strong whether it is called a clear case; rating is
    on the judge's scale; completions holds the outputs of a ranking, rank 1 the best. price_usd is in dollars, null
    when unknown; latency_ms in milliseconds; created_at in UTC. order is "12" or "21", as the judge saw the outputs, or
    "both"; of a ranking the numbers of the outputs in the order shown. Tokens and price are this row's share of a
    request that held several examples.
    """
    # Imported where it is used: pyarrow loads slowly, and importing the annotation layer must be fast.
    import pyarrow as pa

    # Fixed types, not inferred ones: a run without a single rating writes the same columns as one with them.
    # Dollars need float64: a judgment may cost 1e-5, and 100,000 of them are added up.
    kinds = {
        **dict.fromkeys(_FLOAT32, pa.float32()),
        **dict.fromkeys(_INT32, pa.int32()),
        **dict.fromkeys(_INT16, pa.int16()),
        **dict.fromkeys(("tie", "strong", "is_noisy", "position_consistent"), pa.bool_()),
        "seed": pa.int64(),
        "price_usd": pa.float64(),
        "created_at": pa.timestamp("ms", tz="UTC"),
        "aspects": pa.list_(pa.struct([("aspect", pa.string()), ("rating", pa.float32())])),
        "completions": pa.list_(
            pa.struct(
                [
                    ("output", pa.string()),
                    ("generator", pa.string()),
                    ("ended", pa.bool_()),
                    ("rating", pa.float32()),
                    ("rank", pa.int16()),
                    ("p", pa.float32()),
                ]
            )
        ),
        "top_logprobs": pa.list_(pa.struct([("token", pa.string()), ("logprob", pa.float64())])),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


# Besides ASKED_COLUMNS and the seed: what each kind of labels writes itself, whatever the rows had under that name.
_MADE = {
    PAIRWISE: ("preference", "p_2", "tie", "strong", "is_noisy", "preference_clean", "p_label_flip"),
    RATING: ("rating", "aspects"),
    RANKING: ("completions",),
    COMPLETION: ("sample_index",),
}


def check_columns(rows: Sequence[Mapping], kind: str) -> None:
    """Check, before anything is asked, that the rows' own columns can be stored beside labels of this kind.

    Errors: UserError naming the row, the column and its value.
    """
    import pyarrow as pa

    given = {name for row in rows for name in row} - {*ASKED_COLUMNS, "seed", *_MADE[kind]}
    for field in schema():
        # A column of text takes values of every type.
        if field.name not in given or field.type == pa.string():
            continue
        values = [row.get(field.name) for row in rows]
        if not _can_hold(field.type, values):
            i = next((i for i, value in enumerate(values) if not _can_hold(field.type, [value])), 0)
            raise UserError(
                f"rows[{i}]: {field.name}: found {shown(values[i])}; the labels have a column of this name, which "
                f"holds {field.type if field.type.num_fields == 0 else 'a list of mappings'}; rename yours or drop it"
            )


def _can_hold(kind: "pa.DataType", values: list) -> bool:
    import pyarrow as pa

    try:
        pa.array(values, type=kind)
        if not pa.types.is_list(kind):
            return True
        # Keys that a struct does not have would be left out in silence.
        known = {field.name for field in kind.value_type}
        return all(known.issuperset(one or ()) for value in values for one in value or ())
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        return False


def write_labels(path: str | Path, rows: Sequence[Mapping], config: Mapping) -> None:
    """Write labelled rows and the run's `config` (anything JSON can hold). Further columns are kept.

    A text column, or a further one, whose values are of several types is written as JSON texts: paid labels must not
    be lost for it. The file appears under `path` complete or not at all. Errors: UserError
    for another column of mixed types or an unwritable path.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    fixed = schema()
    further = [
        name for name in dict.fromkeys(name for row in rows for name in row) if name not in fixed.names
    ]
    arrays, fields = [], []
    # Column by column, so that an error can name the column, and a free one can fall back to text.
    for name in [*fixed.names, *further]:
        kind = fixed.field(name).type if name in fixed.names else None
        try:
            array = pa.array([row.get(name) for row in rows], type=kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            # Only a text can hold values of every type, as JSON; a number that is none is a fault of the row.
            if kind not in (None, pa.string()):
                said = " ".join(str(error).split())
                raise UserError(
                    f"labels column {name!r}: cannot be stored ({said}); give it one type"
                ) from None
            array = pa.array([json_text(row.get(name)) for row in rows], type=pa.string())
        arrays.append(array)
        fields.append(pa.field(name, array.type))
    metadata = {_META_VERSION: str(SCHEMA_VERSION).encode(), _META_CONFIG: json.dumps(config).encode()}
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=_ROW_GROUP)


def read_labels(path: str | Path) -> Labels:
    """Read a labels.parquet. Errors: UserError when the file is missing, broken or of another version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the annotate job writes it") from None
    except (OSError, pa.ArrowInvalid) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable parquet file ({said}); write it again") from None
    metadata = table.schema.metadata or {}
    version = metadata.get(_META_VERSION, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise UserError(
            f"{path}: labels of version {version}, not {SCHEMA_VERSION}; write them with the annotate job"
        )
    return Labels(table.to_pylist(), json.loads(metadata[_META_CONFIG]))
