"""The loss and the other means of a method on held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
from jaxtyping import PyTree

from rlhf_jax.objectives.reduce import Mean, add, value


def make_evaluator(
    loss_fn: Callable[[PyTree, PyTree], dict[str, Mean]],
) -> Callable[[PyTree, Iterable[PyTree]], dict[str, float]]:
    """Compiles loss_fn, without gradient, into `evaluate(params, batches) -> {name: mean}`.

    Sums and weights are added over the batches and divided once, so a last batch filled up with rows of
    weight 0 counts as what it holds. All batches have the same shapes. No batches: an empty dict.
    """

    @jax.jit
    def totals_after(totals: dict[str, Mean] | None, params: PyTree, batch: PyTree) -> dict[str, Mean]:
        means = loss_fn(params, batch)
        return means if totals is None else {name: add(totals[name], mean) for name, mean in means.items()}

    def evaluate(params: PyTree, batches: Iterable[PyTree]) -> dict[str, float]:
        totals = None
        for batch in batches:
            totals = totals_after(totals, params, batch)
        return {name: float(value(mean)) for name, mean in (totals or {}).items()}

    return evaluate
