"""Rows of one prompt with all its responses and pairs, and columns of pairs whatever a row holds."""

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Pairs, Sequences, flattened
from rlhf_jax.data.prompt_groups import group_by_prompt, pad_groups
from rlhf_jax.training.rows import labelled_rows
from rlhf_jax.training.run import encoded_rows


def sequences(rows):
    ids = [np.array([*prompt, *response], np.int32) for prompt, response in rows]
    return Sequences(*flattened(ids), np.array([len(prompt) for prompt, _ in rows], np.int32))


# Prompts (1, 1) and (2,), whose pairs are mixed in the file; response (5,) of the first stands in two pairs.
ROWS = [((1, 1), (5,), (6, 6)), ((2,), (7,), (5,)), ((1, 1), (8,), (5,)), ((1, 1), (5,), (9,))]
PAIRS = Pairs(sequences([(p, c) for p, c, _ in ROWS]), sequences([(p, r) for p, _, r in ROWS]))


def test_pairs_of_a_prompt_share_a_row_and_a_response_is_there_once():
    groups = group_by_prompt(PAIRS)
    assert (len(groups), groups.most_responses, groups.most_pairs) == (2, 4, 3)
    assert groups.pairs.tolist() == [0, 2, 3, 1] and groups.tokens.tolist() == [13, 4]
    batch = pad_groups(groups, np.array([1, 0]), (8, 4, 3), 0)
    assert batch["pairs"].tolist() == [1, 3]
    for b, group in ((0, [1]), (1, [0, 2, 3])):
        for k, pair in enumerate(group):
            for side, place in zip(PAIRS, (batch["better"][b, k], batch["worse"][b, k]), strict=True):
                ids = batch["tokens"][b, place][: batch["lengths"][b, place]]
                assert ids.tolist() == side[pair].tolist()
    # Places that hold nothing are a response and a pair all the same, of weight 0.
    assert batch["lengths"].min() > 0 and batch["better"][0, 1:].tolist() == [0, 0]


def test_a_number_of_each_pair_finds_its_place_in_any_row():
    numbers = PAIRS.chosen.tokens[PAIRS.chosen.offsets[1:] - 1].astype(np.float32)
    split = encoded_rows.Split(PAIRS, PAIRS, [])
    grouped, _ = labelled_rows.grouped_rows_of(split, 0)
    assert labelled_rows.spread(grouped, numbers).tolist() == [[5, 8, 5], [7, 0, 0]]
    for packing in ("off", "on"):
        rows, _, _ = encoded_rows.rows_of(split, ConfigDict({"packing": packing, "max_length": 5}), 0, 0)
        column = labelled_rows.spread(rows, numbers)
        batch = rows.with_columns({"number": column}).make(np.arange(rows.count), slice(None))
        if packing == "on":
            # The last token of every other document is that of a chosen response.
            said = np.take_along_axis(batch["tokens"], batch["lasts"], axis=1)[:, ::2]
            there = np.arange(said.shape[1]) < batch["documents"][:, None] // 2
            np.testing.assert_array_equal(batch["number"], np.where(there, said, 0))
        else:
            assert batch["number"].tolist() == numbers.tolist()
