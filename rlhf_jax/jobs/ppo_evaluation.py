"""PPO's evaluation: what the policy answers to the same prompts, what that scores, and the table of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.special_ids import fill_id, without_end
from rlhf_jax.data.tokenization import Prompts, decode
from rlhf_jax.jobs import plan as planning
from rlhf_jax.jobs.ppo_world import EVALUATION, World, key_of, prompt_arrays
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather, host_rows, to_global
from rlhf_jax.rollout.experience import Readings, final_scores, rollout_metrics
from rlhf_jax.rollout.generator import check_finite
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.average import averaged
from rlhf_jax.training.state import TrainState
from rlhf_jax.training.workdir import write_samples

_FAR = 0.05  # nats a token; rounding alone stays far below


def make_evaluation(
    world: World, workdir: str, prompts: Prompts, rows: list[dict]
) -> Callable[[TrainState, int], dict[str, float]]:
    """`evaluate(state, step)`: the same prompts with the same randomness every time; writes the sample table."""
    c = world.config
    ways = world.mesh.shape["data"] * world.mesh.shape["fsdp"]
    B = -(-len(prompts) // ways) * ways  # the last row is repeated until the mesh divides the batch
    index_B = np.minimum(np.arange(B), len(prompts) - 1)
    batch = to_global(prompt_arrays(world, prompts, index_B, host_rows(B, world.mesh)), world.mesh)

    told: set[str] = set()

    settings = planning.ppo_settings(c)
    read = planning.reading_program(settings, fill_id(world.tokenizer), values=False)
    asked = [rows[i] for i in index_B]

    @jax.jit
    def measure(readings: Readings, sampled: Generation, scored: Scored) -> tuple[Any, dict]:
        # Arguments, not captured: what a compiled function captures becomes part of the program, and arrays
        # that lie on several processes cannot.
        readings, sampled, scored = jax.tree.map(
            lambda x: x[: len(prompts)] if x.ndim else x, (readings, sampled, scored)
        )
        found = rollout_metrics(readings, sampled, scored, settings)
        return final_scores(sampled, scored, settings), found

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        models = world.models(averaged(state.params, state.opt_state))
        world.generator.load(models.policy.params)
        key = key_of(jax.random.key(c.seed), EVALUATION, 0)
        sampled = world.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        world.generator.close()
        where = {"prompts_BP": batch["tokens"], "prompt_lengths_B": batch["lengths"]}
        score = world.rewards(asked, sampled=sampled, **where)
        readings = read(models=models, sampled=sampled, **where)
        scored = score()
        scores_B, metrics = measure(readings, sampled, scored)
        tokens_BR, lengths_B, ended_B, scores_B, logprobs_BR = gather(
            (sampled.tokens_BR, sampled.lengths_B, sampled.ended_B, scores_B, sampled.logprobs_BR)
        )
        check_finite(logprobs_BR, "the policy")
        write_samples(
            workdir,
            step,
            (
                {
                    **row,
                    "output": decode(world.tokenizer, without_end(tokens_BR[b, : lengths_B[b]], ended_B[b])),
                    "ended": bool(ended_B[b]),
                    "score": float(scores_B[b]),
                }
                for b, row in enumerate(rows)
            ),
        )
        found = {name.removeprefix("objective/"): float(x) for name, x in metrics.items()}
        _alarm(c, found["sampling/logp_difference"], told)
        # At one price for all checkpoints, also where an adaptive kl_coef has moved since: else the checkpoint at
        # which the coefficient was lowest would be the best one.
        return found | {"rlhf_reward": found["scores"] - c.kl_coef * found["kl"]}

    return evaluate


def _alarm(config: ConfigDict, difference: float, told: set[str]) -> None:
    """Says once how far the sampler's log-probs are from those that are trained on, where that is to be expected.

    config: samples and trains in dtypes that may differ. difference: the mean over tokens, in nats.
    """
    unlike = config.rollout.dtype != config.model.dtype
    if told or not (unlike or difference > _FAR) or not startup.is_main():
        return
    told.add("said")
    why = (
        f"rollout.dtype={config.rollout.dtype} is not model.dtype={config.model.dtype}"
        if unlike
        else "rounding"
    )
    print(
        f"notice: sampling/logp_difference is {difference:.3g} nats a token ({why}): responses come from a policy that "
        f"far from the one that is trained{'; set both alike if that is much' if unlike else ''}",
        flush=True,
    )
