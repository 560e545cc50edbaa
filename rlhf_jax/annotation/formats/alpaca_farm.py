"""AlpacaFarm's preferences: a JSON list of instruction, input, output_1, output_2, preference, annotator."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.contracts import PAIRWISE
from rlhf_jax.annotation.formats.rows_of import column, labelled, pair, preference_of, write_json
from rlhf_jax.data.tables import read_table


def read(path: str | Path) -> list[dict]:
    """Labelled pairs. A draw may be 0 (as of old) or 1.5; further columns are kept."""
    rows = []
    for i, row in enumerate(read_table(path)):
        where = f"{path}: row {i + 1}"
        outputs = (column(row, "output_1", where), column(row, "output_2", where))
        prompt = (column(row, "instruction", where), column(row, "input", where, default=""))
        rows.append(row | pair(*prompt, outputs, preference_of(row.get("preference"), where)))
    return rows


def write(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Labelled pairs; whole preferences as whole numbers, as AlpacaFarm has them. Others are left out."""
    return write_json(path, [_farm_row(row) for row in labelled(rows, PAIRWISE, path)])


def _farm_row(row: Mapping) -> dict:
    preference = row["preference"]
    whole = int(preference) if preference == int(preference) else preference
    kept = {name: row[name] for name in ("instruction", "input", "output_1", "output_2")}
    kept |= {name: row[name] for name in ("ended_1", "ended_2") if row.get(name) is not None}
    return kept | {"annotator": row.get("annotator"), "preference": whole}
