"""The rows of methods that read more than demonstrations and pairs: ratings, scored candidates, single responses.

What all rows share, and how files are read and divided, is in `training.run.encoded_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, end_to_end
from rlhf_jax.data.candidate_arrays import Candidates, check_ranked, encode_candidates, pad_candidates
from rlhf_jax.data.prompt_groups import PromptGroups, group_by_prompt, pad_groups
from rlhf_jax.data.records.candidates import read_candidates
from rlhf_jax.data.records.label_columns import read_rated
from rlhf_jax.data.records.records import read_pairs
from rlhf_jax.data.records.single_responses import responses_of_side
from rlhf_jax.data.records.unpaired import read_unpaired
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import encode_answers, encode_sft
from rlhf_jax.parallel import startup
from rlhf_jax.training.run.encoded_rows import (
    Rows,
    Split,
    aligned_split,
    array_sizes,
    say,
    split_of,
    two_files,
)


def rated(data: ConfigDict, tokenizer: Any, seed: int, made_by: str, scale: Mapping[str, Any]) -> Split:
    """Reads rated responses, as Sequences, with the records of those that are kept; scale: as `read_rated` takes it."""
    read = partial(read_rated, **scale)
    return aligned_split(*two_files(read, data, seed, made_by), encode_answers, tokenizer, data)


def single_responses(data: ConfigDict, tokenizers: dict[str, Any], seed: int, made_by: str) -> Split:
    """Reads labelled pairs as demonstrations of their responses, as Sequences.

    tokenizers: for each side that is wanted, chosen or rejected, the one that its rows are encoded with. What is held
    out is whole pairs, which share no prompt with training.
    """
    files, found = two_files(read_pairs, data, seed, made_by), []
    for pairs, name in zip(files, ("train", "eval"), strict=True):
        encoded, records = [], []
        for side, tokenizer in tokenizers.items():
            rows, left_out = responses_of_side(pairs, side)
            sequences, dropped = encode_sft(
                rows, tokenizer, data.template, data.max_length, handling_of(data)
            )
            say(f"data.{name}: {len(sequences)} {side} responses of {len(pairs)} pairs", left_out + dropped)
            encoded.append(sequences)
            records += rows
        found.append((end_to_end(encoded), records))
    return Split(found[0][0], found[1][0], found[1][1])


def candidates(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads prompts with several scored responses, as Candidates; the files of data.train may be several."""
    read = partial(read_candidates, query=data.query)
    split = split_of(*two_files(read, data, seed, made_by), encode_candidates, tokenizer, data)
    check_ranked(split.train, "data.train")
    return split


def unpaired(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads single responses, as Sequences; the records beside them say which are `liked`. Of chats the last turn."""
    read = partial(read_unpaired, desirable_from=data.desirable_from)
    encode = partial(encode_answers, all_turns=False)
    return aligned_split(*two_files(read, data, seed, made_by), encode, tokenizer, data)


def spread(rows: Rows, x_n: np.ndarray) -> np.ndarray:
    """A number of every document or pair as a column of rows: [count], or [count, places] where they hold several."""
    if not rows.layout:
        return x_n
    members, offsets, (_, places) = rows.layout
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
        return Rows(
            len(g), g.tokens, lambda index_B, rows: pad_groups(g, index_B, sizes, pad_id, rows), layout=layout
        )

    return rows(groups[0]), rows(groups[1])


def candidate_rows(split: Split, pad_id: int) -> tuple[Rows, Rows, int]:
    """As `rows_of` for prompts with several responses, which stay together: a row is a prompt with all of its own."""
    T, R = array_sizes(split.train.sequences, split.eval.sequences)
    # One number of places for both files, so that step and evaluation compile once.
    N = max(found.places_nN.shape[1] for found in (split.train, split.eval))

    def rows(found: Candidates) -> Rows:
        make = partial(pad_candidates, found)
        return Rows(len(found), found.tokens, lambda index_B, rows: make(index_B, N, T, pad_id, rows))

    return rows(split.train), rows(split.eval), R
