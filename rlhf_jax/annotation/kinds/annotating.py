"""The last step of every kind of annotation: replies become rows, and rows a summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.asking import Ask, Options, Reply, answer_asks
from rlhf_jax.annotation.labels.judgment_rows import rows_summary


class Annotations(NamedTuple):
    """rows: one dict per judgment, in the order of the input. summary: counts, cost and rates of the run."""

    rows: list[dict]
    summary: dict


def annotate(
    asks_of_rows: Sequence[Sequence[Ask]],
    pool: PoolSpec,
    seed: int,
    options: Options,
    label: Callable[[Mapping[Ask, Reply]], list[dict]],
    **settings: object,
) -> Annotations:
    """Ask, turn the replies into rows with `label`, and count. A dry run gives no rows, and an estimate."""
    replies, totals = answer_asks(asks_of_rows, pool, seed, options)
    if options.dry_run:
        return Annotations([], totals)
    settings = {"pool": pool.name, "seed": seed, **settings}
    rows = label(replies)
    # In every row, so that label files of several runs can be put together.
    for row in rows:
        row.update(settings)
    return Annotations(rows, settings | rows_summary(rows) | totals)
