"""TRL's preference records: prompt, chosen, rejected, as texts or as lists of chat messages.

The explicit-prompt layouts are written; those, the implicit ones (both sides hold the whole conversation) and
transcripts like hh-rlhf's are read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import labelled, pair, prompt_of_row, write_lines
from rlhf_jax.annotation.kinds.samples import ended_sides
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError
from rlhf_jax.annotation.parsing.contracts import PAIRWISE
from rlhf_jax.data.records.records import counts_text, read_pairs


def read_trl(path: str | Path) -> list[dict]:
    """Read labelled pairs, the chosen response as output_1; print how many `read_pairs` has left out."""
    pairs, left_out = read_pairs(path)
    print(f"{path}: {len(pairs)} pairs read; {counts_text(left_out)}", flush=True)
    rows = []
    for one in pairs:
        instruction = one["instruction"] if "instruction" in one else one["prompt"]
        made = pair(instruction, one.get("input", ""), (one["chosen"], one["rejected"]), 1.0)
        rows.append(made | ended_sides(one.get("chosen_ended"), one.get("rejected_ended")))
    return rows


def write_trl(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write prompt, chosen and rejected as texts, and margin, how far the preference is from a tie (0 to 1).

    Ties and rows without a label are left out. chosen_ended, rejected_ended: where the labels know whether the
    outputs ended by themselves (TRL does not read them; a reader here does).
    """
    return write_lines(
        path, [dict(zip(_NAMES, one, strict=True)) | ended for *one, ended in _decided(rows, path)]
    )


def write_conversational(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write as `write_trl`, each of prompt, chosen and rejected as a list of one chat message."""
    lines = []
    for prompt, chosen, rejected, margin, ended in _decided(rows, path):
        sides = (_message("user", prompt), _message("assistant", chosen), _message("assistant", rejected))
        lines.append(dict(zip(_NAMES, (*sides, margin), strict=True)) | ended)
    return write_lines(path, lines)


_NAMES = ("prompt", "chosen", "rejected", "margin")


def _message(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def _decided(rows: Sequence[Mapping], path: str | Path) -> list[tuple[str, str, str, float, dict[str, bool]]]:
    made = []
    for row in labelled(rows, PAIRWISE, path):
        one, two, p_2 = row["output_1"], row["output_2"], row["preference"] - 1.0
        # A tie has no chosen side.
        if p_2 != 0.5:
            chosen, rejected = (two, one) if p_2 > 0.5 else (one, two)
            # The flags go with their outputs when the second is the chosen one.
            names = ("rejected_ended", "chosen_ended") if p_2 > 0.5 else ("chosen_ended", "rejected_ended")
            found = zip(names, (row.get("ended_1"), row.get("ended_2")), strict=True)
            ended = {name: value for name, value in found if value is not None}
            made.append((prompt_of_row(row), chosen, rejected, abs(2.0 * p_2 - 1.0), ended))
    if not made:
        raise NothingToWriteError(f"{path}: all labelled pairs are ties; nothing is chosen over anything")
    return made
