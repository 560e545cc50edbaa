"""Groups of sampled and provided responses: which are candidates, what their scores are, and what is counted."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.rollout.experience import Readings, RolloutSettings
from rlhf_jax.rollout.response_groups import make_candidates, with_provided
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation

SETTINGS = RolloutSettings(1.0, "k1", -3.0, 8)


def candidates(scores, *, tokens=None, lengths=None, ended=None, readable=None, apart=None, **changes):
    """Of three responses to each of two prompts, the third of which was provided; one token of its own each."""
    yes = np.ones(6, bool)
    tokens = np.arange(6) if tokens is None else np.array(tokens)
    tokens = jnp.asarray(np.stack([np.full(6, 9), tokens], 1), jnp.int32)
    ended, readable = (jnp.asarray(yes if x is None else x) for x in (ended, readable))
    lengths = jnp.ones(6, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    mask = jnp.arange(1) < lengths[:, None]
    responses = Generation(tokens[:, 1:], jnp.zeros((6, 1)), mask, lengths, ended, jnp.int32(1))
    apart = jnp.zeros(6) if apart is None else jnp.asarray(apart, jnp.float32)
    both = {"policy": -1 + apart[:, None], "reference": -jnp.ones((6, 1))}
    read = Readings(tokens, jnp.ones(6, jnp.int32), mask, both, jnp.zeros((6, 1)), {})
    scored = Scored(jnp.asarray(scores, jnp.float32), readable, {"judge": jnp.arange(6.0)})
    how = {"samples": 2, "prompts": 2, "kl_coef": 0.0} | changes
    return make_candidates(read, responses, scored, SETTINGS, **how)


def test_a_row_is_a_prompt_with_all_of_its_responses():
    rows, metrics = candidates([1, 3, 2, -1, -2, 5])
    assert rows["tokens"].tolist() == [[[9, 0], [9, 1], [9, 2]], [[9, 3], [9, 4], [9, 5]]]
    assert rows["scores"].tolist() == [[1, 3, 2], [-1, -2, 5]] and rows["candidates"].all()
    assert (rows["lengths"] == 2).all() and (rows["prompt_lengths"] == 1).all()
    assert rows["weight"].tolist() == [1, 1]
    # Of the rollout is told what was sampled.
    assert metrics["objective/scores"] == np.mean([1, 3, -1, -2])
    assert metrics["rewards/judge"] == np.mean([0, 1, 3, 4])
    assert metrics["candidates/best_scores"] == 4 and metrics["candidates/provided_best"] == 0.5
    assert metrics["candidates/ranked"] == 1 and metrics["candidates/left_out"] == 0
    assert metrics["num_tokens"] == 12


def test_scores_are_less_the_kl_of_the_response():
    apart = [0.5, 2, 0, -1, 0, 3]
    rows, metrics = candidates([1, 3, 2, -1, -2, 5], apart=apart, kl_coef=2.0)
    assert rows["scores"].tolist() == [[0, -1, 2], [1, -2, -1]]
    assert metrics["objective/scores"] == 0.25 and metrics["objective/kl"] == np.mean([0.5, 2, -1, 0])
    assert metrics["objective/rlhf_reward"] == 0.25 - 2 * np.mean([0.5, 2, -1, 0])
    assert metrics["candidates/best_scores"] == 1.5


def test_a_text_is_one_candidate_whatever_its_scores():
    rows, metrics = candidates([1, 2, 3, 1, 1, 1], tokens=[7, 7, 5, 6, 7, 6])
    assert rows["candidates"].tolist() == [[True, False, True], [True, True, False]]
    assert metrics["candidates/repeated"] == pytest.approx(2 / 6)
    assert metrics["candidates/ranked"] == 0.5  # equal scores rank nothing
    # Cut off before an end that looks like a pad, it is another text.
    rows, _ = candidates([1, 2, 3, 1, 2, 3], tokens=[7] * 6, lengths=[1, 0, 1, 2, 1, 2])
    assert rows["candidates"].tolist() == [[True, False, False], [True, True, False]]
    # One that nobody could score does not stand in the way of the same text with a score.
    rows, _ = candidates([1, 2, 3, 1, 1, 1], tokens=[7, 7, 5, 6, 7, 6], readable=np.arange(6) > 0)
    assert rows["candidates"][0].tolist() == [False, True, True]


def test_one_without_end_is_bad_and_one_without_score_or_token_is_none():
    rows, metrics = candidates(
        [9, np.nan, 1, 5, 6, 7],
        ended=np.array([0, 1, 1, 0, 0, 1], bool),
        readable=np.array([1, 0, 1, 1, 0, 1], bool),
        lengths=[1, 1, 1, 1, 1, 0],
    )
    assert rows["candidates"].tolist() == [[True, False, True], [True, True, False]]
    assert rows["scores"].tolist() == [[-3, 0, 1], [-3, -3, 0]]
    # Nothing ended with a score, so nothing is to be imitated.
    assert rows["weight"].tolist() == [1, 0] and metrics["candidates/left_out"] == 0.5
    assert metrics["candidates/best_scores"] == 1 and metrics["candidates/provided_best"] == 1
    assert metrics["candidates/ranked"] == 0.5


def test_provided_responses_stand_behind_those_that_were_sampled():
    lengths = jnp.array([2, 1, 2, 2], jnp.int32)
    mask = jnp.arange(2) < lengths[:, None]
    tokens = jnp.arange(8, dtype=jnp.int32).reshape(4, 2)
    sampled = Generation(
        tokens, jnp.full((4, 2), -1.0), mask, lengths, jnp.array([1, 1, 0, 1], bool), jnp.int32(2)
    )
    batch = {
        "provided_tokens": jnp.array([[[50, 51]], [[60, 61]]], jnp.int32),
        "provided_lengths": jnp.array([[1], [0]], jnp.int32),
        "provided_ended": jnp.array([[True], [False]]),
    }
    found = with_provided(sampled, batch)
    assert found.tokens_BR.tolist() == [[0, 1], [2, 3], [50, 51], [4, 5], [6, 7], [60, 61]]
    assert found.lengths_B.tolist() == [2, 1, 1, 2, 2, 0]
    assert found.ended_B.tolist() == [True, True, True, False, True, False]
    assert found.mask_BR.sum(1).tolist() == [2, 1, 1, 2, 2, 0]
    assert found.logprobs_BR[:, 0].tolist() == [-1, -1, 0, -1, -1, 0] and found.steps == 2
    assert all(a.dtype == b.dtype for a, b in zip(found, sampled, strict=True))
