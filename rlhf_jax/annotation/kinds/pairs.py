"""`annotate_pairs`: rows with two outputs in, the same rows with a preference and its provenance out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.annotation.answers.answers import NOISE, TIE_IDENTICAL
from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.annotating import Annotations, annotate
from rlhf_jax.annotation.kinds.asking import Ask, Options, Reply, pool_of_kind
from rlhf_jax.annotation.kinds.orders import SHOWN, judged, orders_of
from rlhf_jax.annotation.labels.judgment_rows import pair_row
from rlhf_jax.annotation.parsing.contracts import BOTH_TWO_GAMES, PAIRWISE, Parsed
from rlhf_jax.data.files.tables import shown, valid_values
from rlhf_jax.errors import UserError

__all__ = ["Annotations", "annotate_pairs"]


def annotate_pairs(
    rows: Sequence[Mapping],
    pool: PoolSpec | str | Path,
    *,
    seed: int = 0,
    p_label_flip: float = 0.0,
    **options: object,
) -> Annotations:
    """Ask the pool which output of each row is better.

    rows: dicts with `instruction`, `output_1`, `output_2` and optionally `input`; other columns are kept.
    pool: a PoolSpec, or the path of a pool or judge file.
    seed, p_label_flip: order, pool choice and noise as AlpacaFarm's (`random_choices`); a share p_label_flip in
        [0, 0.5] of the labels is flipped, without asking.
    options: how to ask, see `asking.Options`.

    Returns rows with `preference` in [1, 2] (1: output_1 is better, 1.5: identical outputs or a tie) or None,
    `status` (see `answers`) and the columns of `labels_file.schema`; and a summary. A judge whose order is
    both_two_games gives two rows per pair, one for each order.
    Errors: UserError for a bad row, file or setting, a refused key, an endpoint that cannot be reached. The
    answers until then are in the cache, and the same call continues.
    """
    pool = pool_of_kind(pool, PAIRWISE)
    how = Options(**options)
    if not 0.0 <= p_label_flip <= 0.5:
        raise UserError(
            f"p_label_flip: found {p_label_flip}; give a share between 0 and 0.5 (0.5 is all noise)"
        )
    # All rows are checked before the first request: a bad one at the end must not cost a run.
    rows = [checked(row, i, ("output_1", "output_2")) for i, row in enumerate(rows)]
    plans = [plan for row in rows for plan in _plans(row, pool, seed, p_label_flip)]

    def label(replies: Mapping[Ask, Reply]) -> list[dict]:
        return [_labelled(plan, replies, pool) for plan in plans]

    asks = [plan.asks for plan in plans]
    return annotate(asks, pool, seed, how, label, p_label_flip=p_label_flip)


def checked(row: Mapping, i: int, outputs: Sequence[str]) -> dict:
    """Check that the columns that matter hold text and return a copy; a missing or null input becomes ""."""
    row = dict(row)
    row["input"] = row.get("input") if row.get("input") is not None else ""
    for column in ("instruction", *outputs, "input"):
        if column not in row:
            there = ", ".join(map(repr, row))
            raise UserError(f"rows[{i}]: {column}: missing; the row has {there}")
        if not isinstance(row[column], str):
            raise UserError(f"rows[{i}]: {column}: found {shown(row[column])}; it must be text")
    # Neither a request nor a file can hold a lone surrogate, in whatever column it stands.
    return valid_values(row)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will become of a row: a label that needs no judge (`parsed`), or questions to one."""

    row: dict
    parsed: Parsed | None = None
    asks: tuple[Ask, ...] = ()


def _plans(row: dict, pool: PoolSpec, seed: int, p_label_flip: float) -> list[_Plan]:
    # Equal outputs are a tie without asking, as in AlpacaEval, and whatever the noise would be.
    if row["output_1"] == row["output_2"]:
        return [_Plan(row, Parsed(1.5, TIE_IDENTICAL))]
    merged = random_choices.merged_instruction(row["instruction"], row["input"])
    text = random_choices.seed_text(row["instruction"], row["input"])
    # Drawn before asking, as AlpacaFarm does: a label that is noise anyway costs no request.
    noise = random_choices.noisy_preference(text, p_label_flip, seed)
    if noise is not None:
        return [_Plan(row, Parsed(float(noise), NOISE))]
    index = random_choices.pool_index(text, pool.weights, seed)
    policy = pool.judges[index].order
    asks = [
        Ask(index, order, (merged, *(row[name] for name in SHOWN[order])))
        for order in orders_of(policy, merged, seed)
    ]
    # Arena-Hard counts the two orders as two games; the other policies make one label of both.
    if policy == BOTH_TWO_GAMES:
        return [_Plan(row, None, (ask,)) for ask in asks]
    return [_Plan(row, None, tuple(asks))]


def _labelled(plan: _Plan, replies: Mapping[Ask, Reply], pool: PoolSpec) -> dict:
    if not plan.asks:
        return pair_row(plan.row, plan.parsed, [], {})
    found = [replies[ask] for ask in plan.asks]
    policy = pool.judges[plan.asks[0].pool_index].order
    parsed, columns = judged(found, [ask.order for ask in plan.asks], policy)
    return pair_row(plan.row, parsed, found, columns)
