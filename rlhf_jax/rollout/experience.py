"""From sampled responses to what PPO learns from: log-probs, values, rewards, advantages and returns."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.responses import join, response_logprobs, response_values
from rlhf_jax.objectives.advantages import gae, score_with_missing_eos, shaped_rewards, whiten
from rlhf_jax.objectives.kl import sequence_kl, token_kl
from rlhf_jax.objectives.policy_gradient import explained_variance
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.rewards import model_scores
from rlhf_jax.sampling.decode import Generation

Metrics = dict[str, Float[Array, ""]]


class Models(NamedTuple):
    """The four networks of PPO: what is trained, and what it is measured against."""

    policy: Params
    value: Params
    reference: Params
    reward: Params


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


def score_responses(
    config: ModelConfig,
    models: Models,
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    settings: Settings,
    reward_mean: ScalarLike,
    pad_id: int,
) -> dict[str, Array]:
    """What the frozen models and the policy say of sampled responses.

    Returns tokens_BT, mask_BR, logprobs_BR and ref_logprobs_BR (at the sampling temperature, by the training
    graph), entropy_BR, scores_B (with the missing-EOS rule applied) and raw_scores_B.
    """
    tokens_BT = join(prompts_BP, prompt_lengths_B, sampled.tokens_BR, sampled.lengths_B, pad_id)
    R = sampled.tokens_BR.shape[1]
    options = {"temperature": settings.temperature, "chunk": settings.logprob_chunk}
    logprobs_BR, entropy_BR = response_logprobs(
        config, models.policy, tokens_BT, prompt_lengths_B, R, **options
    )
    ref_logprobs_BR, _ = response_logprobs(
        config, models.reference, tokens_BT, prompt_lengths_B, R, **options
    )
    lengths_B = prompt_lengths_B + sampled.lengths_B
    raw_scores_B = model_scores(config, models.reward, tokens_BT, lengths_B, reward_mean)
    scores_B = score_with_missing_eos(raw_scores_B, sampled.ended_B, penalty=settings.missing_eos_penalty)
    return {
        "tokens_BT": tokens_BT,
        "mask_BR": sampled.mask_BR,
        "logprobs_BR": logprobs_BR,
        "ref_logprobs_BR": ref_logprobs_BR,
        "entropy_BR": entropy_BR,
        "raw_scores_B": raw_scores_B,
        "scores_B": scores_B,
    }


def make_experience(
    config: ModelConfig,
    models: Models,
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    kl_coef: Float[Array, ""],
    settings: Settings,
    reward_mean: ScalarLike,
    pad_id: int,
) -> tuple[Experience, Metrics]:
    """One rollout as experience, and its metrics (TRL's names).

    Old log-probs come from the training graph and not from the sampler (rule R9), so the first ratio is 1;
    what the sampler said differs by `sampling/logp_difference`. Advantages are whitened over all real tokens
    of the global rollout (rule R7), once.
    """
    s = score_responses(config, models, prompts_BP, prompt_lengths_B, sampled, settings, reward_mean, pad_id)
    mask_BR = s["mask_BR"]
    values_BR = response_values(config, models.value, s["tokens_BT"], prompt_lengths_B, mask_BR.shape[1])
    kl_BR = token_kl(s["logprobs_BR"], s["ref_logprobs_BR"], mask_BR, estimator=settings.kl_estimator)
    rewards_BR = shaped_rewards(s["scores_B"], kl_BR, mask_BR, kl_coef)
    if settings.whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, settings.gamma, settings.lam)
    experience = Experience(
        tokens_BT=s["tokens_BT"],
        prompt_lengths_B=prompt_lengths_B,
        mask_BR=mask_BR,
        old_logprobs_BR=s["logprobs_BR"],
        old_values_BR=values_BR,
        advantages_BR=whiten(advantages_BR, mask_BR),
        returns_BR=returns_BR,
    )
    metrics = rollout_metrics(s, sampled, settings) | {
        "objective/kl_coef": kl_coef,
        "objective/non_score_reward": -kl_coef * value(sequence_kl(kl_BR, mask_BR)),
        "objective/rlhf_reward": jnp.mean(s["scores_B"]) - kl_coef * value(sequence_kl(kl_BR, mask_BR)),
        "val/explained_variance": explained_variance(values_BR, returns_BR, mask_BR),
        "val/mean": value(masked_mean(values_BR, mask_BR)),
        "val/returns": value(masked_mean(returns_BR, mask_BR)),
        "num_tokens": jnp.sum(prompt_lengths_B + sampled.lengths_B).astype(jnp.float32),
    }
    return experience, metrics


def rollout_metrics(s: dict[str, Array], sampled: Generation, settings: Settings) -> Metrics:
    """Scores, KL, entropy, lengths and endings of a rollout."""
    mask_BR = s["mask_BR"]
    kl_BR = token_kl(s["logprobs_BR"], s["ref_logprobs_BR"], mask_BR, estimator=settings.kl_estimator)
    means: dict[str, Mean] = {
        "objective/kl": sequence_kl(kl_BR, mask_BR),
        "objective/entropy": masked_mean(s["entropy_BR"], mask_BR),
        "sampling/logp_difference": masked_mean(jnp.abs(s["logprobs_BR"] - sampled.logprobs_BR), mask_BR),
    }
    return {name: value(mean) for name, mean in means.items()} | {
        "objective/scores": jnp.mean(s["scores_B"]),
        "objective/raw_scores": jnp.mean(s["raw_scores_B"]),
        "completions/mean_length": jnp.mean(sampled.lengths_B.astype(jnp.float32)),
        "completions/ended": jnp.mean(sampled.ended_B.astype(jnp.float32)),
    }
