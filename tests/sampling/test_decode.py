"""The decode engine against full recomputation, and the promises of its randomness and its stopping."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import join, response_logprobs
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import generate

CONFIG = ModelConfig(vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ff=48)
PARAMS = nn.unbox(decoder.init(CONFIG, jax.random.key(0)))
P, R = 8, 12
LENGTHS_B = jnp.array([8, 3, 5, 1], jnp.int32)
TOKENS_BP = jnp.asarray(np.random.default_rng(0).integers(3, 61, (4, P)), jnp.int32)
ROWS_B = jnp.arange(4, dtype=jnp.int32)
KEY = jax.random.key(7)


def sample(sampling, *, eos=-1, pad=0, rows=ROWS_B, tokens=TOKENS_BP, lengths=LENGTHS_B, key=KEY, R=R):
    ends_E = jnp.atleast_1d(jnp.array(eos, jnp.int32))
    return generate(CONFIG, PARAMS, tokens, lengths, rows, key, sampling, ends_E, pad, max_new_tokens=R)


def recompute(row, steps):
    """Greedy continuation without a cache: the whole row again for every token."""
    row, logprobs = list(row), []
    for _ in range(steps):
        hidden_1TD = decoder.hidden_states(CONFIG, PARAMS, jnp.asarray([row], jnp.int32))
        logprob_V = jax.nn.log_softmax(hidden_1TD[0, -1] @ decoder.head(CONFIG, PARAMS))
        row.append(int(logprob_V.argmax()))
        logprobs.append(float(logprob_V[row[-1]]))
    return row[-steps:], logprobs


def test_greedy_decoding_with_a_cache_equals_decoding_without_one():
    out = sample(Sampling(temperature=0.0), R=6)
    for b, length in enumerate(np.asarray(LENGTHS_B)):
        tokens, logprobs = recompute(np.asarray(TOKENS_BP[b, P - length :]), 6)
        assert out.tokens_BR[b].tolist() == tokens
        np.testing.assert_allclose(out.logprobs_BR[b], logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logprobs_equal_teacher_forced_logprobs(temperature):
    out = sample(Sampling(temperature=temperature), eos=5)
    tokens_BT = join(TOKENS_BP, LENGTHS_B, out.tokens_BR, out.lengths_B, 0)
    logprobs_BR, _ = response_logprobs(
        CONFIG, PARAMS, tokens_BT, LENGTHS_B, R, temperature=temperature, chunk=5
    )
    np.testing.assert_allclose(
        np.where(out.mask_BR, logprobs_BR, 0.0), np.asarray(out.logprobs_BR), atol=2e-5
    )


def test_what_stands_in_the_padding_does_not_matter():
    garbage_BP = jnp.where(jnp.arange(P) < (P - LENGTHS_B)[:, None], 9, TOKENS_BP)
    np.testing.assert_array_equal(
        sample(Sampling()).tokens_BR, sample(Sampling(), tokens=garbage_BP).tokens_BR
    )


def test_a_sample_depends_on_its_row_number_not_on_the_batch():
    whole = sample(Sampling())
    half = sample(Sampling(), tokens=TOKENS_BP[2:], lengths=LENGTHS_B[2:], rows=ROWS_B[2:])
    np.testing.assert_array_equal(whole.tokens_BR[2:], half.tokens_BR)


def test_samples_of_a_prompt_share_its_prefill_and_are_those_of_prompts_that_stand_several_times():
    together = generate(
        *(CONFIG, PARAMS, TOKENS_BP, LENGTHS_B, ROWS_B + 5, KEY, Sampling(0.9), jnp.array([5, 6]), 0),
        max_new_tokens=R,
        samples=3,
    )
    repeated = [jnp.repeat(x, 3, axis=0) for x in (TOKENS_BP, LENGTHS_B)]
    alone = sample(
        Sampling(0.9), eos=(5, 6), tokens=repeated[0], lengths=repeated[1], rows=jnp.arange(12) + 15
    )
    assert together.tokens_BR.shape == (12, R) and len({*map(tuple, together.tokens_BR.tolist())}) == 12
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_samples_are_the_same_in_parts_of_which_each_has_its_own_cache(samples):
    given = (CONFIG, PARAMS, TOKENS_BP, LENGTHS_B, ROWS_B + 5, KEY, Sampling(0.9), jnp.array([5, 6]), 0)
    whole, parts = (
        generate(*given, max_new_tokens=R, samples=samples, microbatches=parts) for parts in (1, 2)
    )
    assert len({*map(int, whole.lengths_B)}) > 1  # so that rows in another order would show
    for a, b in zip(whole[:-1], parts[:-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert int(whole.steps) < int(parts.steps) <= 2 * R

    def temporaries(parts):
        lowered = generate.lower(*given, max_new_tokens=500, samples=samples, microbatches=parts)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2) < 0.6 * temporaries(1)


def test_keys_and_rows_give_different_samples():
    same_prompt = {"tokens": jnp.tile(TOKENS_BP[:1], (4, 1)), "lengths": jnp.full(4, P, jnp.int32)}
    out = sample(Sampling(), **same_prompt)
    assert len({tuple(row) for row in out.tokens_BR.tolist()}) == 4
    other = sample(Sampling(), **same_prompt, key=jax.random.key(8))
    assert out.tokens_BR.tolist() != other.tokens_BR.tolist()


def test_every_step_has_noise_of_its_own():
    """All logits are 0 here, so that a token hangs on the noise alone."""
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    out = generate(
        CONFIG, nothing, TOKENS_BP, LENGTHS_B, ROWS_B, KEY, Sampling(), jnp.array([-1]), 0, max_new_tokens=R
    )
    for row in out.tokens_BR.tolist():
        assert len(set(row)) > R // 2
    np.testing.assert_allclose(out.logprobs_BR, -np.log(CONFIG.vocab_size), rtol=1e-5)


def test_the_end_token_is_in_the_mask_and_ends_the_row():
    greedy = sample(Sampling(temperature=0.0))
    eos = int(greedy.tokens_BR[0, 4])
    first = greedy.tokens_BR[0].tolist().index(eos)
    out = sample(Sampling(temperature=0.0), eos=eos, pad=60)
    assert out.lengths_B[0] == first + 1
    assert bool(out.ended_B[0])
    assert out.tokens_BR[0, first] == eos
    assert set(out.tokens_BR[0, first + 1 :].tolist()) <= {60}
    assert out.mask_BR[0].tolist() == [r <= first for r in range(R)]
    assert float(jnp.abs(out.logprobs_BR[0, first + 1 :]).sum()) == 0.0


def test_any_of_several_end_tokens_ends_a_row_and_stays_in_it():
    greedy = sample(Sampling(temperature=0.0)).tokens_BR.tolist()
    ends = (greedy[0][4], greedy[1][2], greedy[2][7])
    out = sample(Sampling(temperature=0.0), eos=ends, pad=60)
    for row, tokens, length, ended in zip(greedy, out.tokens_BR, out.lengths_B, out.ended_B, strict=True):
        stops = [i for i, token in enumerate(row) if token in ends]
        assert (bool(ended), int(length)) == ((True, stops[0] + 1) if stops else (False, R))
        assert tokens[:length].tolist() == row[:length]
    assert int(out.ended_B.sum()) >= 3


def test_pad_may_equal_eos_and_eos_may_be_zero():
    greedy = sample(Sampling(temperature=0.0))
    eos = int(greedy.tokens_BR[0, 0])
    out = sample(Sampling(temperature=0.0), eos=eos, pad=eos)
    assert out.lengths_B[0] == 1
    assert sample(Sampling(temperature=0.0), eos=0, pad=0).mask_BR.any()


def test_the_loop_stops_when_every_row_has_ended():
    tokens, lengths = TOKENS_BP[:1], LENGTHS_B[:1]
    greedy = sample(Sampling(temperature=0.0), tokens=tokens, lengths=lengths, rows=ROWS_B[:1])
    out = sample(
        Sampling(temperature=0.0),
        tokens=tokens,
        lengths=lengths,
        rows=ROWS_B[:1],
        eos=int(greedy.tokens_BR[0, 2]),
    )
    assert out.steps == out.lengths_B[0] < R


def test_one_program_serves_every_temperature_truncation_and_end_token():
    before = generate._cache_size()
    for sampling, eos in [
        (Sampling(0.0), 1),
        (Sampling(0.7), 2),
        (Sampling(1.0, 0.9, 0), 3),
        (Sampling(1.0, 1.0, 5), 4),
    ]:
        sample(sampling, eos=eos, R=7)
    assert generate._cache_size() == before + 1
