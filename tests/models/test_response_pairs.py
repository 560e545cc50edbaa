"""What losses ask of a model, against a full softmax of one unpadded row after the other."""

import jax
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.batches import pad
from rlhf_jax.data.tokenization import Pairs, Sequences
from rlhf_jax.models import decoder
from rlhf_jax.models.response_pairs import pair_logprobs, pair_scores, pair_weight
from rlhf_jax.models.responses import row_logprobs
from rlhf_jax.training.run.encoded_rows import pad_pairs

CONFIG = tiny_farm.model_config()
ROWS, T = 5, 16


@pytest.fixture(scope="module")
def params():
    """(of a language model, of a reward model)"""
    return [on_device(tiny_farm.random_params(scalar=scalar, seed=3 + scalar)) for scalar in (False, True)]


def sequences(seed, *, turns=False):
    """turns: whether some tokens behind the prompt are not trained, as in a conversation."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, T + 1, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(0, CONFIG.vocab_size, offsets[-1]).astype(np.int32)
    prompts = rng.integers(1, lengths - 1).astype(np.int32)
    if not turns:
        return Sequences(tokens, offsets, prompts)
    trained = np.concatenate([np.arange(n) >= p for n, p in zip(lengths, prompts, strict=True)])
    return Sequences(tokens, offsets, prompts, trained & (rng.random(offsets[-1]) < 0.6))


def on_device(batch):
    return jax.tree.map(jax.numpy.asarray, batch)


_outputs = jax.jit(lambda params, tokens: decoder.hidden_states(CONFIG, params, tokens))


def hidden(params, row):
    """[T, D] of one row. What is filled up stands behind it, where causal attention never looks."""
    filled = np.zeros((1, T), np.int32)
    filled[0, : len(row)] = row
    return np.float64(_outputs(params, filled))[0, : len(row)]


def alone(params, found, i):
    """(log-probs, entropies) of the response tokens of row i, each by the position before it."""
    logits = hidden(params, found[i]) @ np.float64(params["head"])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = np.arange(found.prompt_lengths[i], len(found[i]))
    return logp[at - 1, found[i][at]], -(np.exp(logp) * logp).sum(-1)[at - 1]


def trained(found, i):
    n = len(found[i]) - found.prompt_lengths[i]
    return np.ones(n, bool) if found.trained is None else found.trained[: found.offsets[i + 1]][-n:]


@pytest.mark.parametrize("turns", [False, True])
def test_of_rows_the_trained_tokens_count_and_of_those_that_fill_up_none(params, turns):
    found, R = sequences(0, turns=turns), T
    weight = np.float32([1, 1, 0, 1, 1])
    batch = on_device(pad(found, np.arange(ROWS), T, 7) | {"weight": weight})
    logprobs, entropies, mask = map(np.asarray, row_logprobs(CONFIG, params[0], batch, R, 4))
    for i in range(ROWS):
        wanted, wanted_entropy = alone(params[0], found, i)
        n = len(wanted)
        assert mask[i].tolist() == [*(trained(found, i) & (weight[i] > 0)), *[False] * (R - n)]
        np.testing.assert_allclose(logprobs[i, :n], wanted, atol=1e-4)
        np.testing.assert_allclose(entropies[i, :n], wanted_entropy, atol=1e-4)


def test_of_pairs_each_side_is_its_own(params):
    language, reward = params
    found = Pairs(sequences(1), sequences(2))
    batch = on_device(pad_pairs(found, np.arange(ROWS), T, 7, slice(None)))
    sums = pair_logprobs(CONFIG, T, 4)(language, batch)
    scores = pair_scores(CONFIG, reward, batch)
    for k, side in enumerate(found):
        for i in range(ROWS):
            assert float(sums[k][i]) == pytest.approx(alone(language, side, i)[0].sum(), abs=1e-3)
            last = hidden(reward, side[i])[-1] @ np.float64(reward["score"])
            assert float(scores[k][i]) == pytest.approx(last, abs=1e-4)


def test_pairs_weigh_what_the_batch_says_and_1_where_it_says_nothing():
    batch = on_device(pad_pairs(Pairs(sequences(1), sequences(2)), np.arange(ROWS), T, 7, slice(None)))
    assert pair_weight(batch).tolist() == [1] * ROWS
    assert pair_weight(batch | on_device({"weight": np.float32([1, 0, 1, 1, 0])})).tolist() == [
        1,
        0,
        1,
        1,
        0,
    ]
