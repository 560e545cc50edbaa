"""AlpacaFarm's preferences: a JSON list of instruction, input, output_1, output_2, preference, annotator."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import column, labelled, pair, preference_of, write_json_rows
from rlhf_jax.annotation.parsing.contracts import PAIRWISE
from rlhf_jax.data.files.tables import read_table


def read_alpaca_farm(path: str | Path) -> list[dict]:
    """Read labelled pairs. A draw may be 0 (older files) or 1.5; further columns are kept."""
    rows = []
    for i, row in enumerate(read_table(path)):
        where = f"{path}: row {i + 1}"
        outputs = (column(row, "output_1", where), column(row, "output_2", where))
        prompt = (column(row, "instruction", where), column(row, "input", where, default=""))
        rows.append(row | pair(*prompt, outputs, preference_of(row.get("preference"), where)))
    return rows


def write_alpaca_farm(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write labelled pairs, whole preferences as integers as AlpacaFarm does; other rows are left out."""
    return write_json_rows(path, [_farm_row(row) for row in labelled(rows, PAIRWISE, path)])


def _farm_row(row: Mapping) -> dict:
    preference = row["preference"]
    whole = int(preference) if preference == int(preference) else preference
    kept = {name: row[name] for name in ("instruction", "input", "output_1", "output_2")}
    # Not AlpacaFarm's: whether each output ended by itself, which our trainers need to place the end token.
    kept |= {name: row[name] for name in ("ended_1", "ended_2") if row.get(name) is not None}
    return kept | {"annotator": row.get("annotator"), "preference": whole}
