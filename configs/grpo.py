"""Policy gradients against a reward model without a value model: GRPO and, as variants, what was made of it.

    python -m rlhf_jax.main --config=configs/grpo.py --workdir=runs/farm/grpo
    python -m rlhf_jax.main --config=configs/grpo.py:dapo --workdir=runs/farm/dapo

One step = one rollout of `rollout.samples` responses to each of `rollout.batch_size` prompts, then `epochs` passes over
it in minibatches. A variant changes what its paper changes, and nothing else:

    microfarm     GRPO, Shao et al. 2024 (DeepSeekMath)      rloo          Ahmadian et al. 2024
    dr_grpo       Liu et al. 2025                            reinforce_pp  Hu et al. 2025
    dapo          Yu et al. 2025                             reinforce_pp_baseline
    gspo, cispo   Zheng et al. 2025; MiniMax 2025 (M1)

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant,
        {
            "microfarm": microfarm,
            "dr_grpo": dr_grpo,
            "dapo": dapo,
            "gspo": gspo,
            "cispo": cispo,
            "rloo": rloo,
            "reinforce_pp": reinforce_pp,
            "reinforce_pp_baseline": reinforce_pp_baseline,
        },
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "grpo"
    c.seed = 0  # Of the prompts that are drawn, their order, and what is sampled.

    c.data = ConfigDict()
    c.data.train = "runs/farm/data/unlabeled.parquet"  # Prompts (instruction records or prompt records).
    c.data.eval = "runs/farm/data/val.parquet"  # Fixed prompts that are sampled at every evaluation.
    c.data.eval_rows = 128  # At most this many, drawn with the seed.
    c.data.max_prompt_length = 36  # Longer prompts are dropped and counted.
    c.data.too_long = "drop"  # Longer prompts: drop, or cut_prompt at its left.
    common.training_rows(c.data)
    common.texts(c.data)

    c.model = ConfigDict()
    c.model.policy = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    common.scored_by(c.model)
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": as its config.json says, else template for chat and eos for others.
    c.model.score_at = ""
    common.read_rewards(c.model)
    common.trained_model(c.model)

    common.lora(c)

    common.rollout(c, batch_size=16, max_new_tokens=28, samples=4)
    common.sampler_correction(c)
    common.reward_sources(c)
    common.win_rate(c)

    c.steps = 70  # Rollouts, each with its updates.
    c.epochs = 2  # Passes over each rollout, each in a fresh order.
    c.minibatch_size = 32  # Rows per optimizer update; divides rollout.batch_size * rollout.samples.

    # Takes the place of the score of a response that did not end, so it is 0 or negative. (TRL's setting of this name
    # is subtracted from the score: its 1.0 is nearest to a -1.0 here.)
    c.missing_eos_penalty = -3.0

    # From scores to advantages.
    # What is subtracted: none, group (the mean of the prompt's responses), or leave_one_out (the mean of its others).
    c.baseline = "group"
    # What divides: none, group (the deviation of the prompt's responses), or batch (mean and deviation of all tokens of
    # the rollout, so that it subtracts, too).
    c.scale = "group"
    c.filter_groups = False  # Leaves out prompts whose responses have equal scores (DAPO); groups/filtered.

    # The KL to the reference: in the loss, in the reward of the whole response, or in its reward_to_go, where a token
    # answers for the KL from it on.
    c.kl_in = "loss"
    c.kl_coef = 0.03  # Weight of the KL.
    c.kl_estimator = "k3"  # k1, k2 or k3.
    # With kl_in=loss. exact: that of KL(policy || reference), also off the policy, with k1 and k3. direct: the estimate
    # itself is differentiated, as GRPO was published with k3, whose gradient is then that of KL(reference || policy);
    # k2's is right while the policy has not moved.
    c.kl_gradient = "exact"
    c.adaptive_kl = False  # Steers kl_coef so that the KL of a sequence approaches target_kl.
    c.target_kl = 6.0  # In nats per response.
    # How slowly, in responses: kl_coef *= 1 + responses / kl_horizon * clip(kl / target_kl - 1, -0.2, 0.2).
    c.kl_horizon = 640.0

    # The policy loss, put together from these.
    # Of new to old probability: token, sequence (GSPO), or sequence_token (GSPO-token: differs where the advantages of
    # a response's tokens do).
    c.ratio = "token"
    c.clipping = "ppo"  # ppo: held tokens have no gradient. cispo: the held ratio is a weight of it.
    c.clip_low = 0.2  # A ratio counts from 1 - clip_low, which is none at 1,
    c.clip_high = 0.2  # to 1 + clip_high only.
    c.dual_clip = 0.0  # A bad token's loss is at most its advantage times this, as 3.0; 0: no limit.
    # tokens: mean over all tokens. sequences: over a response's tokens, then over responses. constant: sum over
    # responses * rollout.max_new_tokens.
    c.aggregation = "sequences"

    common.optimizer(c, learning_rate=2e-4, warmup_steps=5)
    c.optimizer.schedule = "linear"
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-5

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=1, eval_every=20, save_every=25)
    c.best_metric = "eval/rlhf_reward"  # Chooses the checkpoint that is exported; "": the last.
    c.best_mode = "max"
    return c


def dr_grpo() -> ConfigDict:
    """Neither the deviation of a group nor the length of a response weighs (section 3.2); no KL."""
    c = microfarm()
    c.scale = "none"
    c.aggregation = "constant"
    c.kl_coef = 0.0
    return c


def dapo() -> ConfigDict:
    """Clip-higher, token-level loss, and groups that say nothing are left out; no KL (sections 3.1 to 3.3)."""
    c = microfarm()
    c.clip_high = 0.28
    c.aggregation = "tokens"
    c.filter_groups = True
    c.kl_coef = 0.0
    return c


def gspo() -> ConfigDict:
    """The ratio is that of a sequence, per token, and so is what is clipped (section 5.1); no KL."""
    c = microfarm()
    c.ratio = "sequence"
    c.clip_low = 3e-4
    c.clip_high = 4e-4
    c.kl_coef = 0.0
    return c


def cispo() -> ConfigDict:
    """Weights are clipped at their upper end only (at 5, as ScaleRL, Khatri et al. 2025, has it); no KL."""
    c = microfarm()
    c.clipping = "cispo"
    c.clip_low = 1.0
    c.clip_high = 4.0
    c.aggregation = "tokens"
    c.kl_coef = 0.0
    return c


def rloo() -> ConfigDict:
    """REINFORCE with the mean of the others as baseline; a response is one action, and each is learnt from once."""
    c = microfarm()
    c.baseline = "leave_one_out"
    c.scale = "none"
    c.aggregation = "constant"  # The paper's sum over a response, over a constant.
    c.kl_in = "reward"
    c.kl_estimator = "k1"
    c.epochs = 1
    c.minibatch_size = 64
    return c


def reinforce_pp() -> ConfigDict:
    """REINFORCE++: one response of a prompt, KL per token in the reward, advantages whitened over the batch."""
    c = microfarm()
    c.rollout.batch_size = 64
    c.rollout.samples = 1
    c.baseline = "none"
    c.scale = "batch"
    c.kl_in = "reward_to_go"
    c.kl_estimator = "k1"
    c.aggregation = "tokens"
    return c


def reinforce_pp_baseline() -> ConfigDict:
    """REINFORCE++ with a baseline: the group's mean is subtracted, the batch's deviation divides; k2 in the loss."""
    c = microfarm()
    c.scale = "batch"
    c.kl_estimator = "k2"
    c.kl_gradient = "direct"
    c.aggregation = "tokens"
    return c
