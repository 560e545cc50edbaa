"""data.packing=auto: every step has the rows that it has without packing, in fewer array rows, and learns the same."""

import dataclasses

import jax
import numpy as np
import observed
import pytest
import tiny_farm
from tiny_losses import CONFIG

from rlhf_jax.data.batches import Sequences, row_indices
from rlhf_jax.methods import sft
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.run import encoded_rows
from rlhf_jax.training.run.encoded_rows import Split

B, EPOCHS, SEED = 8, 4.0, 5
SHORT = dataclasses.replace(CONFIG, positions="learned", max_positions=39)


def sequences(n, longest=40, shortest=5):
    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest + 1, n)
    lengths[0] = longest
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(3, CONFIG.vocab_size, offsets[-1]).astype(np.int32)
    return Sequences(tokens, offsets, rng.integers(1, lengths).astype(np.int32))


def rows_of(found, packing="auto", *, model=CONFIG, **changes):
    page = tiny_farm.settings("sft", "farm", seed=SEED, **{"batch_size": B, "epochs": EPOCHS} | changes)
    page.data.packing = packing
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return page, *encoded_rows.rows_of(Split(found, found, []), page.data, 0, SEED, auto=(page, model))


@pytest.fixture
def three_sizes(monkeypatch):
    monkeypatch.setattr(encoded_rows, "_STEPS", 10)


def test_a_step_has_its_rows_in_fewer_array_rows_and_the_same_loss_and_gradient(three_sizes, capsys):
    found = sequences(50)
    page, train, held, R = rows_of(found)
    _, plain, plain_held, _ = rows_of(found, "off")
    sizes, T = train.sizes(page, make_mesh(1, 1, 1)), plain.make(np.arange(B), slice(None))["tokens"].shape[1]
    assert len(sizes) == 3 and train.count == plain.count == 50
    np.testing.assert_array_equal(train.tokens, plain.tokens)
    loss_fn = jax.jit(
        jax.value_and_grad(lambda p, x: _sums(sft.sft_loss_fn(CONFIG, R, 16)(p, x)), has_aux=True)
    )
    params, places, tokens, seen = tiny_farm.random_params(scalar=False, seed=1), 0, 0, set()
    for step in range(25):
        index_B = row_indices(step, B, 50, SEED)
        packed, alone = train.make(index_B, slice(0, B)), plain.make(index_B, slice(0, B))
        places, tokens = places + packed["tokens"].size, tokens + int(train.tokens[index_B].sum())
        assert packed["documents"].sum() == B and len(packed["tokens"]) in sizes
        assert sorted(packed["tokens"][packed["segments"] > 0]) == sorted(
            np.concatenate([found[i] for i in index_B])
        )
        if len(packed["tokens"]) not in seen:  # a program for each number of array rows
            seen.add(len(packed["tokens"]))
            for one, other in zip(
                *(jax.tree.leaves(loss_fn(params, x)) for x in (packed, alone)), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert seen == {*sizes} and train.share == pytest.approx(
        places / 25 / sizes[-1] / packed["tokens"].shape[1]
    )
    assert places < 0.75 * 25 * B * T
    said = capsys.readouterr().out
    assert (
        f"{tokens / places:.0%} full; each step has its 8 rows in {' or '.join(map(str, sizes))} of these"
        in said
    )
    # Held-out rows are packed without regard to steps; no document is missing.
    assert held.tokens.sum() == plain_held.tokens.sum() and held.batch == sizes[-1]


def _sums(means):
    return means["loss"].sum, means


def test_devices_and_microbatches_divide_the_array_rows():
    page, train, *_ = rows_of(sequences(200, shortest=2), microbatches=4, batch_size=32)
    (size,) = train.sizes(page, make_mesh(1, 1, 1))
    assert size % 4 == 0 and len(train.make(np.arange(32), slice(0, 32))["tokens"]) == size < 32
    page.batch_size, page.microbatches = 4, 1  # as advice about memory has it
    (smaller,) = train.sizes(page, make_mesh(1, 1, 1))
    assert size / 8 <= smaller < size / 2


@pytest.mark.parametrize(
    ("found", "model", "why"),
    [
        (sequences(50, 40, 38), CONFIG, "would save too little"),
        (sequences(50), SHORT, "is not for the attention"),
    ],
)
def test_where_it_is_no_use_rows_stay_alone(found, model, why, capsys):
    _, train, held, _ = rows_of(found, model=model)
    assert (
        train.sizes is None and "segments" not in train.make(np.arange(B), slice(0, B)) and held.count == 50
    )
    assert f"packing: off, it {why}" in capsys.readouterr().out


def test_a_run_is_the_same_packed_or_not_and_compiles_before_its_first_step(
    three_sizes, farm, tmp_path, monkeypatch
):
    monkeypatch.setattr(encoded_rows, "_WORTH", 1.0)  # the farm's rows are 76 % full
    rows = {}
    for packing in ("auto", "off"):
        changes = {"data.packing": packing, "epochs": 1.6, "batch_size": 16, "log_every": 1, "eval_every": 10}
        config = tiny_farm.settings("sft", farm, **changes)
        _, compiles = observed.run("sft", config, tmp_path / packing)
        rows[packing] = tiny_farm.rows(tmp_path / packing)
        # Of the second iteration and those after it; evaluations and checkpoints have programs of their own.
        assert len({compiles.at[i] for i in range(1, 9)}) == 1
        assert compiles.steps[0].cache_size() == (3 if packing == "auto" else 1)
    assert len(rows["auto"]) == len(rows["off"])
    for one, other in zip(rows["auto"], rows["off"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
