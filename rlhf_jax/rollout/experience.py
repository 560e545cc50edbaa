"""One policy at work: it samples, its responses are scored, and networks read them. What all online methods share.

A method turns what was read into what it learns from: rewards, advantages, pairs or quantiles.
"""

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
from rlhf_jax.models.responses import join, response_logprobs, response_values, without_column
from rlhf_jax.objectives.policy_gradient import score_with_missing_eos, sequence_kl, token_kl
from rlhf_jax.objectives.policy_losses import sampler_weights
from rlhf_jax.objectives.reduce import Mean, masked_mean, value
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.host_memory import called_alone
from rlhf_jax.parallel.microbatches import in_parts
from rlhf_jax.rollout.generator import Generator
from rlhf_jax.rollout.rewards import Rewards, Scored
from rlhf_jax.sampling.decode import Generation

Metrics = dict[str, Float[Array, ""]]
Networks = Mapping[str, Params]


class RolloutSettings(NamedTuple):
    """The plain numbers of a rollout that every online method has.

    Attributes:
      temperature: of sampling, and of every log-prob that is compared with it.
      kl_estimator, missing_eos_penalty: see `objectives.policy_gradient`.
      logprob_chunk: positions whose logits exist at one time.
      correction, correction_cap: see `sampler_correction`; "none" for methods that have no such weights.
      marker: the column of a control token in every prompt which only networks that are trained are shown; -1 for none.
      microbatches: a rollout is read in this many parts.
    """

    temperature: float
    kl_estimator: str
    missing_eos_penalty: float
    logprob_chunk: int
    correction: str = "none"
    correction_cap: float = 1.0
    marker: int = -1
    microbatches: int = 1


class Readings(NamedTuple):
    """What the networks say of sampled responses, computed before any score of them is known.

    Attributes:
      logprobs: of each language model by its name, "policy" and "reference" among them, each [B, R]; at the sampling
        temperature, by the training graph.
      entropy_BR: of the policy; None where it was not run.
      values: of each model with a scalar head by its name, before each response token, each [B, R].
    """

    tokens_BT: Int[Array, "B T"]
    prompt_lengths_B: Int[Array, " B"]
    mask_BR: Bool[Array, "B R"]
    logprobs: dict[str, Float[Array, "B R"]]
    entropy_BR: Float[Array, "B R"] | None
    values: dict[str, Float[Array, "B R"]]


def read_rollout(
    language: Mapping[str, Model],
    scalar: Mapping[str, Model],
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    sampled: Generation,
    settings: RolloutSettings,
    pad_id: int,
) -> Readings:
    """Runs language models and models with a scalar head over sampled responses."""
    if settings.microbatches > 1:
        whole = settings._replace(microbatches=1)
        rows = (prompts_BP, prompt_lengths_B, sampled)
        return in_parts(
            lambda part: read_rollout(language, scalar, *part, whole, pad_id), rows, settings.microbatches
        )
    tokens_BT = join(prompts_BP, prompt_lengths_B, sampled.tokens_BR, sampled.lengths_B, pad_id)
    where = (tokens_BT, prompt_lengths_B, sampled.tokens_BR.shape[1])
    # At the sampling temperature, here and in the loss: at any other one ratio and KL are those of a policy
    # that did not act. Several PPO codes had it wrong, and their KL grew faster.
    how = {"temperature": settings.temperature, "chunk": settings.logprob_chunk}
    logprobs, entropies, values = {}, {}, {}
    bare = where if settings.marker < 0 else (*without_column(*where[:2], settings.marker), where[2])
    for name, model in language.items():
        seen = where if name == "policy" else bare
        logprobs[name], entropies[name] = response_logprobs(model.config, model.params, *seen, **how)
    for name, model in scalar.items():
        values[name] = response_values(model.config, model.params, *where)
    return Readings(tokens_BT, prompt_lengths_B, sampled.mask_BR, logprobs, entropies.get("policy"), values)


def final_scores(sampled: Generation, scored: Scored, settings: RolloutSettings) -> Float[Array, " B"]:
    """The scores that training uses; `missing_eos_penalty` for a response that did not end or could not be scored."""
    usable_B = sampled.ended_B & scored.readable_B
    return score_with_missing_eos(scored.scores_B, usable_B, penalty=settings.missing_eos_penalty)


def kl_of(read: Readings, settings: RolloutSettings) -> Float[Array, "B R"]:
    """The KL between policy and reference at each response token, as the page estimates it; 0 at pads."""
    policy_BR, reference_BR = read.logprobs["policy"], read.logprobs["reference"]
    return token_kl(policy_BR, reference_BR, read.mask_BR, estimator=settings.kl_estimator)


def rollout_metrics(
    read: Readings, sampled: Generation, scored: Scored, settings: RolloutSettings
) -> Metrics:
    """Scores, KL, entropy, lengths and endings of a rollout."""
    mask_BR, gap_BR = read.mask_BR, jnp.abs(read.logprobs["policy"] - sampled.logprobs_BR)
    means: dict[str, Mean] = {
        "objective/kl": sequence_kl(kl_of(read, settings), mask_BR),
        "objective/entropy": masked_mean(read.entropy_BR, mask_BR),
        # The 0 of a response that could not be scored is no score.
        "objective/raw_scores": masked_mean(scored.scores_B, scored.readable_B),
        "sampling/logp_difference": masked_mean(gap_BR, mask_BR),
    }
    for name, numbers_B in scored.components.items():
        # What a source tells of itself, as a price, it tells of responses that it could not score, too.
        counts_B = jnp.ones_like(scored.readable_B) if "/" in name else scored.readable_B
        means[f"rewards/{name}"] = masked_mean(numbers_B, counts_B)
    scores_B = final_scores(sampled, scored, settings)
    return {name: value(mean) for name, mean in means.items()} | {
        "objective/scores": jnp.mean(scores_B),
        # Without a deviation there is nothing to learn from: all responses are as good as each other.
        "objective/scores_std": jnp.std(scores_B),
        "completions/mean_length": jnp.mean(sampled.lengths_B.astype(jnp.float32)),
        "completions/ended": jnp.mean(sampled.ended_B.astype(jnp.float32)),
        "completions/unscored": jnp.mean(1.0 - scored.readable_B.astype(jnp.float32)),
    }


def tell_alike(metrics: Mapping[str, Any], room: int, *, penalised: bool) -> None:
    """Says, once in a run, where all responses of a rollout have one score, so that nothing is learnt from it.

    room: tokens that a response may have. penalised: whether one that did not end, or was not scored, gets a penalty.
    """
    if penalised and float(metrics.get("completions/ended", 1.0)) == 0:
        what, fix = (
            "came to an end",
            f"raise rollout.max_new_tokens ({room}), or start from a model that sft has tuned",
        )
    elif penalised and float(metrics.get("completions/unscored", 0.0)) == 1:
        what, fix = (
            "could be scored",
            "look at what its source, a model, a judge or a function, makes of them",
        )
    else:
        return
    startup.notice_once(
        f"no response {what}, so missing_eos_penalty is the score of all, and nothing tells them apart; {fix}"
    )


def sampler_correction(
    read: Readings, sampled: Generation, settings: RolloutSettings
) -> tuple[Float[Array, "B R"] | None, Metrics]:
    """Weights of the policy loss for what another policy sampled than the one that learns from it, and their metrics.

    The sampler's may be some steps old or in another dtype. No weights and no metrics where the page wants none.
    """
    if settings.correction == "none":
        return None, {}
    weights_BR, means = sampler_weights(
        read.logprobs["policy"],
        sampled.logprobs_BR,
        read.mask_BR,
        level=settings.correction,
        cap=settings.correction_cap,
    )
    return weights_BR, {name: value(mean) for name, mean in means.items()}


class Actor(NamedTuple):
    """Samples with a policy, has its responses scored, and reads them with the networks.

    The parameters of networks that are trained are given with every call; those of the others are held here.

    Attributes:
      trained: the settings of the networks that are trained, "policy" among them.
      scalar: the names of those with a scalar head.
      frozen: language models that are read beside the policy, "reference" among them.
    """

    trained: Mapping[str, ModelConfig]
    scalar: tuple[str, ...]
    frozen: Mapping[str, Model]
    generator: Generator
    rewards: Rewards
    settings: RolloutSettings
    pad_id: int

    def roll_out(
        self, networks: Networks, records: list[dict], batch: dict, key: jax.Array, samples: int = 1
    ) -> tuple[Generation, Callable[[], Scored]]:
        """Samples responses of each prompt, those of one next to each other: (responses, a call for their scores).

        records: the prompts' records, for a reward model that reads text.
        """
        sampled = self.sample(networks, batch, key, samples)
        return sampled, self.score(records, batch, sampled)

    def sample(self, networks: Networks, batch: dict, key: jax.Array, samples: int) -> Generation:
        """The first half of `roll_out`."""
        self.generator.load(networks["policy"])
        sampled = self.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key, samples)
        # The sampling copy goes before the other networks run; there may be no room for it beside them.
        self.generator.close()
        return sampled

    def score(self, records: list[dict], batch: dict, responses: Generation) -> Callable[[], Scored]:
        """The second half, for any responses, as many of one prompt as of another. One of no token is none."""
        samples = _responses_of_each(batch, responses)
        # A copy for each prompt: by the object a source sees which responses belong to one that was drawn once.
        asked = [record for given in records for record in [dict(given)] * samples]
        return self.rewards(asked, sampled=responses, **_prompts(batch, responses))

    def read(
        self,
        networks: Networks,
        batch: dict,
        sampled: Generation,
        *,
        values: bool = True,
        trained: bool = True,
    ) -> Readings:
        """Log-probs, entropies and values of the responses, in one compiled program.

        values: whether models with a scalar head are run, too; evaluation is spared them.
        trained: whether any network is run that is trained; an update may read by itself (see `on_policy`).
        """
        models = {name: Model(config, networks[name]) for name, config in self.trained.items()}
        scalar = {name: models.pop(name) for name in self.scalar}
        program = reading_program(self.settings, self.pad_id)

        def read(frozen: dict[str, Model]) -> Readings:
            return program(
                language=(models if trained else {}) | frozen,
                scalar=scalar if values and trained else {},
                sampled=sampled,
                **_prompts(batch, sampled),
            )

        return called_alone(read, dict(self.frozen), behind=sampled)

    def measure(
        self, networks: Networks, batch: dict, sampled: Generation, score: Callable[[], Scored], count: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(final scores, metrics) of the first `count` responses; metrics without their prefix `objective/`."""
        readings = self.read(networks, batch, sampled, values=False)
        return _measuring_program(self.settings, count)(readings, sampled, score())

    def measure_at_price(self, kl_coef: float, *asked: Any) -> tuple[jax.Array, dict]:
        """`measure`, and `rlhf_reward`: the scores less kl_coef times the KL."""
        scores_B, metrics = self.measure(*asked)
        # At one price for all checkpoints, also where an adaptive kl_coef has moved since: else the
        # checkpoint at which the coefficient was lowest would be the best one.
        scores, kl = float(metrics["scores"]), float(metrics["kl"])
        return scores_B, metrics | {"rlhf_reward": scores - kl_coef * kl}


# Cached, so that the memory plan (which lowers it from shapes) and the run have one program between them.
@lru_cache
def reading_program(settings: RolloutSettings, pad_id: int) -> Any:
    """Returns `read_rollout` as a compiled function, the same one for the memory plan and the run."""
    return jax.jit(partial(read_rollout, settings=settings, pad_id=pad_id))


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


def _prompts(batch: dict, sampled: Generation) -> dict[str, jax.Array]:
    """The prompts of a batch, each as often as it has responses."""
    samples = _responses_of_each(batch, sampled)
    arrays = {"prompts_BP": batch["tokens"], "prompt_lengths_B": batch["lengths"]}
    if samples == 1:
        return arrays
    # Placed as the responses are; left to itself XLA may copy them to all devices, and reading would compile again.
    where = sampled.lengths_B.sharding
    return {name: jax.device_put(jnp.repeat(x, samples, axis=0), where) for name, x in arrays.items()}


def _responses_of_each(batch: dict, sampled: Generation) -> int:
    return sampled.lengths_B.shape[0] // batch["lengths"].shape[0]
