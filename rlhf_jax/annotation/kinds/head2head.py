"""`annotate_head2head`: the outputs of two models on the same prompts, compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.asking import Annotations
from rlhf_jax.annotation.kinds.pairs import annotate_pairs
from rlhf_jax.data.files.tables import shown
from rlhf_jax.errors import UserError


def join_outputs(
    outputs_1: Sequence[Mapping], outputs_2: Sequence[Mapping], *, ordered: bool = False
) -> tuple[list[dict], dict]:
    """Join two models' outputs on instruction and input (inner join), in the order of `outputs_1`.

    Rows are dicts with `instruction`, `output` and optionally `input` and `generator`. The n-th row of a
    repeated prompt meets the n-th of the other side. ordered: both lists are in the same order, row by row;
    one that is not is an error instead of a smaller join. Columns of both sides that agree are kept once, others
    get _1 and _2 (always so for output, generator and ended).

    Returns the pairs and {"rows_1", "rows_2", "dropped_1", "dropped_2", "repeated"}: rows without a partner, and
    pairs whose prompt had come before. `join_line` puts them into words.
    Errors: UserError naming the row and the column, or when nothing at all can be joined.
    """
    keys_1, keys_2 = _keys(outputs_1, "outputs_1"), _keys(outputs_2, "outputs_2")
    if ordered:
        _check_order(keys_1, keys_2)
    # Keys are unique: each counts how often its prompt came before.
    partner = dict(zip(keys_2, outputs_2, strict=True))
    pairs = [_joined(row, partner[key]) for key, row in zip(keys_1, outputs_1, strict=True) if key in partner]
    counts = {
        "rows_1": len(outputs_1),
        "rows_2": len(outputs_2),
        "dropped_1": len(outputs_1) - len(pairs),
        "dropped_2": len(outputs_2) - len(pairs),
        "repeated": sum(key[2] > 0 for key in keys_1 if key in partner),
    }
    if not pairs:
        raise UserError(
            f"outputs_2: none of its {len(outputs_2)} prompts (instruction and input) is among the "
            f"{len(outputs_1)} of outputs_1; give outputs to the same prompts"
        )
    return pairs, counts


def join_line(counts: Mapping[str, int]) -> str:
    """Say how many pairs were made of which rows, and what to do about rows without a partner."""
    pairs = counts["rows_1"] - counts["dropped_1"]
    lost = [
        f"{counts[f'dropped_{k}']} of outputs_{k}'s {counts[f'rows_{k}']} rows"
        for k in (1, 2)
        if counts[f"dropped_{k}"]
    ]
    said = [f"{pairs} pairs on the same instruction and input"]
    if lost:
        said.append(
            f"no partner, so left out: {' and '.join(lost)} (instruction and input must be equal to the letter; "
            "files in the same order are checked row by row with ordered)"
        )
    if counts["repeated"]:
        said.append(
            f"{counts['repeated']} pairs repeat a prompt; the n-th row met the n-th of the other file"
        )
    return "; ".join(said)


def _check_order(keys_1: list[tuple], keys_2: list[tuple]) -> None:
    if len(keys_1) != len(keys_2):
        raise UserError(
            f"outputs_2: has {len(keys_2)} rows and outputs_1 {len(keys_1)}; give ordered=False to join them by prompt"
        )
    i = next((i for i, (one, two) in enumerate(zip(keys_1, keys_2, strict=True)) if one != two), None)
    if i is not None:
        raise UserError(
            f"outputs_2[{i}]: instruction: found {keys_2[i][0]!r}, but outputs_1[{i}] has {keys_1[i][0]!r}; "
            "give ordered=False to join them by prompt"
        )


def _keys(rows: Sequence[Mapping], name: str) -> list[tuple[str, str, int]]:
    """(instruction, input, how many rows had this prompt before) of every row."""
    seen: Counter = Counter()
    keys = []
    for i, row in enumerate(rows):
        for column in ("instruction", "output"):
            if not isinstance(row.get(column), str):
                raise UserError(f"{name}[{i}]: {column}: found {shown(row.get(column))}; it must be text")
        if not isinstance(row.get("input") or "", str):
            raise UserError(f"{name}[{i}]: input: found {shown(row['input'])}; it must be text")
        prompt = (row["instruction"], row.get("input") or "")
        keys.append((*prompt, seen[prompt]))
        seen[prompt] += 1
    return keys


def _joined(row_1: Mapping, row_2: Mapping) -> dict:
    joined = {"instruction": row_1["instruction"], "input": row_1.get("input") or ""}
    for column in dict.fromkeys([*row_1, *row_2]):
        if column in joined:
            continue
        in_both = column in row_1 and column in row_2
        # Like AlpacaEval's merge, but these three always become two columns, also where both sides agree.
        if column in ("output", "generator", "ended") or (in_both and row_1[column] != row_2[column]):
            joined[f"{column}_1"], joined[f"{column}_2"] = row_1.get(column), row_2.get(column)
        else:
            joined[column] = row_1[column] if column in row_1 else row_2[column]
    return joined


def annotate_head2head(
    outputs_1: Sequence[Mapping],
    outputs_2: Sequence[Mapping],
    pool: PoolSpec | str | Path,
    *,
    ordered: bool = False,
    **options: object,
) -> Annotations:
    """Compare a model's outputs (`outputs_2`) with a baseline's (`outputs_1`); options as `annotate_pairs`.

    ordered: as `join_outputs`. A preference of 2 means that `outputs_2` is better. The summary also holds the
    counts of `join_outputs`.
    """
    pairs, counts = join_outputs(outputs_1, outputs_2, ordered=ordered)
    annotated, summary = annotate_pairs(pairs, pool, **options)
    return Annotations(annotated, summary | counts)
