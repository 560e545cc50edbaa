"""Rows that have ended leave the batch: samples stay what they are, and the work follows the mean length."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.sampling import compaction, decode
from rlhf_jax.sampling.choose import Sampling

CONFIG = ModelConfig(vocab_size=61, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
PARAMS = nn.unbox(decoder.init(CONFIG, jax.random.key(0)))
B, P, R = 32, 6, 40
ENDS = jnp.array([5, 6, 7, 8])


def sample(monkeypatch, stages=compaction.stages):
    """(what is sampled, the rows of every decode step)."""
    rng = np.random.default_rng(0)
    lengths_B = jnp.asarray(rng.integers(1, P + 1, B), jnp.int32)
    tokens_BP = jnp.asarray(rng.integers(9, 61, (B, P)), jnp.int32)
    sizes, one_step = [], decode.decode_tokens

    def counted(config, params, layers, tokens_B1, *rest):
        jax.debug.callback(sizes.append, tokens_B1.shape[0])
        return one_step(config, params, layers, tokens_B1, *rest)

    monkeypatch.setattr(decode, "decode_tokens", counted)
    monkeypatch.setattr(compaction, "stages", stages)
    # A program of its own, which is traced with what was put in.
    generate = jax.jit(partial(decode.generate.__wrapped__, CONFIG, max_new_tokens=R))
    found = generate(PARAMS, tokens_BP, lengths_B, jnp.arange(B), jax.random.key(3), Sampling(), ENDS, 0)
    jax.effects_barrier()
    monkeypatch.undo()
    return found, [int(size) for size in sizes]


def test_samples_are_those_of_the_whole_batch_and_the_tail_does_not_hold_it(monkeypatch):
    found, sizes = sample(monkeypatch)
    plain, all_rows = sample(monkeypatch, lambda B, R, groups, layers: (B,))
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    np.testing.assert_array_equal(found.tokens_BR, plain.tokens_BR)
    lengths_B = np.asarray(found.lengths_B)
    assert all_rows == [B] * int(found.steps) and found.steps == lengths_B.max()
    # The rows that each step still has, rounded up to 32, 16 or 8.
    alive = [int((lengths_B > t).sum()) for t in range(int(found.steps))]
    assert sizes == [next(size for size in (8, 16, 32) if n <= size) for n in alive]
    assert set(sizes) == {8, 16, 32} and sum(sizes) < 0.7 * sum(all_rows)


@pytest.mark.parametrize(
    ("B", "R", "groups", "sizes"),
    [
        (64, 128, 1, (64, 32, 16, 8)),
        (512, 128, 1, (512, 256, 128, 64)),  # three further ones at most
        (64, 28, 1, (64, 32)),  # short responses end before more would pay
        (64, 15, 1, (64,)),
        (16, 128, 1, (16, 8)),  # eight rows at least
        (24, 128, 1, (24, 12)),
        (8, 128, 1, (8,)),
        (64, 128, 4, (64, 32)),  # on every device
        (64, 128, 8, (64,)),
        (36, 128, 4, (36,)),  # nine rows on each
    ],
)
def test_the_rows_of_each_stage(B, R, groups, sizes):
    assert compaction.stages(B, R, groups, 2) == sizes


def test_models_of_many_layers_have_few_stages():
    """Each stage is compiled with all layers."""
    found = [len(compaction.stages(512, 128, 1, layers)) - 1 for layers in (8, 12, 24, 25, 80)]
    assert found == [3, 2, 1, 1, 1]


def test_rows_are_taken_and_put_back_within_their_group():
    done_B = jnp.array([True, False, True, False, True, True, True, False])
    places_Gb = compaction.alive_first(done_B, 2, 4)
    assert places_Gb.tolist() == [[1, 3], [3, 0]]  # the second has but one left
    assert compaction.most_alive(done_B, 2) == 4 and compaction.most_alive(done_B, 1) == 3
    x_B2 = jnp.arange(16).reshape(8, 2)
    part_b2 = compaction.taken(x_B2, places_Gb)
    assert part_b2[:, 0].tolist() == [2, 6, 14, 8]
    back_B2 = compaction.put_back(x_B2, -part_b2, places_Gb)
    assert back_B2[:, 0].tolist() == [0, -2, 4, -6, -8, 10, 12, -14]
