"""Reads single responses that somebody called desirable or not, out of files of labels, ratings or pairs."""

from __future__ import annotations

from rlhf_jax.data.files.tables import columns_of
from rlhf_jax.data.records.left_out import LeftOut, RowError, UsedColumns, has_content
from rlhf_jax.data.records.messages import flag, liked_column
from rlhf_jax.data.records.records import (
    USABLE_STATUS,
    Row,
    Source,
    load_records,
    read_instructions,
    read_pairs,
)
from rlhf_jax.data.records.row_parts import missing
from rlhf_jax.errors import UserError

_SIDES = ("chosen", "rejected")


def read_unpaired(
    source: Source, *, desirable_from: float, made_by: str = "", chat: bool = False
) -> tuple[list[Row], LeftOut]:
    """Reads rows with `output`, a prompt and `liked`, True or False.

    Layouts: those of `read_pairs`, of which either side becomes a row; or those of `read_instructions` with a column
    `label` or `kto_tag` of true and false, or one `rating`, where desirable_from is the least that is liked. A row
    without a verdict is left out and counted. Raises UserError for a file that has none of these.
    """
    rows, name, _ = load_records(source, None, None, made_by)
    found = set(columns_of(rows))
    if found & {*_SIDES, "output_1", "output_2"}:
        pairs, left_out = read_pairs(source, made_by=made_by, chat=chat)
        left_out.notes["both sides of a pair are rows"] = len(pairs)
        return [_side(pair, side) for pair in pairs for side in _SIDES], left_out
    liked = liked_column(rows, found)
    if liked is None and "rating" not in found:
        raise UserError(
            f"{name}: nothing says which responses are liked; needed: label of true and false, rating, or pairs "
            "(output_1, output_2 and preference, or chosen and rejected)"
        )

    def verdict(row: UsedColumns) -> bool:
        if "status" in row and row.get("status") not in USABLE_STATUS:
            raise RowError(f"status={row.get('status') or 'missing'}")
        value = row.get(liked or "rating")
        if missing(value) or not has_content(value):
            raise RowError(f"{liked or 'rating'}=missing")
        if liked:
            return bool(flag(value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowError("rating is not a number")
        return value >= desirable_from

    kept, left_out = read_instructions(source, made_by=made_by, chat=chat, verdict=verdict)
    decides = f"{liked} is true" if liked else f"rating is {desirable_from:g} or more"
    left_out.notes[f"liked where {decides}"] = sum(row["liked"] for row in kept)
    return kept, left_out


def _side(pair: Row, side: str) -> Row:
    """One side of a pair as a row of its own."""
    of_pair = {f"{one}{what}" for one in _SIDES for what in ("", "_ended", "_fields")}
    own = {"output": pair[side], "liked": side == "chosen"}
    own |= {
        f"{'output_' * (x == 'fields')}{x}": pair[f"{side}_{x}"]
        for x in ("ended", "fields")
        if f"{side}_{x}" in pair
    }
    return {name: value for name, value in pair.items() if name not in of_pair} | own
