"""PPO's own numbers: metrics over unequal minibatches, the price of KL, and the alarm about the sampler's dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import tiny_losses

from rlhf_jax.errors import UserError
from rlhf_jax.methods import ppo
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.rollout.experience import Readings, RolloutSettings
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.run import online


def test_a_metric_is_over_all_tokens_of_the_updates_and_not_a_mean_of_means():
    rng = np.random.default_rng(0)
    minibatches = [rng.normal(size=n) for n in (3, 50, 7)]
    found = [
        {
            "loss": Mean(jnp.float32(x.sum()), jnp.float32(len(x))),
            "nonfinite": jnp.float32(i == 1),
            "learning_rate": jnp.float32(i),
            "grad_norm": jnp.float32(i),
        }
        for i, x in enumerate(minibatches)
    ]
    got = jax.jit(online.overall_metrics)(found)
    assert got["loss"] == pytest.approx(np.concatenate(minibatches).mean(), rel=1e-5)
    assert (got["nonfinite"], got["learning_rate"], got["grad_norm"]) == (1, 2, 1)


@pytest.fixture(scope="module")
def adaptive(farm, tmp_path_factory):
    """A run whose kl_coef moves, and whose sampler rounds: (rows of metrics, page)."""
    folder = tmp_path_factory.mktemp("adaptive")
    moving = {"adaptive_kl": True, "target_kl": 1e-3, "kl_horizon": 8.0, "optimizer.learning_rate": 0.01}
    page = tiny_farm.settings("ppo", farm, steps=3, eval_every=1, **moving, **{"rollout.dtype": "bfloat16"})
    ppo.run(page, str(folder))
    return tiny_farm.rows(folder), page


@pytest.mark.parametrize(
    ("adaptive_kl", "kl", "factor"),
    # The error is cut at 0.2 in both directions; 8 responses are a fifth of the horizon.
    [(False, 9.0, 1.0), (True, 6.6, 1.02), (True, 9.0, 1.04), (True, 0.0, 0.96)],
)
def test_the_price_of_kl_moves_where_that_is_asked_for(farm, adaptive_kl, kl, factor):
    moving = {"adaptive_kl": adaptive_kl, "target_kl": 6.0, "kl_horizon": 40.0}
    page = tiny_farm.settings("ppo", farm, **moving, **{"rollout.batch_size": 8, "minibatch_size": 4})
    after = online.next_kl_coef(page, {"kl_coef": 0.3}, {"objective/kl": jnp.float32(kl)})
    assert float(after["kl_coef"]) == pytest.approx(0.3 * factor, rel=1e-5)


def test_checkpoints_are_ranked_at_one_price(adaptive):
    rows, page = adaptive
    coefficients = {row["objective/kl_coef"] for row in rows if "objective/kl_coef" in row}
    assert len(coefficients) == 3 and max(abs(x / page.kl_coef - 1) for x in coefficients) > 0.1
    evaluations = [row for row in rows if "eval/rlhf_reward" in row]
    assert len(evaluations) == 4 and evaluations[-1]["eval/kl"] != 0
    for row in evaluations:
        assert row["eval/rlhf_reward"] == pytest.approx(
            row["eval/scores"] - page.kl_coef * row["eval/kl"], abs=1e-6
        )


def test_a_sampler_of_another_dtype_is_said_with_how_far_it_is(farm, tmp_path, capsys):
    """Once a run; and not where both are alike."""
    for dtype, times in (("bfloat16", 1), ("float32", 0)):
        ppo.run(tiny_farm.settings("ppo", farm, steps=1, **{"rollout.dtype": dtype}), str(tmp_path / dtype))
        said = capsys.readouterr().out
        assert said.count("notice: sampling/logp_difference is ") == times, said
    first = tiny_farm.rows(tmp_path / "bfloat16")[0]["eval/sampling/logp_difference"]
    assert first > 1e-4


def test_a_correction_changes_a_rollout_of_an_older_policy_and_no_other():
    """Weights of the policy's loss alone: the value model learns from what was sampled as it is."""
    mask = jnp.asarray([[True, True], [True, False]])
    now, then = jnp.asarray([[-1.0, -2.0], [-0.5, 0.0]]), jnp.asarray([[-1.5, -1.0], [-2.5, 0.0]])
    read = Readings(
        jnp.zeros((2, 3), jnp.int32),
        jnp.ones(2, jnp.int32),
        mask,
        {"policy": now, "reference": now},
        jnp.ones((2, 2)),
        {"value": jnp.zeros((2, 2))},
    )
    lengths, ended = jnp.asarray([2, 1]), jnp.ones(2, bool)
    scored, advantage = Scored(jnp.asarray([1.0, 2.0]), ended), ppo.AdvantageSettings(1.0, 0.95, False)
    for correction, wanted in (("none", None), ("token", [[1.6487, 0.3679], [2.0, 0]])):
        settings = RolloutSettings(1.0, "k1", -3.0, 16, correction, 2.0)
        for sampler, weights in ((then, wanted), (now, wanted and [[1, 1], [1, 0]])):
            sampled = Generation(jnp.zeros((2, 2), jnp.int32), sampler, mask, lengths, ended, jnp.int32(2))
            found, metrics = ppo.make_experience(read, sampled, scored, jnp.float32(0.1), settings, advantage)
            assert (
                (found.weights_BR is None) == (weights is None) == ("sampling/correction_mean" not in metrics)
            )
            if weights is not None:
                np.testing.assert_allclose(found.weights_BR, weights, rtol=1e-4)
    case = tiny_losses.cases()["ppo"]
    loss = tiny_losses.compiled(case)
    plain, _ = loss(case.params, case.batch)
    doubled = np.full(case.batch.mask_BR.shape, 2, np.float32)
    twice, _ = loss(case.params, case.batch._replace(weights_BR=doubled))
    assert float(twice["loss/policy"]) == pytest.approx(2 * float(plain["loss/policy"]), rel=1e-5)
    assert float(twice["loss/value"]) == float(plain["loss/value"])


def test_a_horizon_shorter_than_a_rollout_is_refused(farm, tmp_path):
    page = tiny_farm.settings("ppo", farm, adaptive_kl=True, kl_horizon=7.0)
    with pytest.raises(UserError, match=r"^kl_horizon: 7 responses are fewer than the 8 of one rollout"):
        ppo.run(page, str(tmp_path))
