"""A policy at work: in which order it samples and is scored, and over which rows evaluation measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.rollout.experience import Actor, RolloutSettings, reading_program
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation

CONFIG = ModelConfig(vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
SETTINGS = RolloutSettings(0.7, "k1", -2.0, 4)
B, P, R = 4, 3, 5
BATCH = {
    "tokens": jnp.arange(B * P, dtype=jnp.int32).reshape(B, P) + 3,
    "lengths": jnp.full(B, P, jnp.int32),
    "rows": jnp.arange(B, dtype=jnp.int32) + 7,
}
LENGTHS = np.array([2, 5, 3, 4], np.int32)
SAMPLED = Generation(
    jnp.arange(B * R, dtype=jnp.int32).reshape(B, R) + 4,
    jnp.full((B, R), -1.0),
    jnp.arange(R) < LENGTHS[:, None],
    jnp.array(LENGTHS),
    jnp.array([True, False, True, True]),
    jnp.int32(R),
)
SCORED = Scored(jnp.array([0.5, 1.5, -3.0, 40.0]), jnp.array([True, True, False, True]))


class Calls:
    """Stands for the generator and for the source of scores: remembers what it was asked, in order."""

    def __init__(self):
        self.seen = []

    def load(self, params):
        self.seen.append(("load", params))

    def generate(self, *given):
        self.seen.append(("generate", given))
        return SAMPLED

    def close(self):
        self.seen.append(("close",))

    def rewards(self, records, **given):
        self.seen.append(("rewards", records, given))
        return lambda: SCORED


def actor(calls, reference):
    trained, frozen = {"policy": CONFIG, "value": CONFIG}, {"reference": Model(CONFIG, reference)}
    return Actor(trained, ("value",), frozen, calls, calls.rewards, SETTINGS, 0)


def test_the_sampling_copy_is_gone_before_any_other_network_runs():
    calls, key, records = Calls(), jax.random.key(3), [{"instruction": "x"}] * B
    networks = {"policy": {"of the policy": 1}, "value": {"of the value model": 2}}
    sampled, score = actor(calls, {}).roll_out(networks, records, BATCH, key)
    assert sampled is SAMPLED and score() is SCORED
    prompts = {"prompts_BP": BATCH["tokens"], "prompt_lengths_B": BATCH["lengths"]}
    (_, loaded), (_, asked), _, (_, given, arrays) = calls.seen
    assert [name for name, *_ in calls.seen] == ["load", "generate", "close", "rewards"]
    assert loaded is networks["policy"] and given == records
    for a, b in zip(asked, (BATCH["tokens"], BATCH["lengths"], BATCH["rows"], key, 1), strict=True):
        assert a is b
    assert arrays.keys() == {*prompts, "sampled"} and arrays["sampled"] is SAMPLED
    assert all(arrays[name] is x for name, x in prompts.items())


@pytest.mark.parametrize("count", [1, 3])
def test_evaluation_measures_the_rows_that_were_asked_and_not_those_that_fill_up(count):
    mesh = make_mesh(1, 1, 1)
    policy, reference = (init_sharded(CONFIG, mesh, seed) for seed in (0, 1))
    engaged, networks = actor(Calls(), reference), {"policy": policy, "value": {}}
    scores_B, metrics = engaged.measure(networks, BATCH, SAMPLED, lambda: SCORED, count)
    wanted = [0.5, -2.0, -2.0][:count]  # the second did not end, the third could not be read
    assert scores_B.tolist() == wanted
    assert metrics["scores"] == pytest.approx(np.mean(wanted))
    assert metrics["raw_scores"] == pytest.approx(np.mean([0.5, 1.5][:count]))
    assert metrics["completions/mean_length"] == pytest.approx(LENGTHS[:count].mean())
    assert metrics["completions/ended"] == pytest.approx(np.mean([1, 0, 1][:count]))
    assert metrics["completions/unscored"] == pytest.approx(np.mean([0, 0, 1][:count]))
    models = {"policy": Model(CONFIG, policy), "reference": Model(CONFIG, reference)}
    given = {"prompts_BP": BATCH["tokens"], "prompt_lengths_B": BATCH["lengths"], "sampled": SAMPLED}
    read = reading_program(SETTINGS, 0)(language=models, scalar={}, **given)
    parts = reading_program(SETTINGS._replace(microbatches=2), 0)(language=models, scalar={}, **given)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    gap_BR = np.where(SAMPLED.mask_BR, read.logprobs["policy"] - read.logprobs["reference"], 0.0)
    assert metrics["kl"] == pytest.approx(gap_BR.sum(1)[:count].mean(), rel=1e-4)
