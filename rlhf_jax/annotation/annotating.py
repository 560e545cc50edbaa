"""What all kinds of annotation end with: replies become rows, and rows a summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.annotation.asking import Ask, Options, Reply, answer_asks
from rlhf_jax.annotation.rows import summary
from rlhf_jax.annotation.specs import PoolSpec


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
    """Ask, let `label` make the rows of the replies, and count. A dry run has no rows and an estimate."""
    replies, totals = answer_asks(asks_of_rows, pool, seed, options)
    if options.dry_run:
        return Annotations([], totals)
    settings = {"pool": pool.name, "seed": seed, **settings}
    rows = label(replies)
    for row in rows:
        row.update(settings)
    return Annotations(rows, settings | summary(rows) | totals)
