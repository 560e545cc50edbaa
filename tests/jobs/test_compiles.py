"""No step function compiles twice: neither after warm-up nor after a checkpoint was restored."""

import observed
import pytest
import tiny_farm
from wide import wide

# Evaluation and checkpoint after every 4 of 16 iterations.
STEPS = {
    "sft": {"epochs": 0.64},
    "reward_model": {"epochs": 1.6},
    "dpo": {"epochs": 1.6},
    "ppo": {"steps": 16, "adaptive_kl": True},
}


@pytest.mark.parametrize(
    "job", ["sft", "ppo", *(pytest.param(x, marks=wide) for x in ("reward_model", "dpo"))]
)
def test_nothing_compiles_after_the_first_cycle(job, farm, tmp_path):
    config = tiny_farm.settings(job, farm, **STEPS[job])
    _, first = observed.run(job, config, tmp_path, stop_before=10)
    assert first.at[0] > 0 and first.at[1] == first.at[3], "the second iteration compiled something"
    assert first.at[4] == first.at[10], "after an evaluation and a checkpoint something compiled again"
    _, again = observed.run(job, config, tmp_path)
    assert min(again.at) == 8, "it did not go on from the checkpoint"
    assert again.at[9] == again.at[11], "a restored state needs another program than a new one"
    assert again.at[12] == again.end > 0
    for watched in (first, again):
        assert [step.cache_size() for step in watched.steps] == [1]
