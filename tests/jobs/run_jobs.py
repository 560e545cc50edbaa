"""Run by test_processes.py: several jobs one after the other in this process, or in this process of several.

The reward model and DPO, which run the loop of the others, only with RLHF_JAX_WIDE=1.

run_jobs.py FARM OUT [DATA,FSDP,TENSOR [JOB ...]]: each job, or each that is named, writes to OUT/<job>. A job may be
run in a second way, JOB-WAY.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import tiny_farm
from wide import WIDE

from rlhf_jax.data.records.records import read_table
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import gather, host_rows, make_mesh, to_global
from rlhf_jax.programs import program
from rlhf_jax.rollout.text_rewards import TextRewards
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.run import reward_models

STEPS = 3
# A large eps makes Adam's first updates smooth in the gradient; else they are its sign, rounding or not.
OFTEN = {"eval_every": 2, "save_every": 2, "optimizer.eps": 1e-3}
CHANGES = {
    "sft": OFTEN | {"epochs": STEPS * 16 / 200, "batch_size": 16, "microbatches": 2},
    "reward_model": OFTEN | {"epochs": STEPS * 8 / 78},
    "dpo": OFTEN | {"epochs": STEPS * 8 / 78},
    "dpo-adapter": OFTEN
    | {"epochs": STEPS * 8 / 38, "data.packing": "on", "data.max_length": 200, "reference": "step"}
    | {"lora.rank": 2, "lora.alpha": 8.0, "optimizer.learning_rate": 0.05, "optimizer.warmup_steps": 0},
    "ppo": OFTEN
    | {"steps": STEPS, "adaptive_kl": True, "data.eval_rows": 5}  # which two devices do not divide
    | {"rollout.batch_size": 16, "minibatch_size": 8},
    "generate": {},
    "score": {},
}

JOBS = [job for job in CHANGES if WIDE or job not in ("reward_model", "dpo", "dpo-adapter")]


def run(job: str, farm: Path, out: Path, mesh: str = "", **changes) -> None:
    sizes = (
        zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), map(int, mesh.split(",")), strict=True) if mesh else ()
    )
    page = job.split("-")[0]
    if mesh and page == "ppo":
        # Nor do these change a number: each process moves its own parts, and two share a copy of the policy.
        changes = {"rollout.offload": "all", "rollout.tensor": 2} | changes
    config = tiny_farm.settings(page, farm, **CHANGES[job] | dict(sizes) | changes)
    program(page).run(config, str(out / job))


def score_text(farm: Path, out: Path, mesh: str = "1,1,1") -> None:
    """Scores by a reward model that is given text, as PPO asks for them; written to OUT/text_scores.npy.

    The rows of one process are longer than those of the other, and than was expected.
    """
    over = make_mesh(*map(int, mesh.split(",")))
    page = tiny_farm.settings("score", farm).model
    reward = reward_models.described(page.path, page, field="model.path", template="alpaca")
    reward = reward_models.loaded(reward, page, over)
    tokens = np.random.default_rng(0).integers(3, tiny_farm.VOCAB, (8, 40)).astype(np.int32)
    lengths = np.array([3, 40, 2, 1, 5, 4, 6, 7], np.int32)
    mask = np.arange(40) < lengths[:, None]
    whole = Generation(tokens, np.float32(0 * mask), mask, lengths, lengths % 2 == 0, np.int32(40))
    mine = host_rows(8, over)
    sampled = to_global(jax.tree.map(lambda x: x[mine] if x.ndim else x, whole), over)
    prompts = to_global(np.zeros((8, 1), np.int32)[mine], over)
    rows = read_table(farm / "data/unlabeled.parquet")[:8]
    found = gather(
        TextRewards(reward, reward.tokenizer, over, 8)(rows, prompts, sampled.lengths_B, sampled)()
    )
    if startup.is_main():
        np.save(out / "text_scores.npy", np.where(found.readable_B, found.scores_B, np.nan))


if __name__ == "__main__":
    farm, out = map(Path, sys.argv[1:3])
    startup.join_processes()
    for job in sys.argv[4:] or JOBS:
        run(job, farm, out, *sys.argv[3:4])
    if not sys.argv[4:]:
        score_text(farm, out, *sys.argv[3:4])
