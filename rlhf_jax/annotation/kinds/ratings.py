"""`annotate_ratings`: outputs in, each with a rating on the judge's scale out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.annotating import Annotations, annotate
from rlhf_jax.annotation.kinds.asking import Ask, Options, Reply, pool_of_kind
from rlhf_jax.annotation.kinds.samples import beside, ended_of, outputs_of
from rlhf_jax.annotation.labels.judgment_rows import rating_row
from rlhf_jax.annotation.parsing.contracts import RATING
from rlhf_jax.data.files.tables import valid_values


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
    if len(outputs) == 1 and not generators:
        return [rest | {"output": outputs[0]} | said[0]]
    made = [rest | {"output": output, "sample_id": k} | said[k] for k, output in enumerate(outputs)]
    return (
        [one | {"generator": name} for one, name in zip(made, generators, strict=True)]
        if generators
        else made
    )
