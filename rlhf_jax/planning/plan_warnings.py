"""What a plan warns of: messages that could be fewer or half as large, attention without its kernel, whole logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from rlhf_jax.planning.hlo_costs import Collective
from rlhf_jax.planning.hlo_text import Computation, Runs, arrays_of

# A message below this is no news, whatever it is of.
_SMALL = 1e5
_KERNELS = ("tpu_custom_call", "fmha", "cudnn")


class ModelSizes(NamedTuple):
    """What of a run's models tells its weights from other arrays.

    Attributes:
      weights: elements of each matrix, one layer of those that are stacked.
      layers: how many layers its models have.
      vocabularies: tokens of its models.
    """

    weights: frozenset[int]
    layers: frozenset[int]
    vocabularies: frozenset[int]


def model_sizes(params: Any) -> ModelSizes:
    """Reads the sizes off a tree of parameters, of one model or several by name."""
    weights, layers, vocabularies = set(), set(), set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [getattr(key, "key", "") for key in path]
        stacked = "layers" in names
        shape = leaf.shape[1:] if stacked else leaf.shape
        if stacked:
            layers.add(leaf.shape[0])
        if len(shape) > 1:
            weights.add(math.prod(shape))
        if names[-1] == "embed":
            vocabularies.add(leaf.shape[0])
    return ModelSizes(frozenset(weights), frozenset(layers), frozenset(vocabularies))


def sending_warnings(
    collectives: Iterable[Collective], sizes: ModelSizes, microbatches: int, fsdp: int, tensor: int
) -> list[str]:
    """Weights that are sent in a loop over something else than layers, and sums that every chip keeps whole."""
    looped: dict[tuple[str, str, int], float] = {}
    whole: dict[str, tuple[int, float]] = {}
    for x in collectives:
        if not _is_weight(x, sizes, tensor) or x.moved < _SMALL:
            continue
        others = [trips for trips in x.runs.loops if trips > 1 and trips not in sizes.layers]
        if others:
            key = (x.kind, "+".join(x.axes), math.prod(others))
            looped[key] = looped.get(key, 0.0) + x.total
        if x.kind == "all-reduce" and "fsdp" in x.axes and fsdp > 1:
            times, moved = whole.get("+".join(x.axes), (0, 0.0))
            whole["+".join(x.axes)] = (times + x.runs.times, moved + x.total)
    found = []
    for (kind, axes, trips), total in sorted(looped.items(), key=lambda row: -row[1]):
        why = " (micro-batches; fewer send less)" if trips == microbatches else ""
        found.append(
            f"weights in an {kind} over {axes} {trips} times each in a loop{why}: {total / 1e9:.2f} GB a chip"
        )
    # The compiler for TPU goes over to whole sums where a weight is cut into many parts.
    hint = "; mesh.fsdp=8, with the other devices in mesh.data, may give that" if fsdp > 8 else ""
    for axes, (times, total) in whole.items():
        found.append(
            f"{times} all-reduces of whole weights over {axes}, {total / 1e9:.2f} GB a chip, where a reduce-scatter "
            f"sends half{hint}"
        )
    return found


def attention_warning(kernels: Mapping[str, int], platform: str, wanted: str) -> list[str]:
    """Where `auto` found no kernel for the chip."""
    if platform == "cpu" or wanted != "auto" or any(k in name for name in kernels for k in _KERNELS):
        return []
    name = "splash" if platform == "tpu" else "cudnn"
    return [f"attention is XLA's, not the chip's kernel; --config.model.attention={name} says why"]


def logits_warning(
    parts: Mapping[str, Computation],
    runs: Mapping[str, Runs],
    sizes: ModelSizes,
    fsdp: int,
    tensor: int,
    rows: int,
    T: int,
) -> list[str]:
    """An array with the whole vocabulary at every position of a chip's rows. rows, T: of a micro-batch on one chip.

    An array of the head's size, or a part of it, is taken for the head.
    """
    widths = set(sizes.vocabularies) | {V // tensor for V in sizes.vocabularies}
    largest, dims = 0, ()
    for part in parts.values():
        for operation in part.operations.values() if part.name in runs else ():
            for size, shape in arrays_of(operation.shape):
                vocabulary = next((n for n in shape if n in widths), 0)
                if vocabulary and math.prod(shape) // vocabulary == rows * T and size > largest:
                    largest, dims = size, shape
    if not largest or any(
        math.prod(dims) * ways in sizes.weights for ways in (1, fsdp, tensor, fsdp * tensor)
    ):
        return []
    return [
        f"an array of all logits, {list(dims)}, {largest / 2**30:.2f} GiB; a smaller logprob_chunk avoids it"
    ]


def _is_weight(collective: Collective, sizes: ModelSizes, tensor: int) -> bool:
    found = [math.prod(dims) for dims in collective.arrays]
    return any(n in sizes.weights or n * tensor in sizes.weights for n in found)
