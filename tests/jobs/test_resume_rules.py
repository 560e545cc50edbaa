"""What may change when a run goes on: nothing that an iteration depends on, so not its length where the rate falls."""

import pytest
import tiny_farm

from rlhf_jax.training.checkpoints.checkpoint import MAY_CHANGE
from rlhf_jax.training.loop import loop
from rlhf_jax.training.optimizers.optimizer import _SHAPES, learning_rate_at


@pytest.mark.parametrize("schedule", _SHAPES)
@pytest.mark.parametrize(("job", "length"), [("ppo", "steps"), ("sft", "epochs")])
def test_the_length_may_change_only_where_no_rate_depends_on_it(job, length, schedule, farm):
    def rates(total):
        about = {"schedule": schedule, "warmup_steps": 2, "total_steps": total}
        return [float(learning_rate_at(step, 1.0, **about)) for step in range(4)]

    config = tiny_farm.settings(job, farm, **{"optimizer.schedule": schedule})
    assert (length in loop.may_change(config)) == (rates(4) == rates(8))
    assert "epochs" not in loop.may_change(config) or job != "ppo"  # There they are passes over one rollout.


def test_what_may_change_is_on_a_page():
    fields = {name for job in tiny_farm.METHODS for name in tiny_farm.flat(tiny_farm.settings(job, "x"))}
    assert all(any(name == free or name.startswith(f"{free}.") for name in fields) for free in MAY_CHANGE)
