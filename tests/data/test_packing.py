"""Packing: first fit against its definition, and arrays that hold every document once, whole and in one place."""

import numpy as np
import pytest

from rlhf_jax.data.batches import Pairs, Sequences, best_fit, few_sizes, first_fit, pack, pad_packs


def documents(n, longest, seed=0, trained=False):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(1, 90, offsets[-1]).astype(np.int32)
    mask = rng.random(offsets[-1]) < 0.6 if trained else None
    return Sequences(tokens, offsets, rng.integers(1, lengths).astype(np.int32), mask)


def by_definition(lengths, capacity):
    room, rows = [], []
    for length in lengths:
        row = next((i for i, left in enumerate(room) if left >= length), len(room))
        room += [capacity] * (row == len(room))
        room[row] -= length
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_first_fit_is_the_first_row_with_room(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 41, rng.integers(1, 400)).tolist()
    assert first_fit(lengths, 40).tolist() == by_definition(lengths, 40)


def test_an_item_longer_than_a_row_is_refused():
    assert first_fit([], 8).tolist() == []
    assert first_fit([8, 8], 8).tolist() == [0, 1]
    with pytest.raises(ValueError, match="9 tokens does not fit rows of 8"):
        first_fit([3, 9], 8)


def fullest_first(lengths, capacity):
    """Best fit, decreasing, by its definition."""
    room, rows = [], [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row, left in enumerate(room) if left >= lengths[i]]
        rows[i] = min(fitting, key=lambda row: room[row], default=len(room))
        room += [capacity] * (rows[i] == len(room))
        room[rows[i]] -= lengths[i]
    return rows


def test_best_fit_is_the_fullest_row_with_room_for_every_batch_by_itself():
    lengths_SB = np.random.default_rng(0).integers(1, 41, (50, 12))
    rows_SB, needed_S = best_fit(lengths_SB, 40)
    assert rows_SB.tolist() == [fullest_first(lengths.tolist(), 40) for lengths in lengths_SB]
    assert needed_S.tolist() == [len({*rows}) for rows in rows_SB.tolist()]
    np.testing.assert_array_equal(best_fit(lengths_SB[7:8], 40)[0][0], rows_SB[7])


def test_few_sizes_waste_least():
    needed_S = np.array([3] * 50 + [4] * 40 + [5] * 30 + [6] * 5 + [9])
    assert few_sizes(needed_S, 1) == (9,)
    # In arrays of 5 and 9 the batches waste 2 x 50 + 40 and 3 x 5 rows: less than with any other number beside 9.
    assert few_sizes(needed_S, 2) == (5, 9)
    assert few_sizes(needed_S, 9) == (3, 4, 5, 6, 9)


@pytest.mark.parametrize("pairs", [False, True])
def test_every_document_is_in_one_row_and_no_row_overflows(pairs):
    found = Pairs(documents(101, 30, 1), documents(101, 30, 2)) if pairs else documents(101, 30, 1)
    packs = pack(found, 64, seed=3)
    assert sorted(packs.members.tolist()) == list(range(202 if pairs else 101))
    assert packs.tokens.max() <= 64 and packs.tokens.sum() == packs.documents.lengths.sum()
    assert packs.filled > 0.8 and packs.most_documents >= 4
    if pairs:
        chosen, rejected = packs.members[::2], packs.members[1::2]
        assert (packs.offsets % 2 == 0).all() and (chosen % 2 == 0).all() and (rejected == chosen + 1).all()
        for i in (0, 57, 100):
            np.testing.assert_array_equal(packs.documents[2 * i], found.chosen[i])
            np.testing.assert_array_equal(packs.documents[2 * i + 1], found.rejected[i])


def test_rows_depend_on_lengths_and_seed_alone():
    found = documents(80, 20)
    one, two, other = pack(found, 40, 7), pack(found, 40, 7), pack(found, 40, 8)
    assert one.members.tolist() == two.members.tolist() != other.members.tolist()


def test_filled_is_the_share_of_places_that_hold_a_token():
    three = Sequences(np.ones(9, np.int32), np.array([0, 3, 6, 9]), np.ones(3, np.int32))
    assert pack(three, 8, seed=0).filled == 9 / 16  # two documents in one row, one in the other


@pytest.mark.parametrize("trained", [False, True])
def test_arrays_hold_the_documents(trained):
    found = documents(60, 20, trained=trained)
    packs = pack(found, 48, seed=0)
    R, S = packs.most_targets + 3, packs.most_documents + 1
    arrays = pad_packs(packs, np.arange(len(packs)), R, S, pad_id=99)
    seen = []
    for b in range(len(packs)):
        segments, count = arrays["segments"][b], arrays["documents"][b]
        assert (arrays["tokens"][b][segments == 0] == 99).all()
        for s, i in enumerate(packs.members[packs.offsets[b] : packs.offsets[b + 1]], 1):
            columns = np.flatnonzero(segments == s)
            assert np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns)))
            np.testing.assert_array_equal(arrays["tokens"][b, columns], found[i])
            np.testing.assert_array_equal(arrays["positions"][b, columns], np.arange(len(columns)))
            assert arrays["lasts"][b, s - 1] == columns[-1]
            targets = arrays["targets"][b][arrays["owners"][b] == s] - columns[0]
            wanted = np.arange(found.prompt_lengths[i], len(found[i]))
            if trained:
                mask = found.trained[found.offsets[i] : found.offsets[i + 1]]
                wanted = wanted[mask[wanted]]
            np.testing.assert_array_equal(targets, wanted)
            seen.append(i)
        assert count == segments.max() and (arrays["lasts"][b, count:] == 0).all()
    assert sorted(seen) == list(range(60))
    part = pad_packs(packs, np.arange(len(packs)), R, S, 99, rows=slice(2, 5))
    for name, x in part.items():
        np.testing.assert_array_equal(x, arrays[name][2:5])


def test_the_first_token_of_a_document_is_never_trained():
    """Nothing predicts it; in a packed row its neighbour would be the end of another document."""
    found = Sequences(np.arange(1, 9, dtype=np.int32), np.array([0, 4, 8]), np.zeros(2, np.int32))
    arrays = pad_packs(pack(found, 8, 0), np.array([0]), 8, 2, 0)
    assert arrays["targets"][0, arrays["owners"][0] > 0].tolist() == [1, 2, 3, 5, 6, 7]
