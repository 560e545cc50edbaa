"""GRPO and its kin as every method is tested, what their page refuses, and two iterations by hand."""

import numpy as np
import pytest
import tiny_farm
import tiny_losses
from method_suite import MethodSuite
from tiny_losses import CONFIG, B, P, R, Case

from rlhf_jax.errors import UserError
from rlhf_jax.methods import grpo
from rlhf_jax.objectives.policy_losses import PolicyLoss

HOW = PolicyLoss("sequence_token", "ppo", 0.2, 0.3, 2.0, "sequences", 20, "k3", "exact")


class TestGrpo(MethodSuite):
    """Rollouts are an iteration old and corrected, so that a run which goes on needs the policies it had."""

    job = "grpo"
    small = {
        "rollout.batch_size": 4,
        "rollout.samples": 2,
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
