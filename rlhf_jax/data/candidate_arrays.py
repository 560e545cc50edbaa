"""Token rows of several scored responses to a prompt: encoded, kept together, and padded to arrays [B, N, T]."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from rlhf_jax.data.batches import Sequences, pad
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_answers
from rlhf_jax.errors import UserError


class Candidates(NamedTuple):
    """n prompts with up to N responses each.

    Attributes:
      sequences: every response with its prompt.
      places_nN: the number in `sequences` of each response; -1 where a prompt has fewer.
      scores_nN: their scores; 0 where there is none.
    """

    sequences: Sequences
    places_nN: Int64[np.ndarray, "n N"]
    scores_nN: Float32[np.ndarray, "n N"]

    def __len__(self) -> int:
        return len(self.places_nN)

    @property
    def tokens(self) -> Int64[np.ndarray, "n"]:
        """Real tokens of each prompt with its responses, the prompt counted with every one."""
        return self._lengths_nN.sum(axis=1)

    @property
    def longest(self) -> Int64[np.ndarray, "n"]:
        """Tokens of the longest response to each prompt, the prompt among them."""
        return self._lengths_nN.max(axis=1)

    @property
    def _lengths_nN(self) -> Int64[np.ndarray, "n N"]:
        lengths_nN = self.sequences.lengths.astype(np.int64)[self.places_nN]
        return np.where(self.places_nN >= 0, lengths_nN, 0)


def encode_candidates(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, template: str, max_length: int, how: Handling
) -> tuple[Candidates, Counter[str]]:
    """Encodes rows with `candidates` (see `records.candidates`); a response that does not fit leaves the others.

    A prompt whose scores do not differ has no pair, but keeps its best response: RRHF trains that, too. Such prompts
    are counted. Raises UserError where no prompt has responses with different scores.
    """
    flat = [record for row in rows for record in row["candidates"]]
    owner = np.repeat(np.arange(len(rows)), [len(row["candidates"]) for row in rows])
    found, counts, kept = encode_answers(flat, tokenizer, template, max_length, how, all_turns=False)
    groups: dict[int, list[int]] = {}
    for place, i in enumerate(kept):
        groups.setdefault(int(owner[i]), []).append(place)
    if lost := len(rows) - len(groups):
        counts["prompt without a response that is left"] += lost
    n, N = len(groups), max(map(len, groups.values()))
    places_nN, scores_nN = np.full((n, N), -1, np.int64), np.zeros((n, N), np.float32)
    for row, places in enumerate(groups.values()):
        places_nN[row, : len(places)] = places
        scores_nN[row, : len(places)] = [flat[kept[place]]["score"] for place in places]
        if len(set(scores_nN[row, : len(places)].tolist())) == 1:
            counts["no two different scores, so no pair (row kept for its best response)"] += 1
    return Candidates(found, places_nN, scores_nN), counts


def check_ranked(found: Candidates, field: str) -> None:
    """Raises UserError where no prompt has two responses with different scores."""
    low_n = np.where(found.places_nN >= 0, found.scores_nN, np.inf).min(axis=1)
    high_n = np.where(found.places_nN >= 0, found.scores_nN, -np.inf).max(axis=1)
    if not (low_n < high_n).any():
        raise UserError(
            f"{field}: none of {len(found)} prompts has two responses with different scores, so there is nothing to "
            "rank; sample several responses to each prompt, or train the only ones with configs/sft.py"
        )


def pad_candidates(
    found: Candidates, index_B: np.ndarray, N: int, T: int, pad_id: int, rows: slice | np.ndarray
) -> dict[str, np.ndarray]:
    """Makes right-padded arrays: tokens [B, N, T], lengths, prompt_lengths, scores and candidates [B, N].

    candidates: whether there is such a response. Where there is none lengths are 0 and tokens `pad_id`.
    """
    chosen = index_B[rows]
    fill = ((0, 0), (0, N - found.places_nN.shape[1]))
    places_BN = np.pad(found.places_nN[chosen], fill, constant_values=-1)
    there_BN = places_BN >= 0
    arrays = pad(found.sequences, np.where(there_BN, places_BN, 0).ravel(), T, pad_id)
    arrays = {name: x.reshape(*places_BN.shape, *x.shape[1:]) for name, x in arrays.items()}
    empty = {"tokens": pad_id}
    for name, x in arrays.items():
        x[~there_BN] = empty.get(name, 0)
    return arrays | {"scores": np.pad(found.scores_nN[chosen], fill), "candidates": there_BN}
