"""GRPO as every method is tested; a rollout and two iterations by hand, and its settings; its golden numbers are in
test_golden.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_rollouts
import tiny_farm
from method_suite import MethodSuite
from tiny_losses import CONFIG, B, Case, P, R

from rlhf_jax.errors import UserError
from rlhf_jax.methods import grpo
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.objectives.policy_losses import PolicyLoss
from rlhf_jax.rollout.experience import Readings, RolloutSettings
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation

HOW = PolicyLoss("sequence_token", "ppo", 0.2, 0.3, 2.0, "sequences", 20, "k3", "exact")


class TestGrpo(MethodSuite):
    """Rollouts are an iteration old and corrected, so that a run which goes on needs the policies it had; and updates
    read their rollout, since one minibatch is all of it."""

    job = "grpo"
    small = {
        "rollout.batch_size": 4,
        "rollout.samples": 2,
        "minibatch_size": 8,
        "rollout.staleness": 1,
        "rollout.correction": "token",
    }
    steps = {"steps": 13, "adaptive_kl": True, "optimizer.learning_rate": 1e-2}

    def case(self):
        rng = np.random.default_rng(0)
        prompts, responses = (rng.integers(1, most + 1, B).astype(np.int32) for most in (P, R))
        responses[:2] = 1, R  # the shortest and the longest there can be
        mask = np.arange(R) < responses[:, None]
        mask[5:7] = False  # a group that is left out

        def draw(mean, spread):
            return np.where(mask, rng.normal(mean, spread, (B, R)), np.nan).astype(np.float32)

        experience = grpo.GroupExperience(
            rng.integers(0, CONFIG.vocab_size, (B, P + R)).astype(np.int32),
            prompts,
            mask,
            old_logprobs_BR=draw(-6, 1),
            advantages_BR=draw(0, 1),
            ref_logprobs_BR=draw(-6, 1),
            kl_coef_B=np.full(B, 0.1, np.float32),
            weights_BR=np.exp(draw(0, 0.3)),
        )
        params = {"policy": tiny_farm.random_params(scalar=False, seed=1)}
        return Case(lambda R: grpo.grpo_loss_fn(CONFIG, HOW, temperature=0.7, chunk=16), params, experience)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_one_rollout_by_hand(kl_in):
    """Three prompts with two responses each; those of the second have one score, one did not end."""
    rng = np.random.default_rng(0)
    mask = np.arange(4) < np.array([4, 1, 2, 2, 3, 4])[:, None]
    now, ref, sampler = (np.float32(rng.normal(-3, 1, mask.shape)) for _ in range(3))
    ended, scores = np.array([1, 1, 1, 1, 0, 1], bool), np.array([0.0, 2, 5, 5, 7, -1])
    read = Readings(
        jnp.zeros((6, 7), jnp.int32),
        jnp.arange(6) % 3 + 1,
        jnp.asarray(mask),
        {"policy": jnp.asarray(now), "reference": jnp.asarray(ref)},
        jnp.ones((6, 4)),
        {},
    )
    sampled = Generation(
        jnp.zeros((6, 4), jnp.int32),
        jnp.asarray(sampler),
        jnp.asarray(mask),
        jnp.asarray(mask.sum(1), jnp.int32),
        jnp.asarray(ended),
        jnp.int32(4),
    )
    settings = RolloutSettings(1.0, "k1", -2.0, 16, "sequence", 1.5)
    groups = grpo.GroupSettings(2, "group", "none", True, kl_in)
    scored = Scored(jnp.asarray(scores, jnp.float32), jnp.ones(6, bool))
    found, metrics = grpo.make_group_experience(read, sampled, scored, jnp.float32(0.1), settings, groups)

    kl = np.where(mask, now - ref, 0).sum(1)
    rewards = np.where(ended, scores, -2.0) - (0.1 * kl if kl_in == "reward" else 0)
    advantages = rewards - rewards.reshape(3, 2).mean(1).repeat(2)
    counts = mask & np.array([1, 1, 0, 0, 1, 1], bool)[:, None]
    np.testing.assert_array_equal(found.mask_BR, counts)
    np.testing.assert_allclose(found.advantages_BR, np.where(counts, advantages[:, None], 0), rtol=1e-5)
    np.testing.assert_array_equal(found.old_logprobs_BR, now)
    weights = np.minimum(np.exp(np.where(mask, now - sampler, 0).sum(1)), 1.5)
    np.testing.assert_allclose(found.weights_BR, np.where(mask, weights[:, None], 0), rtol=1e-5)
    if kl_in == "loss":
        np.testing.assert_array_equal(found.ref_logprobs_BR, ref)
        np.testing.assert_allclose(found.kl_coef_B, np.full(6, 0.1), rtol=1e-6)
    else:
        assert found.ref_logprobs_BR is None and found.kl_coef_B is None
    wanted = {"groups/equal": 1 / 3, "groups/filtered": 1 / 3, "objective/kl": kl.mean()}
    wanted |= {
        "objective/rlhf_reward": (0 + 2 + 5 + 5 - 2 - 1) / 6 - 0.1 * kl.mean(),
        "objective/kl_coef": 0.1,
    }
    for name, number in wanted.items():
        assert float(metrics[name]) == pytest.approx(number, rel=1e-5), name


SETTINGS = recorded_rollouts.PLAIN | {
    "steps": 2,
    "epochs": 2,
    "minibatch_size": 24,
    "rollout.samples": 3,
    "rollout.temperature": 0.8,
    "missing_eos_penalty": -0.5,
}
IN_LOSS = {"kl_coef": 0.3, "clip_low": 0.1, "clip_high": 0.15, "adaptive_kl": True, "target_kl": 0.02}
IN_LOSS |= {"kl_horizon": 40.0, "optimizer.learning_rate": 0.15}
# The second rollout is sampled by the policy as it starts; two micro-batches are given it as it was read beforehand.
BEHIND = {
    "baseline": "leave_one_out",
    "scale": "none",
    "kl_in": "reward",
    "kl_coef": 0.5,
    "kl_estimator": "k1",
}
BEHIND |= {"ratio": "sequence", "clip_low": 0.02, "clip_high": 0.03, "aggregation": "tokens"}
BEHIND |= {
    "microbatches": 2,
    "optimizer.learning_rate": 0.6,
    "rollout.staleness": 1,
    "rollout.correction": "token",
    "rollout.correction_cap": 1.1,
}


@pytest.mark.parametrize("changes", [IN_LOSS, BEHIND], ids=["KL in the loss", "a rollout behind"])
def test_two_iterations_by_hand(farm, tmp_path, changes):
    """Advantages from the recorded scores, the papers' losses by their formulas, and descent."""
    page = tiny_farm.settings("grpo", farm, **SETTINGS | changes)
    rollouts, rows, *_, exported = recorded_rollouts.run(grpo, page, tmp_path)
    assert len(rollouts) == len(rows) == 2
    config = import_folder.describe_folder(farm / "sft/export").config
    start = params = jax.tree.map(np.float32, import_folder.load(farm / "sft/export")[1])
    kl_coef, shares = page.kl_coef, []
    said = jax.jit(lambda params, rollout: recorded_rollouts.logprobs(config, params, rollout, 0.8))
    low, high = 1 - page.clip_low, 1 + page.clip_high

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params, rollout, old, ref, A, weights, kl_coef):
        now, mask, counts = said(params, rollout), rollout.mask_BT, rollout.lengths_B
        ratio = jnp.exp(now - old)
        if changes is BEHIND:
            ratio = jnp.exp((now - old).sum(1, keepdims=True) / counts[:, None]) * jnp.ones(mask.shape)
        losses = weights * jnp.maximum(-A * ratio, -A * jnp.clip(ratio, low, high))
        if changes is IN_LOSS:
            losses += kl_coef * ratio * (jnp.exp(ref - now) - 1 + now - ref)
        held = mask & (((ratio > high) & (A > 0)) | ((ratio < low) & (A < 0)))
        sums = jnp.where(mask, losses, 0).sum(1)
        found = (sums / counts).mean() if changes is IN_LOSS else sums.sum() / counts.sum()
        return found, held.sum() / counts.sum()

    for rollout, row in zip(rollouts, rows, strict=True):
        mask, counts, old, ref = (
            rollout.mask_BT,
            rollout.lengths_B,
            said(params, rollout),
            said(start, rollout),
        )
        scores, gap, weights = np.where(rollout.ended_B, rollout.scores_B, -0.5), np.float64(old - ref), mask
        if changes is IN_LOSS:
            kl, groups = np.where(mask, np.exp(-gap) - 1 + gap, 0).sum(1), scores.reshape(-1, 3)
            centred = groups - groups.mean(1, keepdims=True)
            A = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / 2) + 1e-6)
        else:
            kl = gap.sum(1)
            groups = (scores - kl_coef * kl).reshape(-1, 3)
            A = groups - np.stack([groups[:, x].mean(1) for x in ([1, 2], [0, 2], [0, 1])], axis=1)
            # What samples is the policy as it starts, which is the reference, too.
            weights = np.where(mask, np.minimum(np.exp(gap), 1.1), 0)
        losses, held, norms = [], [], []
        for _ in range(2):
            given = (rollout, old, ref, np.float32(A.reshape(-1, 1)), np.float32(weights), kl_coef)
            (found, share), gradient = loss(params, *given)
            losses.append(found), held.append(share), norms.append(recorded_rollouts.norm(gradient))
            params = recorded_rollouts.descended(params, gradient, page.optimizer.learning_rate)
        wanted = {
            "loss": np.mean(losses),
            "policy/clipfrac": np.mean(held),
            "grad_norm": np.mean(norms),
            "objective/kl": kl.mean(),
            "objective/scores": scores.mean(),
            "objective/kl_coef": kl_coef,
        }
        if changes is IN_LOSS:
            kl_coef *= 1 + 24 / 40 * np.clip(kl.mean() / 0.02 - 1, -0.2, 0.2)
        else:
            wanted |= {
                "sampling/correction_mean": weights.sum() / counts.sum(),
                "sampling/correction_capped": (np.exp(gap) > 1.1).sum() / counts.sum(),
            }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=2e-3, abs=2e-4)
        shares.append(np.mean(held))
    assert min(shares) > 0.02 and abs(row["objective/kl"]) > 0.01
    assert changes is IN_LOSS or 0.02 < row["sampling/correction_capped"] < 0.9
    recorded_rollouts.assert_params(exported, params, start)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rollout.samples": 1, "minibatch_size": 8},
            r"^rollout.samples: 1, but baseline=group compares responses of one prompt; use 2 or more$",
        ),
        (
            {
                "rollout.samples": 1,
                "minibatch_size": 8,
                "baseline": "none",
                "scale": "batch",
                "filter_groups": True,
            },
            r"^rollout.samples: 1, but filter_groups=True compares responses of one prompt",
        ),
        ({"baseline": "none"}, r"^scale: group, but baseline=none leaves .*; use batch$"),
        ({"clipping": "cispo", "dual_clip": 3.0}, r"^dual_clip: 3, but clipping=cispo .*; use 0$"),
        ({"dual_clip": 1.1}, r"^dual_clip: 1.1 is not above 1 \+ clip_high = 1.2; use 3, or 0 for none$"),
        (
            {"kl_estimator": "k1", "kl_gradient": "direct"},
            r"^kl_gradient: direct; .* 0 in expectation; use exact$",
        ),
        ({"kl_estimator": "k2"}, r"^kl_gradient: exact; .* not a KL's; use direct$"),
        ({"ratio": "row"}, r"^ratio: 'row'; use one of token, sequence, sequence_token$"),
        (
            {"adaptive_kl": True, "kl_horizon": 8.0},
            r"^kl_horizon: 8 responses are fewer than the 32 of one rollout",
        ),
        (
            {"rollout.correction_cap": 0.5},
            r"^rollout.correction_cap: 0.5; use a finite number of at least 1$",
        ),
    ],
)
def test_what_cannot_work_is_refused(farm, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        grpo.run(tiny_farm.settings("grpo", farm, **changes), str(tmp_path))
