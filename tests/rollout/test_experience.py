"""join, window and make_experience, recomputed row by row in plain NumPy."""

import dataclasses
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rlhf_jax.data.tokens.scored_text import EOS as AT_EOS
from rlhf_jax.data.tokens.scored_text import Closing
from rlhf_jax.methods.ppo import AdvantageSettings, make_experience
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model, RewardModel, model_scores
from rlhf_jax.models.responses import join, response_mask, window
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.rollout import text_rewards
from rlhf_jax.rollout.experience import RolloutSettings, final_scores, read_rollout
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation, generate

CONFIG = ModelConfig(vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
EOS = PAD = 0  # the hardest choice: an id of 0 that is also the pad
P, R = 5, 6
PROMPT_LENGTHS = np.array([5, 3, 1, 1], np.int32)
# Where the end of sequence stands in each response: first, in the middle, last, nowhere.
ENDS = [0, 2, R - 1, None]
MEAN = 0.5  # of demonstrations, which is subtracted from rewards


INIT = jax.jit(lambda key, scalar: nn.unbox(decoder.init(CONFIG, key, scalar=scalar)), static_argnums=1)


def random_params(seed, *, scalar=False):
    params = INIT(jax.random.key(seed), scalar)
    return params | {"embed": params["embed"] * 50}


class Networks(NamedTuple):
    policy: dict
    value: dict
    reference: dict
    reward: dict


MODELS = Networks(
    random_params(0), random_params(1, scalar=True), random_params(2), random_params(3, scalar=True)
)


def prompt_arrays(extra=0):
    """Left-padded prompts; some of their tokens are EOS."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (4, P)).astype(np.int32)
    tokens[0, 2] = tokens[3, -1] = EOS
    tokens[np.arange(P) < P - PROMPT_LENGTHS[:, None]] = PAD
    return np.concatenate([np.full((4, extra), PAD, np.int32), tokens], axis=1)


def sample_arrays():
    """Responses as the sampler would return them, log-probs off by a known amount."""
    tokens = np.random.default_rng(1).integers(1, CONFIG.vocab_size, (4, R)).astype(np.int32)
    lengths = np.array([R if end is None else end + 1 for end in ENDS], np.int32)
    for row, end in enumerate(ENDS):
        if end is not None:
            tokens[row, end:] = PAD  # EOS itself, too
    mask = np.arange(R) < lengths[:, None]
    logprobs = np.where(mask, -1.0, 0.0).astype(np.float32)
    return Generation(
        tokens, logprobs, mask, lengths, np.array([end is not None for end in ENDS]), np.int32(R)
    )


SAMPLED = jax.tree.map(jnp.array, sample_arrays())
LENGTHS, ROWS = jnp.array(PROMPT_LENGTHS), jnp.arange(4, dtype=jnp.int32)


def whole_rows():
    """Prompt and response of each row, without any padding."""
    prompts, sampled = prompt_arrays(), sample_arrays()
    return [
        np.concatenate([prompts[b, P - PROMPT_LENGTHS[b] :], sampled.tokens_BR[b, : sampled.lengths_B[b]]])
        for b in range(4)
    ]


def test_join_moves_prompt_and_response_together():
    joined = join(jnp.array(prompt_arrays()), LENGTHS, SAMPLED.tokens_BR, SAMPLED.lengths_B, 7)
    assert joined.shape == (4, P + R)
    for row, wanted in zip(np.asarray(joined), whole_rows(), strict=True):
        assert row[: len(wanted)].tolist() == wanted.tolist()
        assert set(row[len(wanted) :].tolist()) <= {7}


@pytest.mark.parametrize("trailing", [(), (3,)])
@pytest.mark.parametrize("offset", [-1, 0])
def test_window_starts_at_each_prompts_end(trailing, offset):
    x = np.random.default_rng(2).normal(size=(4, P + R, *trailing)).astype(np.float32)
    found = np.asarray(window(jnp.array(x), LENGTHS, R, offset=offset))
    for b, length in enumerate(PROMPT_LENGTHS):
        for r in range(R):
            assert np.array_equal(found[b, r], x[b, min(length + offset + r, P + R - 1)]), (b, r)


def test_response_mask_counts_the_end_of_sequence():
    assert np.array_equal(response_mask(LENGTHS + SAMPLED.lengths_B, LENGTHS, R), sample_arrays().mask_BR)


def test_rewards_are_read_at_the_last_token_less_the_mean_of_demonstrations():
    rows = whole_rows()
    lengths = jnp.array([len(row) for row in rows], jnp.int32)
    score = jax.jit(model_scores)
    for fill in (PAD, 5):  # what stands after the end is of no account
        padded = np.full((4, P + R + 2), fill, np.int32)
        for b, row in enumerate(rows):
            padded[b, : len(row)] = row
        found = score(Model(CONFIG, MODELS.reward), jnp.array(padded), lengths, MEAN)
        assert found == pytest.approx([alone(MODELS.reward, row)[-1] - MEAN for row in rows], rel=1e-4)


@partial(jax.jit, static_argnums=0)
def outputs(scalar, params, tokens_T):
    hidden_TD = decoder.hidden_states(CONFIG, params, tokens_T[None])[0]
    return decoder.scalars(hidden_TD, params) if scalar else hidden_TD @ decoder.head(CONFIG, params)


def alone(params, row):
    """What a model says of one unpadded row: a number per position, or log-probs [T, V] at TEMPERATURE."""
    found = np.asarray(outputs("score" in params, params, row), np.float64)
    if "score" in params:
        return found
    logits = found / TEMPERATURE
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


TEMPERATURE, KL_COEF, GAMMA, LAM, PENALTY = 0.7, 0.3, 0.9, 0.8, -2.0


@cache
def expected(whiten_rewards):
    """Everything make_experience finds, one row and one token at a time."""
    rows, sampled = whole_rows(), sample_arrays()
    logprobs, reference, values, rewards, scores, kls = [], [], [], [], [], []
    for b, row in enumerate(rows):
        start, n = PROMPT_LENGTHS[b], sampled.lengths_B[b]
        at = [(start - 1 + r, row[start + r]) for r in range(n)]  # (position that predicts, token)
        logprobs.append(np.array([alone(MODELS.policy, row)[t, token] for t, token in at]))
        reference.append(np.array([alone(MODELS.reference, row)[t, token] for t, token in at]))
        values.append(np.array([alone(MODELS.value, row)[t] for t, _ in at]))
        scores.append(alone(MODELS.reward, row)[-1] - MEAN if ENDS[b] is not None else PENALTY)
        kl = logprobs[b] - reference[b]
        kls.append(kl.sum())
        rewards.append(-KL_COEF * kl)
        rewards[b][-1] += scores[b]
    if whiten_rewards:
        every = np.concatenate(rewards)
        rewards = [(x - every.mean()) / every.std() + every.mean() for x in rewards]
    advantages = [gae(r, v) for r, v in zip(rewards, values, strict=True)]
    returns = [a + v for a, v in zip(advantages, values, strict=True)]
    every = np.concatenate(advantages)
    white = [(a - every.mean()) / every.std() for a in advantages]
    return {
        "old_logprobs_BR": logprobs,
        "old_values_BR": values,
        "advantages_BR": white,
        "returns_BR": returns,
    }, {"scores": np.mean(scores), "kl": np.mean(kls), "length": sampled.lengths_B.mean()}


def gae(rewards, values):
    """Schulman et al. (2015), eq. 16, as the double sum it is."""
    following = np.append(values[1:], 0.0)  # nothing comes after the last token
    delta = rewards + GAMMA * following - values
    n = len(delta)
    return np.array([sum((GAMMA * LAM) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)])


def settings(estimator="k1"):
    return RolloutSettings(TEMPERATURE, estimator, PENALTY, 4)


READ = jax.jit(read_rollout, static_argnums=(5, 6))
MAKE = jax.jit(make_experience, static_argnums=(4, 5))


def readings(models, prompts, sampled, given):
    language = {name: Model(CONFIG, getattr(models, name)) for name in ("policy", "reference")}
    return READ(
        language, {"value": Model(CONFIG, models.value)}, jnp.array(prompts), LENGTHS, sampled, given, PAD
    )


def scores(prompts, sampled, score_at=AT_EOS, tail=(), models=MODELS, lengths=LENGTHS):
    reward = RewardModel(Model(CONFIG, models.reward), None, "", "", score_at, Closing(EOS, tail), mean=MEAN)
    return TokenRewards(reward, PAD)([], jnp.array(prompts), lengths, sampled)()


def experience(models=MODELS, *, extra=0, sampled=SAMPLED, whiten_rewards=False, **changes):
    given, prompts = settings(**changes), prompt_arrays(extra)
    read = readings(models, prompts, sampled, given)
    scored = scores(prompts, sampled, models=models)
    advantage = AdvantageSettings(GAMMA, LAM, whiten_rewards)
    return MAKE(read, sampled, scored, jnp.float32(KL_COEF), given, advantage)


def sample(key, extra=0):
    return generate(
        CONFIG,
        MODELS.policy,
        jnp.array(prompt_arrays(extra)),
        LENGTHS,
        ROWS,
        jax.random.key(key),
        Sampling(TEMPERATURE),
        jnp.array([EOS], jnp.int32),
        PAD,
        max_new_tokens=R,
    )


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_experience_recomputed_token_by_token(whiten_rewards):
    found, metrics = experience(whiten_rewards=whiten_rewards)
    wanted, means = expected(whiten_rewards)
    assert np.array_equal(found.mask_BR, sample_arrays().mask_BR)
    for name, rows in wanted.items():
        for b, row in enumerate(rows):
            assert np.asarray(getattr(found, name))[b, : len(row)] == pytest.approx(
                row, rel=1e-4, abs=1e-4
            ), (name, b)
    assert not np.asarray(found.advantages_BR)[~sample_arrays().mask_BR].any()
    assert metrics["objective/scores"] == pytest.approx(means["scores"], rel=1e-4)
    assert metrics["objective/kl"] == pytest.approx(means["kl"], rel=1e-4)
    assert metrics["objective/non_score_reward"] == pytest.approx(-KL_COEF * means["kl"], rel=1e-4)
    assert metrics["objective/rlhf_reward"] == pytest.approx(
        means["scores"] - KL_COEF * means["kl"], rel=1e-4
    )
    assert metrics["completions/mean_length"] == pytest.approx(means["length"])
    assert metrics["completions/ended"] == pytest.approx(3 / 4)
    assert metrics["num_tokens"] == sum(map(len, whole_rows()))
    difference = np.abs(np.concatenate(wanted["old_logprobs_BR"]) + 1)  # the sampler is said to have had -1
    assert metrics["sampling/logp_difference"] == pytest.approx(difference.mean(), rel=1e-4)


def test_a_policy_that_is_its_reference_has_no_kl():
    models = MODELS._replace(reference=MODELS.policy, value=decoder.value_from_reward(MODELS.reward))
    found, metrics = experience(models)
    assert metrics["objective/kl"] == pytest.approx(0, abs=1e-6)  # two programs, which may round differently
    assert not np.asarray(found.old_values_BR).any()
    # Then all reward is the score at the last token, and returns are that score, discounted.
    scores = [
        PENALTY if end is None else alone(MODELS.reward, row)[-1] - MEAN
        for end, row in zip(ENDS, whole_rows(), strict=True)
    ]
    for b, n in enumerate(sample_arrays().lengths_B):
        wanted = scores[b] * (GAMMA * LAM) ** np.arange(n)[::-1]
        assert np.asarray(found.returns_BR)[b, :n] == pytest.approx(wanted, rel=1e-4), b


def test_the_estimator_of_the_kl_can_be_chosen():
    def kl(estimator):
        return experience(estimator=estimator)[1]["objective/kl"]

    wanted, _ = expected(False)
    rows, sampled = whole_rows(), sample_arrays()
    gaps = []
    for b, row in enumerate(rows):
        start = PROMPT_LENGTHS[b]
        reference = [
            alone(MODELS.reference, row)[start - 1 + r, row[start + r]] for r in range(sampled.lengths_B[b])
        ]
        gaps.append(wanted["old_logprobs_BR"][b] - reference)
    assert kl("k2") == pytest.approx(np.mean([(0.5 * d**2).sum() for d in gaps]), rel=1e-4)
    assert kl("k3") == pytest.approx(np.mean([(np.exp(-d) - 1 + d).sum() for d in gaps]), rel=1e-4)


def test_a_wider_bucket_on_the_left_changes_nothing():
    """Neither what is sampled nor what is learnt from it."""
    extra, seen = 7, []
    for width in (0, extra):
        sampled = sample(0, width)
        found, metrics = experience(extra=width, sampled=sampled)
        tokens_BT = np.asarray(found.tokens_BT)
        assert set(tokens_BT[:, P + R :].flat) <= {PAD}
        seen.append((sampled, found._replace(tokens_BT=tokens_BT[:, : P + R]), metrics))
    assert np.array_equal(seen[0][0].tokens_BR, seen[1][0].tokens_BR)
    assert seen[0][2].pop("sampling/logp_difference") < 1e-5 > seen[1][2].pop("sampling/logp_difference")
    for a, b in zip(*map(jax.tree.leaves, seen), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-5, atol=1e-5)


def test_readings_speak_of_the_policy_that_sampled():
    """Log-probs of the sampler, at its temperature, are those of the training graph."""
    sampled = sample(1)
    read = readings(MODELS, prompt_arrays(), sampled, settings())
    difference = np.abs(np.asarray(read.logprobs["policy"] - sampled.logprobs_BR))[
        np.asarray(sampled.mask_BR)
    ]
    assert difference.max() < 1e-5
    final = np.asarray(final_scores(sampled, scores(prompt_arrays(), sampled), settings()))
    assert final[~np.asarray(sampled.ended_B)] == pytest.approx(PENALTY)


@pytest.mark.parametrize(("score_at", "tail"), [("last", ()), ("eos", ()), ("template", (5, 7))])
def test_a_score_is_read_where_the_reward_model_reads_it(score_at, tail):
    """Before the end token, at it, or behind what the template writes after it; a cut response has no end."""
    found = scores(prompt_arrays(), SAMPLED, score_at, tail)
    for b, (row, end) in enumerate(zip(whole_rows(), ENDS, strict=True)):
        if end is not None:
            row = row[:-1] if score_at == "last" else np.append(row, np.array(tail, row.dtype))
        assert float(found.scores_B[b]) == pytest.approx(alone(MODELS.reward, row)[-1] - MEAN, rel=1e-4), b
    # And where prompt and response leave no column to spare: the prompt of one token whose response is full.
    full = jax.tree.map(lambda x: x[2:3] if x.ndim else x, SAMPLED)
    (alone_there,) = scores(prompt_arrays()[2:3, -1:], full, score_at, tail, lengths=LENGTHS[2:3]).scores_B
    assert float(alone_there) == pytest.approx(float(found.scores_B[2]), rel=1e-4)


def test_what_could_not_be_scored_gets_the_penalty_and_is_counted():
    read = readings(MODELS, prompt_arrays(), SAMPLED, settings())
    scored = scores(prompt_arrays(), SAMPLED)
    readable = jnp.array([True, False, True, True])
    broken = scored._replace(readable_B=readable, scores_B=scored.scores_B.at[1].set(jnp.nan))
    _, metrics = MAKE(
        read, SAMPLED, broken, jnp.float32(KL_COEF), settings(), AdvantageSettings(GAMMA, LAM, False)
    )
    wanted = [PENALTY if b in (1, 3) else float(scored.scores_B[b]) for b in range(4)]  # row 3 did not end
    assert metrics["objective/scores"] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert metrics["objective/scores_std"] == pytest.approx(np.std(wanted), rel=1e-5)
    assert metrics["completions/unscored"] == 1 / 4
    assert metrics["objective/raw_scores"] == pytest.approx(
        np.mean(np.asarray(scored.scores_B)[[0, 2, 3]]), rel=1e-5
    )


def test_a_token_that_the_reward_model_has_no_embedding_of_has_no_score():
    """A policy may have spare embeddings behind its tokenizer's tokens, and sample one."""
    sampled = sample_arrays()
    # The row that ended in the middle holds the first unknown one; what stands behind an end does not count.
    known = int(sampled.tokens_BR[1, :2].max())
    sampled.tokens_BR[~sampled.mask_BR] = known
    reward = {**MODELS.reward, "embed": MODELS.reward["embed"][:known]}
    config = dataclasses.replace(CONFIG, vocab_size=known)
    given = RewardModel(Model(config, reward), None, "", "", AT_EOS, Closing(EOS), mean=MEAN)
    found = TokenRewards(given, PAD)(
        [], jnp.array(prompt_arrays()), LENGTHS, jax.tree.map(jnp.array, sampled)
    )()
    wanted = [bool((row[: sampled.lengths_B[b]] < known).all()) for b, row in enumerate(sampled.tokens_BR)]
    assert found.readable_B.tolist() == wanted and not wanted[1] and wanted[0]


def test_text_longer_than_a_reward_models_learned_positions_has_no_score(monkeypatch):
    """And its arrays never become longer than the table."""
    rows = [np.arange(1, n + 1, dtype=np.int32) for n in (3, 9, 10)] + ["no text"]
    seen, answered = [], []

    def encode(found, *_):
        answered.extend(found)
        return rows

    monkeypatch.setattr(text_rewards, "encode_scored", encode)
    monkeypatch.setattr(text_rewards, "decode", lambda _, ids: ids.tolist())

    def program(model, tokens_BT, lengths_B, mean):
        seen.append(tokens_BT.shape)
        return lengths_B - mean

    monkeypatch.setattr(text_rewards, "text_program", lambda parts: program)
    config = dataclasses.replace(CONFIG, positions="learned", max_positions=9)
    reward = RewardModel(Model(config, {}), None, "", "", AT_EOS, Closing(EOS), mean=MEAN)
    found = text_rewards.TextRewards(reward, None, make_mesh(1, 1, 1), 8)(
        [{"instruction": b} for b in range(4)], jnp.array(prompt_arrays()), LENGTHS, SAMPLED
    )()
    # Each row with its own response, without its end token, and whether it has one.
    for b, (row, end) in enumerate(zip(answered, ENDS, strict=True)):
        said = sample_arrays().tokens_BR[b, :end].tolist()
        assert row == {"instruction": b, "output": said, "ended": end is not None}
    assert seen == [(4, 9)] and found.readable_B.tolist() == [True, True, False, False]
    assert found.scores_B.tolist()[:2] == [3 - MEAN, 9 - MEAN]
