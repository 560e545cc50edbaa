"""Run by test_processes.py: several jobs one after the other in this process, or in this process of several.

run_jobs.py FARM OUT [DATA,FSDP,TENSOR [JOB ...]]: each job, or each that is named, writes to OUT/<job>. A job may be
run in a second way, JOB-WAY.
"""

import importlib
import sys
from pathlib import Path

import tiny_farm

from rlhf_jax.parallel import startup

STEPS = 3
# A large eps makes Adam's first updates smooth in the gradient; else they are its sign, rounding or not.
OFTEN = {"eval_every": 2, "save_every": 2, "optimizer.eps": 1e-3}
CHANGES = {
    "sft": OFTEN | {"epochs": STEPS * 16 / 200, "batch_size": 16, "microbatches": 2},
    "reward_model": OFTEN | {"epochs": STEPS * 8 / 78},
    "dpo": OFTEN | {"epochs": STEPS * 8 / 78},
    "dpo-adapter": OFTEN
    | {"epochs": STEPS * 8 / 38, "data.packing": True, "data.max_length": 200, "reference": "step"}
    | {"lora.rank": 2, "lora.alpha": 8.0, "optimizer.learning_rate": 0.05, "optimizer.warmup_steps": 0},
    "ppo": OFTEN
    | {"steps": STEPS, "adaptive_kl": True, "data.eval_rows": 5}  # which two devices do not divide
    | {"rollout.batch_size": 16, "minibatch_size": 8},
    "generate": {},
    "score": {},
}


def run(job: str, farm: Path, out: Path, mesh: str = "", **changes) -> None:
    sizes = (
        zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), map(int, mesh.split(",")), strict=True) if mesh else ()
    )
    page = job.split("-")[0]
    config = tiny_farm.settings(page, farm, **CHANGES[job] | dict(sizes) | changes)
    importlib.import_module(f"rlhf_jax.jobs.{page}").run(config, str(out / job))


if __name__ == "__main__":
    farm, out = map(Path, sys.argv[1:3])
    startup.start()
    for job in sys.argv[4:] or CHANGES:
        run(job, farm, out, *sys.argv[3:4])
