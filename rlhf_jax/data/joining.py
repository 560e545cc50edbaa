"""Puts parts together: sets of sequences behind one another, and what was found of batches in the order of rows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from rlhf_jax.data.batches import Sequences, flattened


def end_to_end(parts: Sequence[Sequences]) -> Sequences:
    """Puts sets of sequences behind one another."""
    tokens, offsets = flattened([part[i] for part in parts for i in range(len(part))])
    trained = None
    # A mask is only carried where not all that follows a prompt is trained; made here for a set without one.
    if any(part.trained is not None for part in parts):
        trained = np.concatenate([_trained(part) for part in parts])
    return Sequences(tokens, offsets, np.concatenate([part.prompt_lengths for part in parts]), trained)


def _trained(part: Sequences) -> Bool[np.ndarray, "N"]:
    if part.trained is not None:
        return part.trained
    places = np.arange(len(part.tokens)) - np.repeat(part.offsets[:-1], part.lengths)
    return places >= np.repeat(part.prompt_lengths, part.lengths)


def in_order(
    parts: list[tuple[np.ndarray, Shaped[np.ndarray, "b *x"]]],
) -> Shaped[np.ndarray, "n *x"]:
    """Puts what was found of each batch, given with its rows' numbers, back into the order of the rows."""
    numbers = np.concatenate([index for index, _ in parts])
    return np.concatenate([found for _, found in parts])[np.argsort(numbers, kind="stable")]
