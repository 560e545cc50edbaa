"""Judgments of several outputs to a prompt: `annotate_ratings` gives each a number, `annotate_rankings` their order.

A ranking judge sees all outputs of a prompt at once, in a seeded order. A pairwise judge sees every two of them; with
the order both_agree that is sparse_feedback's ranking, where a label that moves with the order is a tie.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.asking import Annotations, Ask, Options, Reply, annotate, pool_of_kind
from rlhf_jax.annotation.kinds.pairs import annotate_pairs, beside, ended_of, ended_sides, outputs_of
from rlhf_jax.annotation.labels.judgment_rows import ranking_row, rating_row
from rlhf_jax.annotation.labels.labels_file import check_columns
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RANKING, RATING
from rlhf_jax.data.files.tables import valid_values
from rlhf_jax.errors import UserError


def annotate_ratings(
    rows: Sequence[Mapping], pool: PoolSpec | str | Path, *, seed: int = 0, **options: object
) -> Annotations:
    """Ask the pool how good each output is.

    rows: dicts with `instruction`, optionally `input`, and `output` or `outputs`: a text or a list of them;
        other columns are kept. A list becomes a row per output, `sample_id` counting them, and `generators`
        of the same length their `generator`.
    seed: of the choice among the pool's judges: one judge rates all outputs of a prompt, so that its scale is
        the same for them. options: how to ask, see `asking.Options`.

    Returns rows with `rating`, None where there is none, and `aspects` [{aspect, rating}] where the judge
    rates several criteria; and a summary. Errors: as `annotate_pairs`.
    """
    pool = pool_of_kind(pool, RATING)
    how = Options(**options)
    single = [one for i, row in enumerate(map(valid_values, rows)) for one in _exploded(row, i)]
    check_columns(rows, RATING)
    asks = []
    for row in single:
        merged = random_choices.merged_instruction(row["instruction"], row["input"])
        # By the prompt alone: judges use a scale differently, and outputs are compared within a prompt.
        text = random_choices.seed_text(row["instruction"], row["input"])
        asks.append(Ask(random_choices.pool_index(text, pool.weights, seed), "", (merged, row["output"])))

    def label(replies: Mapping[Ask, Reply]) -> list[dict]:
        found = [replies[ask] for ask in asks]
        return [rating_row(row, reply.parsed, reply) for row, reply in zip(single, found, strict=True)]

    return annotate([(ask,) for ask in asks], pool, seed, how, label)


def _exploded(row: Mapping, i: int) -> list[dict]:
    """One row per output, in order."""
    outputs, generators = outputs_of(row, i)
    rest, ended = beside(row), ended_of(row, len(outputs), i)
    said = [{} if x is None else {"ended": x} for x in ended]
    # A row with one output stays the row it was: there is no other sample to tell it from.
    if len(outputs) == 1 and not generators:
        return [rest | {"output": outputs[0]} | said[0]]
    made = [rest | {"output": output, "sample_id": k} | said[k] for k, output in enumerate(outputs)]
    return (
        [one | {"generator": name} for one, name in zip(made, generators, strict=True)]
        if generators
        else made
    )


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
    check_columns(rows, pool.judges[0].kind)
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
