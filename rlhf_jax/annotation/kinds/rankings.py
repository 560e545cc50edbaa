"""`annotate_rankings`: several outputs to a prompt in, their order out.

A ranking judge sees all outputs of a prompt at once, in a seeded order. A pairwise judge sees every two of
them; with the order both_agree that is sparse_feedback's ranking, where a label that moves with the order is
a tie.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.annotating import Annotations, annotate
from rlhf_jax.annotation.kinds.asking import Ask, Options, Reply, pool_of_kind
from rlhf_jax.annotation.kinds.pairs import annotate_pairs
from rlhf_jax.annotation.kinds.samples import beside, ended_of, ended_sides, outputs_of
from rlhf_jax.annotation.labels.judgment_rows import ranking_row
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RANKING
from rlhf_jax.data.files.tables import valid_values
from rlhf_jax.errors import UserError


def annotate_rankings(
    rows: Sequence[Mapping], pool: PoolSpec | str | Path, *, seed: int = 0, **options: object
) -> Annotations:
    """Ask the pool to order the outputs of each row.

    rows: dicts with `instruction`, optionally `input`, and `output` or `outputs`, a list of at least two
        texts; `generators` may name who wrote them. seed: of the order shown and the choice of judge.
        options: how to ask, see `asking.Options`; with pairwise judges also p_label_flip.

    Returns, from ranking judges, a row per prompt with `completions` [{output, generator, rank, ...}]: rank 1
    is best, equal ranks are a tie, `order` says which output was shown where. From pairwise judges a pairwise
    row for every two outputs, with `sample_1` and `sample_2`, their places in the row. Errors: as `annotate_pairs`.
    """
    pool = pool_of_kind(pool, PAIRWISE, RANKING)
    rows = [valid_values(row) for row in rows]
    # `pool_of_kind` has made sure that the pool has one kind.
    if pool.judges[0].kind == PAIRWISE:
        return annotate_pairs(all_pairs(rows), pool, seed=seed, **options)
    how = Options(**options)
    plans = [_plan(row, i, pool, seed) for i, row in enumerate(rows)]

    def label(replies: Mapping[Ask, Reply]) -> list[dict]:
        return [
            ranking_row(row, replies[ask].parsed, replies[ask], outputs, shown)
            for row, outputs, shown, ask in plans
        ]

    return annotate([(ask,) for *_, ask in plans], pool, seed, how, label)


def all_pairs(rows: Sequence[Mapping]) -> list[dict]:
    """Make a pair of every two outputs of each row, the earlier one as output_1."""
    pairs = []
    for i, row in enumerate(rows):
        outputs, generators = _several(row, i)
        rest, ended = beside(row), ended_of(row, len(outputs), i)
        for one, two in itertools.combinations(range(len(outputs)), 2):
            pair = rest | {"output_1": outputs[one], "output_2": outputs[two]}
            pair |= ended_sides(ended[one], ended[two])
            if generators:
                pair |= {"generator_1": generators[one], "generator_2": generators[two]}
            pairs.append(pair | {"sample_1": one, "sample_2": two})
    return pairs


def _several(row: Mapping, i: int) -> tuple[list[str], list]:
    outputs, generators = outputs_of(row, i)
    if len(outputs) < 2:
        raise UserError(f"rows[{i}]: outputs: found {len(outputs)}; a ranking needs at least two")
    return outputs, generators


def _plan(row: Mapping, i: int, pool: PoolSpec, seed: int) -> tuple[dict, list[str], list[int], Ask]:
    """The row, its outputs, which of them is shown at each place, and the question."""
    outputs, _ = _several(row, i)
    row = dict(row) | {"input": row.get("input") or "", "ended": ended_of(row, len(outputs), i)}
    merged = random_choices.merged_instruction(row["instruction"], row["input"])
    # Judges favour certain places, so the order is drawn per prompt; `ranking_row` undoes it.
    shown = random_choices.random_order(len(outputs), merged, seed)
    index = random_choices.pool_index(
        random_choices.seed_text(row["instruction"], row["input"]), pool.weights, seed
    )
    return row, outputs, shown, Ask(index, "", (merged, tuple(outputs[j] for j in shown)))
