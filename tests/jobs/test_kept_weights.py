"""What an online run keeps of models that it does not train: half the bytes in bfloat16, and the same numbers."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import observed
import pytest
import tiny_farm

from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.training.loop.program_costs import bytes_per_device
from rlhf_jax.training.run import actor_networks, memory_check, online_models

CHANGES = {"model.dtype": "bfloat16", "rollout.dtype": "bfloat16", "steps": 2}
# A checkpoint that is being written holds arrays, too.
CHANGES |= {"eval_every": 0, "save_every": 0, "best_metric": ""}


class Kept:
    """The plan of a run, its actor, how its networks start, and the float32 bytes that are alive in it."""

    def __init__(self, patch):
        self.alive = []
        prepare, opened, rewards_of = (
            memory_check.prepare_step,
            online_models.open_actor,
            actor_networks.rewards_of,
        )

        def planned(*args):
            self.plan = prepare(*args)
            return self.plan

        def actor(*args, **more):
            self.actor, starts = opened(*args, **more)
            self.dtypes = {name: dtypes(start.trained) for name, start in starts.items()}
            if "value" in starts:
                self.value = jax.tree.map(np.array, starts["value"].trained)
            return self.actor, starts

        def rewards(*args):
            self.rewards = rewards_of(*args)
            return self.rewards

        patch.setattr(memory_check, "prepare_step", planned)
        patch.setattr(actor_networks, "rewards_of", rewards)
        for method in ("ppo", "quark"):
            patch.setattr(f"rlhf_jax.methods.{method}.open_actor", actor)

    def look(self, i):
        gc.collect()
        self.alive.append(sum(x.nbytes for x in jax.live_arrays() if x.dtype == jnp.float32))


def dtypes(params):
    return {x.dtype.name for x in jax.tree.leaves(params)}


@pytest.mark.parametrize("job", ["ppo", "quark"])
def test_references_and_reward_models_are_kept_as_they_are_computed(farm, tmp_path, monkeypatch, job):
    page = tiny_farm.settings(job, farm, **CHANGES)
    before = sum(x.nbytes for x in jax.live_arrays() if x.dtype == jnp.float32)
    with monkeypatch.context() as patch:
        kept = Kept(patch)
        observed.run(job, page, tmp_path / "kept", before=kept.look)
    reference, reward = kept.actor.frozen["reference"].params, kept.rewards.reward.model.params
    for params in (reference, reward):
        for path, x in jax.tree_util.tree_leaves_with_path(params):
            name = jax.tree_util.keystr(path)
            assert x.dtype == ("float32" if "norm" in name or "score" in name else "bfloat16"), name
    assert set(kept.dtypes) == ({"policy", "value"} if job == "ppo" else {"policy"})
    assert set().union(*kept.dtypes.values()) == {"float32"}
    there = bytes_per_device((reference, reward))
    carried = 0 if job == "ppo" else kept.plan.beside + bytes_per_device(kept.plan.frozen) - there
    assert kept.plan.beside + bytes_per_device(kept.plan.frozen) - carried == there
    # The weights that were read in float32 are gone: what is left is what is trained, and a rollout.
    state = bytes_per_device((kept.plan.state.params, kept.plan.state.opt_state))
    assert kept.alive[-1] - before < 1.2 * state + carried
    with monkeypatch.context() as patch:
        patch.setattr(online_models, "kept_dtype", lambda page: "float32")
        patch.setattr(actor_networks, "kept_dtype", lambda page: "float32")
        observed.run(job, page, tmp_path / "whole")
    rows, wanted = (tiny_farm.rows(tmp_path / name) for name in ("kept", "whole"))
    assert len(rows) >= 3 and rows == wanted
    if job == "ppo":
        trunk = import_folder.load(farm / "reward_model/export")[1]
        jax.tree.map(
            np.testing.assert_array_equal, kept.value["layers"], jax.tree.map(np.asarray, trunk["layers"])
        )
