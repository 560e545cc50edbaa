"""PPO's evaluation: what the policy answers to the same prompts, what that scores, and the table of samples."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from rlhf_jax.data.tokenization import Prompts, decode
from rlhf_jax.jobs import plan as planning
from rlhf_jax.jobs.ppo_world import EVALUATION, World, key_of, prompt_arrays
from rlhf_jax.parallel.arrays import gather, host_rows, to_global
from rlhf_jax.rollout.experience import Models, rollout_metrics, score_responses
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.average import averaged
from rlhf_jax.training.state import TrainState
from rlhf_jax.training.workdir import write_samples


def make_evaluation(
    world: World, workdir: str, prompts: Prompts, rows: list[dict]
) -> Callable[[TrainState, int], dict[str, float]]:
    """`evaluate(state, step)`: the same prompts with the same randomness every time; writes the sample table."""
    c = world.config
    ways = world.mesh.shape["data"] * world.mesh.shape["fsdp"]
    B = -(-len(prompts) // ways) * ways  # the last row is repeated until the mesh divides the batch
    index_B = np.minimum(np.arange(B), len(prompts) - 1)
    batch = to_global(prompt_arrays(world, prompts, index_B, host_rows(B, world.mesh)), world.mesh)

    @jax.jit
    def score(models: Models, batch: dict, sampled: Generation) -> tuple[dict, dict]:
        # Arguments, not captured: what a compiled function captures becomes part of the program, and arrays
        # that lie on several processes cannot.
        tokens_BP, lengths_B, pad_id = batch["tokens"], batch["lengths"], world.tokenizer.pad_token_id
        s = score_responses(
            world.model,
            models,
            tokens_BP,
            lengths_B,
            sampled,
            planning.ppo_settings(world.config),
            world.reward_mean,
            pad_id,
        )
        s, sampled = jax.tree.map(lambda x: x[: len(prompts)] if x.ndim else x, (s, sampled))
        return s, rollout_metrics(s, sampled, planning.ppo_settings(world.config))

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        models = world.models(averaged(state.params, state.opt_state))
        world.generator.load(models.policy)
        key = key_of(jax.random.key(c.seed), EVALUATION, 0)
        sampled = world.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        world.generator.close()
        scored, metrics = score(models, batch, sampled)
        tokens_BR, lengths_B, scores_B = gather((sampled.tokens_BR, sampled.lengths_B, scored["scores_B"]))
        write_samples(
            workdir,
            step,
            (
                {
                    **row,
                    "output": decode(world.tokenizer, tokens_BR[b, : lengths_B[b]]),
                    "score": float(scores_B[b]),
                }
                for b, row in enumerate(rows)
            ),
        )
        found = {name.removeprefix("objective/"): float(x) for name, x in metrics.items()}
        return found | {"rlhf_reward": found["scores"] - float(state.extra["kl_coef"]) * found["kl"]}

    return evaluate
