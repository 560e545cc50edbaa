"""Online DPO: pairs of the policy's own responses, told apart by a reward model or a judge, against the SFT model.

    python -m rlhf_jax.main --config=configs/online_dpo.py --workdir=runs/farm/online_dpo

One step = one rollout of `rollout.batch_size` prompts with `rollout.samples` responses each; the best and the worst of
every prompt are a pair, and `epochs` passes over the pairs follow. With a judge in place of the reward model:

    --config.reward.sources=judge=configs/judges/micro_clean.yaml --config.rollout.samples=2
    --config.win_rate.judges=configs/judges/micro_clean.yaml --config.best_metric=eval/win_rate

A judge that compares has no score for the single responses of an evaluation: there the win rate says how good they are.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "online_dpo"
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

    common.rollout(c, batch_size=32, max_new_tokens=28, samples=4)
    common.reward_sources(c)
    common.win_rate(c)

    c.steps = 70  # Rollouts, each with its updates.
    c.epochs = 2  # Passes over the pairs of each rollout, each in a fresh order.
    c.minibatch_size = 16  # Pairs per optimizer update; divides rollout.batch_size.

    # sigmoid (DPO), sigmoid_mean (per token), robust, hinge (SLiC), ipo_sum or ipo_mean.
    c.loss = "sigmoid"
    c.beta = 0.05  # Strength of the pull towards the reference.
    c.label_smoothing = (
        0.0  # Assumed share of pairs in the wrong order (sigmoid, sigmoid_mean, robust); 0: none.
    )
    c.kl_estimator = "k1"  # Of the KL that is reported: k1, k2 or k3.
    # Takes the place of the score of a response that did not end, so it is 0 or negative.
    c.missing_eos_penalty = -3.0

    common.optimizer(c, learning_rate=2e-4, warmup_steps=5)
    c.optimizer.schedule = "linear"
    c.optimizer.b2 = 0.95

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=1, eval_every=20, save_every=25)
    c.best_metric = "eval/scores"  # Chooses the checkpoint that is exported; "": the last.
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
    c.rollout.samples = 2
    c.rollout.max_new_tokens = 128
    c.minibatch_size = 8
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    return c
