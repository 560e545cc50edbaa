"""Run by test_plans.py on 8 CPU devices, which stand for a slice: what --plan prints, program by program."""

import sys

import jax

from rlhf_jax.errors import UserError
from rlhf_jax.planning import page_programs, slice_costs
from rlhf_jax.planning.plan_command import run_plan
from rlhf_jax.settings import load_page

SMALL = {
    "data.max_length": 24,
    "data.max_prompt_length": 12,
    "rollout.max_new_tokens": 4,
    "rollout.batch_size": 16,
    "minibatch_size": 8,
    "batch_size": 16,
    "model.remat": "full",
    "microbatches": 1,
}


def small(spec):
    page = load_page(spec)
    flat = {name: value for name, value in SMALL.items() if has(page, name)}
    page.update_from_flattened_dict(flat)
    return page


def has(page, name):
    for part in name.split("."):
        if part not in page:
            return False
        page = page[part]
    return True


def devices_of(found):
    if found.count > jax.device_count():
        raise UserError("no devices for it here")
    return jax.devices()[: found.count]


if __name__ == "__main__":
    page_programs.devices_of = devices_of
    root, workdir = sys.argv[1:]
    run_plan(small(f"{root}/sft.py"), "v5e", "4,8", "", workdir, "sft")
    # What does not fit: advice, and larger slices.
    slice_costs.SliceCost.there = property(lambda self: 10**5)
    slice_costs.memory_check.advice = lambda plan_of, page, mesh, total: f"advice for {total} bytes"
    page = small(f"{root}/ppo.py")
    page.rollout.tensor, page.rollout.offload = 2, "all"
    run_plan(page, "v5e:2x4", "", "", "", "ppo")
