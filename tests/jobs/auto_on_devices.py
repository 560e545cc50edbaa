"""Run by test_auto_mesh.py on several CPU devices: FARM OUT. SFT with mesh.fsdp=auto, no room for its first choice.

And the same run with the mesh given by hand.
"""

import sys
from pathlib import Path

import tiny_farm
from ml_collections import ConfigDict

from rlhf_jax.programs import program
from rlhf_jax.training.run import memory_check

SHORT = {"epochs": 3 * 8 / 200, "eval_every": 2, "save_every": 2}


def run(farm: Path, out: Path, **mesh) -> None:
    config = tiny_farm.settings("sft", farm, **SHORT)
    config.mesh = ConfigDict({"data": 1, "tensor": 1} | mesh)
    program("sft").run(config, str(out))


if __name__ == "__main__":
    farm, out = map(Path, sys.argv[1:])
    total_on, needed = memory_check._total_on, []

    def too_much_at_first(plan_of, config, mesh, sizes, there):
        needed.append(total_on(plan_of, config, mesh, sizes, there))
        return needed[-1] if len(needed) > 1 else there + 1

    memory_check._total_on = too_much_at_first
    run(farm, out / "auto", fsdp="auto")
    assert len(needed) == 2 and needed[0] > needed[1] > 0, needed
    run(farm, out / "given", data=-1, fsdp=2)
