"""The rows of methods that read more than demonstrations and pairs: ratings, scored candidates, single responses,
and responses that stand beside what a policy samples.

What all rows share, and how files are read and divided, is in `training.run.encoded_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Sequences, bucket, flattened, pad
from rlhf_jax.data.candidate_arrays import Candidates, check_ranked, encode_candidates, pad_candidates
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.joining import end_to_end
from rlhf_jax.data.prompt_groups import PromptGroups, group_by_prompt, pad_groups
from rlhf_jax.data.records.candidates import read_candidates
from rlhf_jax.data.records.label_columns import read_rated
from rlhf_jax.data.records.left_out import counts_text
from rlhf_jax.data.records.records import read_pairs
from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.data.records.single_responses import responses_of_side
from rlhf_jax.data.records.unpaired import read_unpaired
from rlhf_jax.data.templates import handling_of, render
from rlhf_jax.data.tokenization import NO_LIMIT, encode_answers, encode_sft
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.training.run.encoded_rows import (
    Rows,
    Split,
    aligned_split,
    array_sizes,
    kept_or_made,
    kept_split,
    say,
    split_of,
    two_files,
)


def rated(data: ConfigDict, tokenizer: Any, seed: int, made_by: str, scale: Mapping[str, Any]) -> Split:
    """Reads rated responses, as Sequences, with the records of those that are kept; scale: as `read_rated` takes it."""
    read = partial(read_rated, **scale)
    return kept_split(read, encode_answers, data, tokenizer, seed, made_by, joined=aligned_split)


def single_responses(data: ConfigDict, tokenizers: dict[str, Any], seed: int, made_by: str) -> Split:
    """Reads labelled pairs as demonstrations of their responses, as Sequences.

    tokenizers: for each side that is wanted, chosen or rejected, the one that its rows are encoded with. What is held
    out is whole pairs, which share no prompt with training.
    """

    def make() -> Split:
        files, found = two_files(read_pairs, data, seed, made_by), []
        for pairs, name in zip(files, ("train", "eval"), strict=True):
            encoded, records = [], []
            for side, tokenizer in tokenizers.items():
                rows, left_out = responses_of_side(pairs, side)
                sequences, dropped = encode_sft(
                    rows, tokenizer, data.template, data.max_length, handling_of(data)
                )
                say(
                    f"data.{name}: {len(sequences)} {side} responses of {len(pairs)} pairs",
                    left_out + dropped,
                )
                encoded.append(sequences)
                records += rows
            found.append((end_to_end(encoded), records))
        return Split(found[0][0], found[1][0], found[1][1])

    # The sides that are wanted are named with their tokenizers.
    sides = partial(responses_of_side, side=",".join(tokenizers))
    return kept_or_made(make, data, tuple(tokenizers.values()), seed, read_pairs, sides, encode_sft)


def candidates(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads prompts with several scored responses, as Candidates; the files of data.train may be several."""
    read = partial(read_candidates, query=data.query)
    split = kept_split(read, encode_candidates, data, tokenizer, seed, made_by, joined=split_of)
    check_ranked(split.train, "data.train")
    return split


def unpaired(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads single responses, as Sequences; the records beside them say which are `liked`. Of chats the last turn."""
    read = partial(read_unpaired, desirable_from=data.desirable_from)
    encode = partial(encode_answers, all_turns=False)
    return kept_split(read, encode, data, tokenizer, seed, made_by, joined=aligned_split)


def spread(rows: Rows, x_n: np.ndarray) -> np.ndarray:
    """A number of every document or pair as a column of rows: [count], or [count, places] where they hold several."""
    if rows.place or not rows.layout:
        return x_n
    members, offsets, (_, places, *_) = rows.layout
    # Both sides of a pair are documents of the layout, chosen first, and the pair has one number.
    unit = 2 if rows.pairs else 1
    column = np.zeros((rows.count, places // unit), x_n.dtype)
    for row in range(rows.count):
        mine = members[offsets[row] : offsets[row + 1] : unit] // unit
        column[row, : len(mine)] = x_n[mine]
    return column


def grouped_rows_of(split: Split, pad_id: int) -> tuple[Rows, Rows]:
    """Makes rows of one prompt each, with all its responses and pairs: (training rows, evaluation rows)."""
    groups = [group_by_prompt(found) for found in (split.train, split.eval)]
    sizes = (
        bucket(max(int(g.responses.lengths.max()) for g in groups), 8),
        max(g.most_responses for g in groups),
        max(g.most_pairs for g in groups),
    )
    for name, g in zip(("train", "eval"), groups, strict=True):
        if startup.is_main():
            print(
                f"data.{name}: {len(g)} prompts with {len(g.pairs)} pairs of {len(g.responses)} responses; "
                f"rows of {sizes[1]} responses, {len(g.responses) / (len(g) * sizes[1]):.1%} filled",
                flush=True,
            )

    def rows(g: PromptGroups) -> Rows:
        layout = (g.pairs, g.offsets, np.array([sizes[0], sizes[2]]))
        make = partial(pad_groups, g)
        return Rows(
            len(g),
            g.tokens,
            lambda index_B, rows: make(index_B, sizes, pad_id, rows),
            layout=layout,
            lengths=np.maximum.reduceat(g.responses.lengths, g.first[:-1]),
        )

    return rows(groups[0]), rows(groups[1])


def candidate_rows(split: Split, pad_id: int) -> tuple[Rows, Rows, int]:
    """As `rows_of` for prompts with several responses, which stay together: a row is a prompt with all of its own."""
    T, R = array_sizes(split.train.sequences, split.eval.sequences)
    # One number of places for both files, so that step and evaluation compile once.
    N = max(found.places_nN.shape[1] for found in (split.train, split.eval))

    def rows(found: Candidates) -> Rows:
        make = partial(pad_candidates, found)
        return Rows(
            len(found),
            found.tokens,
            lambda index_B, rows: make(index_B, N, T, pad_id, rows),
            lengths=found.longest,
        )

    return rows(split.train), rows(split.eval), R


class Provided(NamedTuple):
    """Responses to n prompts that stand in a file, of up to R tokens, at most M to one prompt.

    Attributes:
      responses: their tokens, the end token included; they stand behind no prompt.
      places_nM: the number in `responses` of each; -1 where a prompt has fewer.
      ends: the tokens that end a response.
    """

    responses: Sequences
    places_nM: Int64[np.ndarray, "n M"]
    ends: tuple[int, ...]

    def arrays(
        self, index_B: np.ndarray, rows: slice | np.ndarray, *, R: int, pad_id: int
    ) -> dict[str, np.ndarray]:
        """provided_tokens [B, M, R], provided_lengths and provided_ended [B, M]; the length of none is 0."""
        places_BM = self.places_nM[index_B[rows]]
        there_BM = places_BM >= 0
        found = pad(self.responses, np.where(there_BM, places_BM, 0).ravel(), R, pad_id)
        tokens_BMR = found["tokens"].reshape(*places_BM.shape, R)
        lengths_BM = np.where(there_BM, found["lengths"].reshape(places_BM.shape), 0)
        last_BM = np.take_along_axis(tokens_BMR, np.maximum(lengths_BM - 1, 0)[..., None], axis=2)[..., 0]
        return {
            "provided_tokens": np.where(there_BM[..., None], tokens_BMR, pad_id).astype(np.int32),
            "provided_lengths": lengths_BM.astype(np.int32),
            "provided_ended": there_BM & np.isin(last_BM, self.ends),
        }


def provided(
    data: ConfigDict, tokenizer: Any, records: Sequence[dict], ends: tuple[int, ...], R: int, made_by: str
) -> Provided:
    """Reads the responses of `data.provided` to prompts whose records these are, as a policy would have sampled them.

    A prompt is found by its text. Counted and left out: responses to other prompts, those of more than R tokens, and
    what one prompt has twice. Raises UserError where none is left.
    """
    rows, counts = read_responses(data.provided, made_by=made_by, chat=data.template == CHAT)
    # As `hold_out` tells prompts apart: the same one may stand in different columns of different files.
    number = {render(record, "alpaca"): i for i, record in enumerate(records)}
    flat, owners = [], []
    for record in (record for row in rows for record in row.records if isinstance(record, dict)):
        owner = number.get(render(record, "alpaca"))
        if owner is None:
            counts["response to a prompt that is not trained on"] += 1
            continue
        flat.append(record)
        owners.append(owner)
    groups: dict[int, list[int]] = {}
    responses: list[np.ndarray] = []
    if flat:
        found, left_out, kept = encode_answers(
            flat, tokenizer, data.template, NO_LIMIT, handling_of(data), all_turns=False
        )
        counts.update(left_out)
        for i, row in enumerate(kept):
            # Behind the end a chat template may write more, which no policy samples.
            ids = _up_to_end(found[i][found.prompt_lengths[i] :], ends)
            mine = groups.setdefault(owners[row], [])
            if reason := _left_out(ids, [responses[place] for place in mine], R):
                counts[reason] += 1
                continue
            mine.append(len(responses))
            responses.append(ids)
    say(
        f"data.provided: {len(responses)} responses to {sum(map(bool, groups.values()))} of {len(records)} prompts "
        f"read from {data.provided}",
        counts,
    )
    if not responses:
        raise UserError(
            f"data.provided: {data.provided} has no response that can be used to any of the {len(records)} prompts of "
            f"data.train ({counts_text(counts)}); give a file with responses to them, or nothing"
        )
    places_nM = np.full((len(records), max(map(len, groups.values()))), -1, np.int64)
    for owner, places in groups.items():
        places_nM[owner, : len(places)] = places
    behind_nothing = np.zeros(len(responses), np.int32)
    return Provided(Sequences(*flattened(responses), behind_nothing), places_nM, ends)


def _up_to_end(ids: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
    """The tokens of a response up to its first end token, or all where there is none."""
    found = np.flatnonzero(np.isin(ids, ends))
    return ids[: found[0] + 1] if len(found) else ids


def _left_out(ids: np.ndarray, others: list[np.ndarray], R: int) -> str:
    """Why a response to a prompt does not stand beside these others; "" where it does."""
    if len(ids) > R:
        return "response of more than rollout.max_new_tokens tokens"
    if not len(ids):
        return "response without a token"
    again = any(np.array_equal(ids, other) for other in others)
    return "same response to the same prompt again" if again else ""
