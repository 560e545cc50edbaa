"""Run by test_processes.py: several jobs one after the other in this process, or in this process of several.

run_jobs.py FARM OUT: each job writes to OUT/<job>.
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
    "sft": OFTEN | {"epochs": STEPS * 8 / 200, "microbatches": 2},
    "reward_model": OFTEN | {"epochs": STEPS * 8 / 78},
    "dpo": OFTEN | {"epochs": STEPS * 8 / 78},
    "ppo": OFTEN
    | {"steps": STEPS, "adaptive_kl": True, "data.eval_rows": 5},  # which two devices do not divide
    "generate": {},
    "score": {},
}

if __name__ == "__main__":
    farm, out = map(Path, sys.argv[1:])
    startup.start()
    for job, changes in CHANGES.items():
        importlib.import_module(f"rlhf_jax.jobs.{job}").run(
            tiny_farm.settings(job, farm, **changes), str(out / job)
        )
