"""Proximal policy optimisation against a reward model, with a KL penalty to the SFT model.

    python -m rlhf_jax.main --config=configs/ppo.py --workdir=runs/farm/ppo

One step = one rollout of `rollout.batch_size` prompts, then `epochs` passes over it in minibatches. The value model is
separate, and starts from the reward model's trunk where that reads the policy's tokens, else from the policy's.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "ppo"
    c.seed = 0  # Of the prompts that are drawn, their order, what is sampled, and the value model's head.

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
    # Whose trunk the value model starts from: reward, policy, or the first that fits.
    c.model.value_from = "auto"
    common.trained_model(c.model)

    common.lora(c)

    common.rollout(c, batch_size=64, max_new_tokens=28)
    common.sampler_correction(c)
    common.reward_sources(c)
    common.win_rate(c)

    c.steps = 70  # Rollouts, each with its updates.
    c.epochs = 2  # Passes over each rollout, each in a fresh order.
    c.minibatch_size = 32  # Rows per optimizer update; divides rollout.batch_size.

    c.kl_coef = 0.03  # Weight of the per-token KL in the reward.
    c.kl_estimator = "k1"  # k1, k2 or k3.
    c.adaptive_kl = False  # Steers kl_coef so that the KL of a sequence approaches target_kl.
    c.target_kl = 6.0  # In nats per response.
    # How slowly, in responses: kl_coef *= 1 + rollout.batch_size / kl_horizon * clip(kl / target_kl - 1, -0.2, 0.2).
    c.kl_horizon = 640.0
    # Takes the place of the score of a response that did not end, so it is 0 or negative. (TRL's setting of this name
    # is subtracted from the score: its 1.0 is nearest to a -1.0 here.)
    c.missing_eos_penalty = -3.0
    c.gamma = 1.0  # Discount of later rewards, per token.
    c.lam = 0.95  # GAE's lambda: 1 is the whole return less the value, 0 one step and the next value.
    c.clip = 0.2  # A token's probability ratio of new to old policy counts from 1 - clip to 1 + clip only.
    c.value_clip = 0.2  # A new value counts within this distance of the old one only.
    c.value_coef = 0.1  # Weight of the value loss beside the policy's.
    c.whiten_rewards = False  # Scales rewards to a deviation of 1 over the rollout; their mean stays.

    common.optimizer(c, learning_rate=2e-4, warmup_steps=5)
    c.optimizer.schedule = "linear"
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-5
    c.value_learning_rate = 3e-4  # The value model has its own optimizer with this rate.

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=1, eval_every=20, save_every=25)
    c.best_metric = "eval/rlhf_reward"  # Chooses the checkpoint that is exported; "": the last.
    c.best_mode = "max"
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "prompts.parquet"
    c.data.eval = ""
    c.data.template = "alpaca"
    c.data.max_prompt_length = 192
    c.model.policy = "runs/alpaca/sft/export"
    c.model.reward = "runs/alpaca/reward_model/export"
    c.rollout.batch_size = 16
    c.kl_horizon = 160.0
    c.rollout.max_new_tokens = 128
    c.minibatch_size = 8
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    c.value_learning_rate = 1e-4
    return c
