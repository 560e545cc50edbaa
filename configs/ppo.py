"""Proximal policy optimisation against a reward model, with a KL penalty to the SFT model.

    python -m rlhf_jax.main --config=configs/ppo.py --workdir=runs/farm/ppo

One step = one rollout of `rollout.batch_size` prompts, then `epochs` passes over it in minibatches. The value model is
separate, and starts from the reward model's trunk.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "ppo"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/data/unlabeled.parquet"  # Prompts (instruction records or prompt records).
    c.data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.eval = "runs/farm/data/val.parquet"  # Fixed prompts that are sampled at every evaluation.
    c.data.eval_rows = 128
    c.data.template = "brief"
    c.data.max_prompt_length = 36  # Longer prompts are dropped and counted.

    c.model = ConfigDict()
    c.model.policy = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    c.model.reward = "runs/farm/reward_model/export"
    c.model.dtype = "float32"
    c.model.remat = "none"

    c.rollout = ConfigDict()
    c.rollout.batch_size = 64  # Prompts per step, over all devices.
    c.rollout.max_new_tokens = 28
    c.rollout.temperature = 1.0  # Log-probs are taken at this temperature everywhere.
    c.rollout.dtype = "float32"  # Of the policy copy that samples.

    c.steps = 70
    c.epochs = 2  # Passes over each rollout, each in a fresh order.
    c.minibatch_size = 32  # Rows per optimizer update; divides rollout.batch_size.
    c.microbatches = 1

    c.kl_coef = 0.03  # Weight of the per-token KL in the reward.
    c.kl_estimator = "k1"  # k1, k2 or k3.
    c.adaptive_kl = False  # Steers kl_coef so that the KL of a sequence approaches target_kl.
    c.target_kl = 6.0
    c.kl_horizon = 0.1  # How fast: kl_coef *= 1 + kl_horizon * clip(kl / target_kl - 1, -0.2, 0.2).
    c.missing_eos_penalty = -3.0  # Replaces the score of a response that did not end.
    c.gamma = 1.0
    c.lam = 0.95
    c.clip = 0.2
    c.value_clip = 0.2
    c.value_coef = 0.1
    c.whiten_rewards = False

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 2e-4
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_steps = 5
    c.optimizer.weight_decay = 0.0
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-5
    c.optimizer.max_grad_norm = 1.0
    c.optimizer.ema = (
        0.0  # Decay of an average of the parameters, which is then evaluated and exported; 0: none.
    )
    c.value_learning_rate = 3e-4  # The value model has its own optimizer with this rate.

    c.best_metric = "eval/rlhf_reward"  # Chooses the checkpoint that is exported.
    c.logprob_chunk = 128
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    c.log_every = 1
    c.eval_every = 20
    c.save_every = 25
    c.tensorboard = False
    c.wandb_project = ""
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
    c.rollout.max_new_tokens = 128
    c.minibatch_size = 8
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    c.value_learning_rate = 1e-4
    return c
