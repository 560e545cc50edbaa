"""From sampled responses to what PPO learns from: log-probs, values, rewards, advantages and returns."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.model import Model
from rlhf_jax.models.responses import join, response_logprobs, response_values
from rlhf_jax.objectives.advantages import gae, score_with_missing_eos, shaped_rewards, whiten
from rlhf_jax.objectives.kl import sequence_kl, token_kl
from rlhf_jax.objectives.policy_gradient import explained_variance
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation

Metrics = dict[str, Float[Array, ""]]


class Models(NamedTuple):
    """The networks that read a policy's own tokens: what is trained, and what it is measured against."""

    policy: Model
    value: Model
    reference: Model


class Settings(NamedTuple):
    """The plain numbers of a rollout; see configs/ppo.py for what each means."""

    temperature: float
    kl_estimator: str
    missing_eos_penalty: float
    gamma: float
    lam: float
    whiten_rewards: bool
    logprob_chunk: int


class Experience(NamedTuple):
    """One rollout, ready to learn from. Every field has the batch first, so a minibatch is a choice of rows."""

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]
    old_logprobs_BR: Float[Array, "B R"]
    old_values_BR: Float[Array, "B R"]
    advantages_BR: Float[Array, "B R"]
    returns_BR: Float[Array, "B R"]


class Readings(NamedTuple):
    """What policy, reference and value model say of sampled responses, before any score of them is known.

    Attributes:
      logprobs_BR, ref_logprobs_BR: at the sampling temperature, by the training graph.
      values_BR: before each response token; zeros where there is no value model to ask.
    """

    tokens_BT: Int[Array, "B T"]
    mask_BR: Bool[Array, "B R"]
    logprobs_BR: Float[Array, "B R"]
    ref_logprobs_BR: Float[Array, "B R"]
    entropy_BR: Float[Array, "B R"]
    values_BR: Float[Array, "B R"]


def read_rollout(
    models: Models,
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    settings: Settings,
    pad_id: int,
    *,
    values: bool = True,
) -> Readings:
    """Runs the networks over what was sampled. values: whether the value model is asked, too."""
    tokens_BT = join(prompts_BP, prompt_lengths_B, sampled.tokens_BR, sampled.lengths_B, pad_id)
    R = sampled.tokens_BR.shape[1]

    def logprobs(model: Model) -> tuple[Array, Array]:
        return response_logprobs(
            model.config,
            model.params,
            tokens_BT,
            prompt_lengths_B,
            R,
            temperature=settings.temperature,
            chunk=settings.logprob_chunk,
        )

    logprobs_BR, entropy_BR = logprobs(models.policy)
    values_BR = jnp.zeros(sampled.mask_BR.shape, jnp.float32)
    if values:
        values_BR = response_values(models.value.config, models.value.params, tokens_BT, prompt_lengths_B, R)
    return Readings(
        tokens_BT, sampled.mask_BR, logprobs_BR, logprobs(models.reference)[0], entropy_BR, values_BR
    )


def make_experience(
    read: Readings,
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    scored: Scored,
    kl_coef: Float[Array, ""],
    settings: Settings,
) -> tuple[Experience, Metrics]:
    """One rollout as experience, and its metrics (TRL's names).

    Old log-probs come from the training graph and not from the sampler (rule R9), so the first ratio is 1;
    what the sampler said differs by `sampling/logp_difference`. Advantages are whitened over all real tokens
    of the global rollout (rule R7), once.
    """
    mask_BR, values_BR = read.mask_BR, read.values_BR
    scores_B = final_scores(sampled, scored, settings)
    kl_BR = token_kl(read.logprobs_BR, read.ref_logprobs_BR, mask_BR, estimator=settings.kl_estimator)
    rewards_BR = shaped_rewards(scores_B, kl_BR, mask_BR, kl_coef)
    if settings.whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, settings.gamma, settings.lam)
    experience = Experience(
        tokens_BT=read.tokens_BT,
        prompt_lengths_B=prompt_lengths_B,
        mask_BR=mask_BR,
        old_logprobs_BR=read.logprobs_BR,
        old_values_BR=values_BR,
        advantages_BR=whiten(advantages_BR, mask_BR),
        returns_BR=returns_BR,
    )
    metrics = rollout_metrics(read, sampled, scored, settings) | {
        "objective/kl_coef": kl_coef,
        "objective/non_score_reward": -kl_coef * value(sequence_kl(kl_BR, mask_BR)),
        "objective/rlhf_reward": jnp.mean(scores_B) - kl_coef * value(sequence_kl(kl_BR, mask_BR)),
        "val/explained_variance": explained_variance(values_BR, returns_BR, mask_BR),
        "val/mean": value(masked_mean(values_BR, mask_BR)),
        "val/returns": value(masked_mean(returns_BR, mask_BR)),
        "num_tokens": jnp.sum(prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }
    return experience, metrics


def final_scores(sampled: Generation, scored: Scored, settings: Settings) -> Float[Array, " B"]:
    """The scores that are learnt from: `missing_eos_penalty` for what did not end, or could not be scored."""
    usable_B = sampled.ended_B & scored.readable_B
    return score_with_missing_eos(scored.scores_B, usable_B, penalty=settings.missing_eos_penalty)


def rollout_metrics(read: Readings, sampled: Generation, scored: Scored, settings: Settings) -> Metrics:
    """Scores, KL, entropy, lengths and endings of a rollout."""
    mask_BR = read.mask_BR
    kl_BR = token_kl(read.logprobs_BR, read.ref_logprobs_BR, mask_BR, estimator=settings.kl_estimator)
    means: dict[str, Mean] = {
        "objective/kl": sequence_kl(kl_BR, mask_BR),
        "objective/entropy": masked_mean(read.entropy_BR, mask_BR),
        "objective/raw_scores": masked_mean(scored.scores_B, scored.readable_B),
        "sampling/logp_difference": masked_mean(jnp.abs(read.logprobs_BR - sampled.logprobs_BR), mask_BR),
    }
    return {name: value(mean) for name, mean in means.items()} | {
        "objective/scores": jnp.mean(final_scores(sampled, scored, settings)),
        "completions/mean_length": jnp.mean(sampled.lengths_B.astype(jnp.float32)),
        "completions/ended": jnp.mean(sampled.ended_B.astype(jnp.float32)),
        "completions/unscored": jnp.mean(1.0 - scored.readable_B.astype(jnp.float32)),
    }
