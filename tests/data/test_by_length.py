"""Batches of rows of about one length: each row counts once, in short arrays, and what is found comes back in order."""

import numpy as np
import pytest

from rlhf_jax.data.batches import batches_by_length, bucket
from rlhf_jax.data.joining import in_order


@pytest.mark.parametrize("n", [1, 7, 8, 61, 160])
def test_every_row_is_found_once_and_comes_back_in_order(n):
    lengths, B = np.random.default_rng(n).integers(1, 90, n), 8
    parts, places = [], 0
    for index_B, count, T in batches_by_length(lengths, B, every=2):
        assert len(index_B) == B and T % 8 == 0 and lengths[index_B].max() <= T
        assert (index_B[count:] == index_B[count - 1]).all()
        parts.append((index_B[:count], np.stack([lengths[index_B[:count]], index_B[:count]], 1)))
        places += B * T
    np.testing.assert_array_equal(in_order(parts), np.stack([lengths, np.arange(n)], 1))
    if n == 160:
        assert places < 1.3 * lengths.sum() and places < 0.7 * n * bucket(lengths.max(), 8)


def test_the_longest_come_first_and_a_few_batches_share_one_length():
    lengths = np.arange(1, 81)
    found = [T for _, _, T in batches_by_length(lengths, 4)]
    assert found == sorted(found, reverse=True) and found[0] == 80 and len({*found}) == 3  # 1 + 20 // 8
    assert {T for _, _, T in batches_by_length(lengths, 16)} == {80}
    assert len({T for _, _, T in batches_by_length(lengths, 1)}) == 4
