"""What recipes may send and need on real slices, as the compilers for these say; minutes, and only where one is there.

`pip install -r requirements-plan.txt` (TPU) or "jax[cuda13]"; see scripts/test_plans.sh.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_farm
from wide import wide

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TPU = pytest.param(
    "v5e:2x4",
    marks=pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, requirements-plan.txt"),
)
CUDA = find_spec("jax_plugins") and find_spec("jax_plugins.xla_cuda13")
GPU = pytest.param(
    "h100:8", marks=pytest.mark.skipif(not CUDA, reason="needs jax's CUDA plugin, jax[cuda13]")
)
pytestmark = pytest.mark.timeout(1800)
# Three gathers and one scatter of a billion bfloat16 weights, and a fifth more.
MOST_GB = 8.65


def planned(slice_, *flags):
    """(output, rows of the table by program: fits, GiB, TFLOP, GB received, ms of compute, interconnect, memory)."""
    command = ["-m", "rlhf_jax.main", f"--plan={slice_}", *flags]
    # With what the test's own process finds its compiler by.
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = tiny_farm.finish(tiny_farm.start(command, XLA_FLAGS="", PYTHONPATH=paths))
    rows = {}
    units = {"GB": 1.0, "MB": 1e-3, "kB": 1e-6, "s": 1e3, "ms": 1.0}
    row = re.compile(
        r"^([a-z ]+?) +(yes|NO) +([\d.]+) GiB +(\S+) +([\d.]+) ([kMG]B)" + r" +([\d.]+) (m?s)" * 3, re.M
    )
    for name, fits, gib, flops, sent, unit, *times in row.findall(out):
        three = [float(times[i]) * units[times[i + 1]] for i in (0, 2, 4)]
        rows[name] = (fits == "yes", float(gib), float(flops), float(sent) * units[unit], *three)
    return out, rows


@pytest.mark.parametrize("slice_", [TPU, GPU])
def test_a_billion_parameters_on_eight_chips_are_gathered_no_more_than_needed(slice_):
    flags = [
        "model.init=meta-llama/Llama-3.2-1B",
        "model.remat=full",
        "model.dtype=bfloat16",
        "data.template=alpaca",
    ]
    flags += ["data.max_length=2048", "batch_size=16"]
    _, rows = planned(slice_, f"--config={CONFIGS}/sft.py", *(f"--config.{x}" for x in flags))
    fits, _, flops, sent, *_ = rows["train step"]
    assert fits and sent <= MOST_GB
    # 8 per parameter and token with remat, of 2048 x 2 tokens a chip, and attention.
    assert 8 * 1.2e9 * 4096 / 1e12 < flops < 1.3 * 8 * 1.2e9 * 4096 / 1e12


@wide
@pytest.mark.parametrize("slice_", [GPU])
@pytest.mark.parametrize("recipe", ["sft", "reward_model", "dpo", "ppo"])
def test_the_papers_recipes_are_bound_by_their_products(recipe, slice_):
    _, rows = planned(slice_, f"--config={CONFIGS}/papers/alpaca_farm/{recipe}.py")
    assert all(fits for fits, *_ in rows.values()), rows
    *_, compute, interconnect, _ = rows["train step"]
    assert interconnect < compute


@pytest.mark.parametrize("slice_", [TPU])
def test_of_networks_one_after_the_other_one_gradient_exists_at_a_time(slice_):
    """Three take no more than one; all at once they take twice as much."""
    del slice_
    script = str(Path(__file__).with_name("networks_in_turn.py"))

    def mebibytes(how):
        out = tiny_farm.finish(tiny_farm.start([script, how], XLA_FLAGS="", PYTHONPATH=str(ROOT)))
        return [int(x) for x in re.findall(r"^(\d+)$", out, re.M)]

    turns, together = mebibytes("turns"), mebibytes("together")
    assert len(turns) == len(together) == 3 and turns[0] == pytest.approx(together[0], rel=0.01)
    assert turns[2] < 1.1 * turns[0] and together[2] > 1.5 * turns[2]
