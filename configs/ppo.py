"""Proximal policy optimisation against a reward model, with a KL penalty to the SFT model.

    python -m rlhf_jax.main --config=configs/ppo.py --workdir=runs/farm/ppo

One step = one rollout of `rollout.batch_size` prompts, then `epochs` passes over it in minibatches. The value model is
separate, and starts from the reward model's trunk where that reads the policy's tokens, else from the policy's.

The papers' recipes, for eight accelerators, are variants too; what to download, and the result to compare with, stands
at each: `alpaca_farm`.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca, "alpaca_farm": alpaca_farm})


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
    c.data.thoughts = "keep"  # With chat, of reasoning models: keep, drop, or last (those of the last turn).
    c.data.generation_prompt = (
        "template"  # Or training, sampling: which decides where chat texts meet prompts.
    )
    c.data.chat_template = ""  # With chat, which of a tokenizer's named templates; "": its default.
    c.data.date = ""  # What chat templates that ask for it are told, 2026-11-29; "": that of the first start.
    c.data.max_prompt_length = 36  # Longer prompts are dropped and counted.
    c.data.too_long = "drop"  # Longer prompts: drop, or cut_prompt at its left.

    c.model = ConfigDict()
    c.model.policy = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    # Any reward model: of another size, family, tokenizer or template than the policy. One with the policy's tokenizer
    # and template reads the sampled tokens, others the text; what that takes is in timing_s/score.
    c.model.reward = "runs/farm/reward_model/export"
    c.model.reward_adapter = ""  # A PEFT folder that is laid over it; it may bring the score head.
    c.model.reward_template = ""  # Of the text that it reads, such as chat; "": data.template.
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": as its config.json says, else template for chat and eos for others.
    c.model.score_at = ""
    c.model.value_from = (
        "auto"  # Whose trunk the value model starts from: reward, policy, or the first that fits.
    )
    c.model.adapter = ""  # A PEFT folder that is laid over the policy.
    c.model.dtype = "float32"
    c.model.remat = "none"
    c.model.attention = "auto"  # Or xla, cudnn (NVIDIA), splash (TPU).

    c.lora = ConfigDict()  # Trains a low-rank adapter beside the model, which stays as it is.
    c.lora.rank = 0  # 0: all parameters are trained.
    c.lora.alpha = 16.0  # What the adapter adds is multiplied with alpha / rank.
    c.lora.targets = "all"  # Linear layers that have one: all, or some of q,k,v,o,gate,up,down.
    c.lora.base_dtype = "float32"  # Of the frozen weights; with dtype bfloat16, bfloat16 is as good.

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
    # How slowly, in responses: kl_coef *= 1 + rollout.batch_size / kl_horizon * clip(kl / target_kl - 1, -0.2, 0.2).
    c.kl_horizon = 640.0
    # Takes the place of the score of a response that did not end, so it is 0 or negative. (TRL's setting of this name
    # is subtracted from the score: its 1.0 is nearest to a -1.0 here.)
    c.missing_eos_penalty = -3.0
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
    c.optimizer.ema = 0.0  # Decay of an average of the parameters, evaluated and exported; 0: none.
    c.value_learning_rate = 3e-4  # The value model has its own optimizer with this rate.

    c.best_metric = "eval/rlhf_reward"  # Chooses the checkpoint that is exported; "": the last.
    c.best_mode = "max"  # max or min.
    c.logprob_chunk = 128
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    c.log_every = 1
    c.eval_every = 20
    c.save_every = 25
    c.keep_checkpoints = 2  # The last so many stay,
    c.keep_best = 1  # and, with best_metric, so many of the best.
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
    c.kl_horizon = 160.0
    c.rollout.max_new_tokens = 128
    c.minibatch_size = 8
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    c.value_learning_rate = 1e-4
    return c


def alpaca_farm() -> ConfigDict:
    """AlpacaFarm's PPO against its reward model of the simulated annotators ("sim"), from SFT 10k.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    python -m rlhf_jax.main --config=configs/sft.py:alpaca_farm --workdir=runs/alpaca_farm/sft
    python -m rlhf_jax.main --config=configs/reward_model.py:alpaca_farm --workdir=runs/alpaca_farm/reward_model

    Result: win rate against text-davinci-003 of 46.8 ± 1.8 % by the simulated annotators, from 36.7 % after SFT; the
    best method there (Dubois et al. 2023, table 2). It is best between steps 20 and 80 and then falls: the reward goes
    on rising, the win rate does not. With the human labels: a reward model of alpaca_human_preference.json and
    --config.kl_coef=0.02; then 55.1 ± 1.7 % by humans.
    """
    c = microfarm()
    c.seed = 42
    c.data.train = "tatsu-lab/alpaca_farm/alpaca_instructions/unlabeled.json"
    c.data.eval = "tatsu-lab/alpaca_farm/alpaca_instructions/val.json"
    c.data.eval_rows = 256
    c.data.template = "alpaca"
    c.data.max_prompt_length = 192
    c.model.policy = "runs/alpaca_farm/sft/export"
    c.model.reward = "runs/alpaca_farm/reward_model/export"
    c.model.dtype = "bfloat16"  # Over float32 weights, as theirs.
    c.model.remat = "full"
    c.rollout.batch_size = 512
    c.rollout.max_new_tokens = 300
    c.rollout.dtype = "bfloat16"
    c.steps = 390  # Ten passes over 20k prompts.
    c.epochs = 2
    c.minibatch_size = 256
    c.microbatches = 16  # Four rows per device at a time.
    c.kl_coef = 0.0067
    c.kl_estimator = "k1"  # AlpacaFarm sets a token's negative estimate to 0.
    c.kl_horizon = 5120.0  # AlpacaFarm's k_beta of 0.1 per rollout; it does not adapt by default.
    c.missing_eos_penalty = -1.0  # AlpacaFarm's penalty_reward_value, which by default it does not apply.
    c.gamma = 1.0
    c.lam = 1.0
    c.whiten_rewards = True  # Over all rows; in AlpacaFarm over those of each device, and over padding too.
    # AlpacaFarm has one Adam, clipped as a whole, for policy and value model; here each is clipped by itself. Its
    # losses are means over 300 positions, padding included; here over real tokens.
    c.optimizer.learning_rate = 1e-5
    c.optimizer.b2 = 0.999
    c.value_learning_rate = 1e-5
    c.mesh.fsdp = 4
    c.mesh.tensor = 2  # The copy that samples is split over tensor only: half a model per device.
    c.save_every = 20
    return c
