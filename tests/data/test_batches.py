"""Index-addressed batches: complete, disjoint, a function of (seed, step); padding on either side."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.data import batches
from rlhf_jax.data.batches import Prompts, Sequences, bucket, eval_batches, pad, pad_prompts, row_indices
from rlhf_jax.errors import UserError


def ragged(lengths, prompt_lengths=None):
    """Sequence i holds the tokens 100*i, 100*i+1, ..."""
    tokens = np.concatenate([100 * i + np.arange(n) for i, n in enumerate(lengths)]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if prompt_lengths is None:
        return Prompts(tokens, offsets)
    return Sequences(tokens, offsets, np.array(prompt_lengths, np.int32))


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (7, 3), (8, 4), (10, 7), (3, 8), (1, 5), (64, 64)])
def test_every_row_comes_once_per_epoch(n, batch_size):
    steps = 5 * n  # five times n batches: whole epochs
    stream = np.concatenate([row_indices(step, batch_size, n, seed=3) for step in range(steps)])
    assert stream.shape == (steps * batch_size,)
    for epoch in stream.reshape(-1, n):
        assert sorted(epoch) == list(range(n))


def test_rows_depend_on_seed_and_step_alone():
    forward = [row_indices(step, 6, 50, seed=1) for step in range(40)]
    batches.permutation.cache_clear()
    for step in reversed(range(40)):
        np.testing.assert_array_equal(row_indices(step, 6, 50, seed=1), forward[step])
    other_seed = [row_indices(step, 6, 50, seed=2) for step in range(40)]
    assert not np.array_equal(forward, other_seed)
    epochs = np.concatenate(forward)[:200].reshape(4, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_pinned():
    """A resumed run must see the same order with any numpy: these numbers may never change."""
    assert row_indices(0, 8, 8, seed=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert row_indices(10**6, 4, 1000, seed=17).tolist() == [809, 407, 774, 260]


def test_writing_into_a_batch_does_not_spoil_the_next():
    first = row_indices(0, 4, 4, seed=0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(row_indices(0, 4, 4, seed=0), kept)


def test_hosts_split_the_batch():
    whole = row_indices(2, 8, 30, seed=0)
    sequences = ragged([3] * 30, [1] * 30)
    full = pad(sequences, whole, 4, 0)
    parts = [pad(sequences, whole, 4, 0, rows=slice(4 * host, 4 * host + 4)) for host in range(2)]
    for name, array in full.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    crossed = pad(sequences, whole, 4, 0, rows=np.array([0, 1, 4, 5]))
    np.testing.assert_array_equal(crossed["tokens"], full["tokens"][[0, 1, 4, 5]])
    prompts = [pad_prompts(sequences, whole, 4, 0, rows) for rows in (slice(None), slice(0, 4), slice(4, 8))]
    for name, array in prompts[0].items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in prompts[1:]]), array)


def test_chosen_rows_keep_their_own_prompts_and_masks():
    found = dataclasses.replace(ragged([3, 1, 4], [1, 0, 2]), trained=np.arange(8) % 3 == 0)
    chosen = found.select(np.array([2, 0]))
    assert [row.tolist() for row in (chosen[0], chosen[1])] == [[200, 201, 202, 203], [0, 1, 2]]
    assert chosen.prompt_lengths.tolist() == [2, 1]
    assert chosen.trained.tolist() == [False, False, True, False, True, False, False]


def test_nothing_to_train_on():
    with pytest.raises(UserError, match="data:"):
        row_indices(0, 4, 0, seed=0)


def test_right_padding():
    batch = pad(ragged([3, 1, 4], [1, 0, 2]), np.array([2, 0, 1]), 5, pad_id=9)
    assert batch["tokens"].tolist() == [[200, 201, 202, 203, 9], [0, 1, 2, 9, 9], [100, 9, 9, 9, 9]]
    assert batch["lengths"].tolist() == [4, 3, 1]
    assert batch["prompt_lengths"].tolist() == [2, 1, 0]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_left_padding():
    batch = pad_prompts(ragged([3, 1, 4]), np.array([2, 0, 1]), 5, pad_id=9)
    assert batch["tokens"].tolist() == [[9, 200, 201, 202, 203], [9, 9, 0, 1, 2], [9, 9, 9, 9, 100]]
    assert batch["lengths"].tolist() == [4, 3, 1]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_lengths_around_the_limit():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, 9, size=6)
        prompt_lengths = np.array([rng.integers(0, n) for n in lengths])
        sequences = ragged(lengths, prompt_lengths)
        indices = rng.permutation(6)
        width = int(lengths.max()) + int(rng.integers(0, 3))
        right, left = pad(sequences, indices, width, 7), pad_prompts(sequences, indices, width, 7)
        assert right["tokens"].shape == left["tokens"].shape == (6, width)
        for row, i in enumerate(indices):
            n = lengths[i]
            assert right["tokens"][row].tolist() == sequences[i].tolist() + [7] * (width - n)
            assert left["tokens"][row].tolist() == [7] * (width - n) + sequences[i].tolist()
            assert right["prompt_lengths"][row] == prompt_lengths[i]
        for make in (pad, pad_prompts):
            with pytest.raises(ValueError, match="does not fit"):
                make(sequences, indices, int(lengths.max()) - 1, 7)


@pytest.mark.parametrize(
    ("length", "multiple", "expected"), [(1, 16, 16), (16, 16, 16), (17, 16, 32), (0, 8, 8)]
)
def test_bucket(length, multiple, expected):
    assert bucket(length, multiple) == expected


@pytest.mark.parametrize(("n", "batch_size"), [(7, 8), (8, 8), (9, 8), (1, 1), (23, 4)])
def test_evaluation_counts_every_row_once(n, batch_size):
    counts = np.zeros(n)
    for indices, weight in eval_batches(n, batch_size):
        assert indices.shape == weight.shape == (batch_size,)
        np.add.at(counts, indices, weight)
    assert counts.tolist() == [1] * n
    halves = [slice(0, batch_size // 2), slice(batch_size // 2, batch_size)]
    shared = np.zeros(n)
    for rows in halves:
        for indices, weight in eval_batches(n, batch_size, rows):
            np.add.at(shared, indices, weight)
    assert shared.tolist() == [1] * n


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="no rows to evaluate"):
        next(eval_batches(0, 4))
