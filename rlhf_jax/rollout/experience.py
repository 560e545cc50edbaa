"""Turns sampled responses into what PPO learns from: log-probs, values, rewards, advantages and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.model import Model
from rlhf_jax.models.responses import join, response_logprobs, response_values
from rlhf_jax.objectives.policy_gradient import (
    explained_variance,
    gae,
    score_with_missing_eos,
    sequence_kl,
    shaped_rewards,
    token_kl,
    whiten,
)
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.rollout.generator import Generator
from rlhf_jax.rollout.rewards import Rewards, Scored
from rlhf_jax.sampling.decode import Generation

Metrics = dict[str, Float[Array, ""]]


class Models(NamedTuple):
    """The networks that read the policy's tokens: policy and value model, which are trained, and the reference."""

    policy: Model
    value: Model
    reference: Model


class RolloutSettings(NamedTuple):
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


def experience_shapes(P: int, R: int) -> Experience:
    """The shapes of one row of experience; the memory plan puts the minibatch size in place of the 1."""
    integers, numbers, flags = (
        partial(jax.ShapeDtypeStruct, dtype=t) for t in (jnp.int32, jnp.float32, bool)
    )
    return Experience(integers((1, P + R)), integers((1,)), flags((1, R)), *[numbers((1, R))] * 4)


class Readings(NamedTuple):
    """Log-probs, entropies and values of sampled responses, computed before any score of them is known.

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
    settings: RolloutSettings,
    pad_id: int,
    *,
    values: bool = True,
) -> Readings:
    """Runs policy, reference and value model over sampled responses. values: whether the value model is run, too."""
    tokens_BT = join(prompts_BP, prompt_lengths_B, sampled.tokens_BR, sampled.lengths_B, pad_id)
    R = sampled.tokens_BR.shape[1]

    # At the sampling temperature, here and in the loss: at any other one ratio and KL are those of a policy
    # that did not act. Several PPO codes had it wrong, and their KL grew faster.
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
    # Evaluation measures scores and KL alone, and is spared the pass of the value model.
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
    settings: RolloutSettings,
) -> tuple[Experience, Metrics]:
    """Turns one rollout into experience to learn from, and its metrics (TRL's names).

    Old log-probs come from the training graph and not from the sampler, so the first ratio is exactly 1; what the
    sampler computed differs by `sampling/logp_difference`. Advantages are whitened once, over all real tokens of the
    global rollout: over one device's rows they would depend on the mesh.
    """
    mask_BR, values_BR = read.mask_BR, read.values_BR
    scores_B = final_scores(sampled, scored, settings)
    kl_BR = token_kl(read.logprobs_BR, read.ref_logprobs_BR, mask_BR, estimator=settings.kl_estimator)
    # The KL is part of the reward and not of the loss, as in Ziegler et al. (2019): earlier tokens are then
    # held responsible for where they lead, too.
    rewards_BR = shaped_rewards(scores_B, kl_BR, mask_BR, kl_coef)
    if settings.whiten_rewards:
        # Scaled and not shifted: a shift would turn bad rewards into good ones.
        rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, settings.gamma, settings.lam)
    experience = Experience(
        tokens_BT=read.tokens_BT,
        prompt_lengths_B=prompt_lengths_B,
        mask_BR=mask_BR,
        old_logprobs_BR=read.logprobs_BR,
        old_values_BR=values_BR,
        advantages_BR=whiten(advantages_BR, mask_BR),
        # Of the advantages before whitening: values are learnt in the unit of the rewards.
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


def final_scores(sampled: Generation, scored: Scored, settings: RolloutSettings) -> Float[Array, " B"]:
    """The scores that training uses; `missing_eos_penalty` for a response that did not end or could not be scored."""
    usable_B = sampled.ended_B & scored.readable_B
    return score_with_missing_eos(scored.scores_B, usable_B, penalty=settings.missing_eos_penalty)


def rollout_metrics(
    read: Readings, sampled: Generation, scored: Scored, settings: RolloutSettings
) -> Metrics:
    """Scores, KL, entropy, lengths and endings of a rollout."""
    mask_BR = read.mask_BR
    kl_BR = token_kl(read.logprobs_BR, read.ref_logprobs_BR, mask_BR, estimator=settings.kl_estimator)
    means: dict[str, Mean] = {
        "objective/kl": sequence_kl(kl_BR, mask_BR),
        "objective/entropy": masked_mean(read.entropy_BR, mask_BR),
        # The 0 of a response that could not be scored is no score.
        "objective/raw_scores": masked_mean(scored.scores_B, scored.readable_B),
        "sampling/logp_difference": masked_mean(jnp.abs(read.logprobs_BR - sampled.logprobs_BR), mask_BR),
    }
    return {name: value(mean) for name, mean in means.items()} | {
        "objective/scores": jnp.mean(final_scores(sampled, scored, settings)),
        "completions/mean_length": jnp.mean(sampled.lengths_B.astype(jnp.float32)),
        "completions/ended": jnp.mean(sampled.ended_B.astype(jnp.float32)),
        "completions/unscored": jnp.mean(1.0 - scored.readable_B.astype(jnp.float32)),
    }


# One policy at work in a run: it samples, its responses are scored, and the networks read them. The models
# that do not change are held here; those that are trained come with every call.

Networks = Mapping[str, Params]


class Actor(NamedTuple):
    """Samples with a policy, has its responses scored, and reads them with the networks.

    The parameters of policy and value model are given with every call, since they are trained; the others are fixed.
    """

    policy: ModelConfig
    value: ModelConfig
    reference: Model
    generator: Generator
    rewards: Rewards
    settings: RolloutSettings
    pad_id: int

    def roll_out(
        self, networks: Networks, records: list[dict], batch: dict, key: jax.Array
    ) -> tuple[Generation, Callable[[], Scored]]:
        """Samples one response per prompt: (responses, a call that returns their scores).

        records: the prompts' records, for a reward model that reads text.
        """
        self.generator.load(networks["policy"])
        sampled = self.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        # The sampling copy goes before the other networks run; there may be no room for it beside them.
        self.generator.close()
        return sampled, self.rewards(records, sampled=sampled, **_prompts(batch))

    def read(self, networks: Networks, batch: dict, sampled: Generation, *, values: bool = True) -> Readings:
        """Log-probs of policy and reference, entropies and values of the responses, in one compiled program.

        values: whether the value model is run, too.
        """
        policy, value = Model(self.policy, networks["policy"]), Model(self.value, networks["value"])
        program = reading_program(self.settings, self.pad_id, values=values)
        return program(models=Models(policy, value, self.reference), sampled=sampled, **_prompts(batch))

    def measure(
        self, networks: Networks, batch: dict, sampled: Generation, score: Callable[[], Scored], count: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(final scores, metrics) of the first `count` responses; metrics without their prefix `objective/`."""
        readings = self.read(networks, batch, sampled, values=False)
        return _measuring_program(self.settings, count)(readings, sampled, score())


# Cached, so that the memory plan (which lowers it from shapes) and the run have one program between them.
@lru_cache
def reading_program(settings: RolloutSettings, pad_id: int, *, values: bool = True) -> Any:
    """Returns `read_rollout` as a compiled function, the same one for the memory plan and the run."""
    return jax.jit(partial(read_rollout, settings=settings, pad_id=pad_id, values=values))


@lru_cache
def _measuring_program(settings: RolloutSettings, count: int) -> Any:
    def measured(readings: Readings, sampled: Generation, scored: Scored) -> tuple[jax.Array, dict]:
        # The arrays are arguments: a compiled function turns what it captures into constants, which arrays on
        # several processes cannot be. Rows from `count` on only fill up the batch.
        readings, sampled, scored = jax.tree.map(
            lambda x: x[:count] if x.ndim else x, (readings, sampled, scored)
        )
        metrics = rollout_metrics(readings, sampled, scored, settings)
        named = {name.removeprefix("objective/"): x for name, x in metrics.items()}
        return final_scores(sampled, scored, settings), named

    return jax.jit(measured)


def _prompts(batch: dict) -> dict[str, jax.Array]:
    return {"prompts_BP": batch["tokens"], "prompt_lengths_B": batch["lengths"]}
