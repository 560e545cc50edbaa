"""Pairs by their prompt: a row is one prompt with all its responses, and the pairs among them.

So all comparisons of a prompt are in one batch, and each response goes through the model once however many pairs it
stands in. Ouyang et al. (2022, section 3.5) found that a reward model overfits where they are shuffled apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, Integer

from rlhf_jax.data.batches import ALL_ROWS, Pairs, Rows, Sequences, flattened, pad


@dataclass(frozen=True)
class PromptGroups:
    """Attributes:
    responses: all different responses with their prompts, those of a prompt together.
    first: group i has the responses first[i]:first[i + 1].
    pairs, offsets: group i has the pairs pairs[offsets[i]:offsets[i + 1]], as numbers of the pairs it was made of.
    sides: of every pair in that order, the places of its better and its worse response within the group.
    """

    responses: Sequences
    first: Int64[np.ndarray, M]
    pairs: Int64[np.ndarray, n]
    offsets: Int64[np.ndarray, M]
    sides: Int64[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def most_responses(self) -> int:
        """The number of responses of the prompt that has most."""
        return int(np.diff(self.first).max())

    @property
    def most_pairs(self) -> int:
        """The number of pairs of the prompt that has most."""
        return int(np.diff(self.offsets).max())

    @cached_property
    def tokens(self) -> Int64[np.ndarray, groups]:
        """The number of real tokens of each row."""
        return np.add.reduceat(self.responses.lengths.astype(np.int64), self.first[:-1])


def group_by_prompt(found: Pairs) -> PromptGroups:
    """Puts the pairs of equal prompts together; groups, responses and pairs stay in the order of the file."""
    groups: dict[bytes, dict] = {}
    for i in range(len(found)):
        prompt = found.chosen[i][: found.chosen.prompt_lengths[i]]
        group = groups.setdefault(prompt.tobytes(), {"rows": {}, "pairs": [], "sides": []})
        # Equal tokens get equal scores, so a response that stands in several pairs is computed once.
        places = [
            group["rows"].setdefault(
                side[i].tobytes(), (len(group["rows"]), side[i], side.prompt_lengths[i])
            )[0]
            for side in found
        ]
        group["pairs"].append(i)
        group["sides"].append(places)
    rows = [row for group in groups.values() for row in group["rows"].values()]
    sequences = Sequences(
        *flattened([ids for _, ids, _ in rows]), np.array([length for *_, length in rows], np.int32)
    )
    return PromptGroups(
        sequences,
        _offsets([len(group["rows"]) for group in groups.values()]),
        np.concatenate([group["pairs"] for group in groups.values()]).astype(np.int64),
        _offsets([len(group["pairs"]) for group in groups.values()]),
        np.concatenate([group["sides"] for group in groups.values()]).astype(np.int64),
    )


def pad_groups(
    groups: PromptGroups,
    indices: Integer[np.ndarray, B],
    sizes: tuple[int, int, int],
    pad_id: int,
    rows: Rows = ALL_ROWS,
) -> dict[str, np.ndarray]:
    """Makes training arrays of the chosen groups: tokens [B, K, T], lengths [B, K], better, worse [B, S], pairs [B].

    sizes: (T, K, S), at least the longest row, `most_responses` and `most_pairs`; fixed over a run. Places that hold
    no response repeat the group's first one, and those that hold no pair name it twice; `pairs` says how many count.
    """
    T, K, S = sizes
    chosen = np.asarray(indices)[rows]
    column_K, count = np.arange(K), np.diff(groups.first)[chosen]
    which = groups.first[chosen][:, None] + np.where(column_K < count[:, None], column_K, 0)
    arrays = pad(groups.responses, which.reshape(-1), T, pad_id)
    responses = {"tokens": arrays["tokens"].reshape(-1, K, T), "lengths": arrays["lengths"].reshape(-1, K)}
    return responses | compared(groups, chosen, S)


def compared(groups: PromptGroups, chosen: Integer[np.ndarray, B], S: int) -> dict[str, np.ndarray]:
    """Of `pad_groups` what says which responses of these groups are compared: better, worse and pairs."""
    column_S, pairs = np.arange(S), np.diff(groups.offsets)[chosen]
    there = column_S < pairs[:, None]
    at = np.where(there, groups.offsets[chosen][:, None] + column_S, 0)
    sides = np.where(there[..., None], groups.sides[at], 0).astype(np.int32)
    return {"better": sides[..., 0], "worse": sides[..., 1], "pairs": pairs.astype(np.int32)}


def _offsets(counts: list[int]) -> Int64[np.ndarray, M]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
