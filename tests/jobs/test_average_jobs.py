"""With `optimizer.ema` the average is what a trainer evaluates and exports, also when the run was interrupted."""

import numpy as np
import observed
import pytest
import tiny_farm
from safetensors.numpy import load_file
from wide import wide

from rlhf_jax.training.loop import loop


def exported(job, config, workdir, **stop):
    """The exported weights, and the last state that the loop gave."""
    states, loop_run = [], loop.run_loop

    def watched(*args, **options):
        states.append(loop_run(*args, **options))
        return states[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run_loop", watched)
        observed.run(job, config, workdir, **stop)
    return load_file(workdir / "export/model.safetensors") if states else None, states


@pytest.mark.parametrize("job", ["sft", pytest.param("ppo", marks=wide)])
def test_the_average_is_exported(farm, tmp_path, job):
    changes = {"steps": 4, "best_metric": ""} if job == "ppo" else {}
    config = tiny_farm.settings(job, farm, **{"optimizer.ema": 0.8, **changes})
    weights, (state,) = exported(job, config, tmp_path / "run")
    opt_state = state.opt_state.inner_states["policy"].inner_state if job == "ppo" else state.opt_state
    average, last = ((tree["policy"] if job == "ppo" else tree) for tree in (opt_state.average, state.params))
    found = weights["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found, average["embed"])
    assert np.abs(found - np.asarray(last["embed"])).max() > 1e-5
    with_average = [
        row for row in tiny_farm.rows(tmp_path / "run") if any(k.startswith("eval/") for k in row)
    ]
    plain = tiny_farm.settings(job, farm, **changes)
    exported(job, plain, tmp_path / "plain")
    without = [row for row in tiny_farm.rows(tmp_path / "plain") if any(k.startswith("eval/") for k in row)]
    name = "eval/kl" if job == "ppo" else "eval/loss"
    assert with_average[-1][name] != without[-1][name]


def test_a_run_that_was_interrupted_exports_the_same_average(farm, tmp_path):
    config = tiny_farm.settings("sft", farm, **{"optimizer.ema": 0.8})
    whole, _ = exported("sft", config, tmp_path / "whole")
    none, _ = exported("sft", config, tmp_path / "parts", stop_before=5)
    assert none is None
    rest, _ = exported("sft", config, tmp_path / "parts")
    assert {k: x.tobytes() for k, x in rest.items()} == {k: x.tobytes() for k, x in whole.items()}
