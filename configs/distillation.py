"""Distillation: the policy learns to say what a teacher would, on responses that it samples itself.

    python -m rlhf_jax.main --config=configs/distillation.py --workdir=runs/farm/distillation

One step = one rollout of `rollout.batch_size` prompts, then `epochs` passes over it in minibatches. The teacher is on
the devices beside the policy, in the update too: there the divergence is that of whole distributions.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "distillation"
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
    c.model.policy = "runs/farm/sft/export"  # Policy at step 0; the KL to it is reported.
    # A language model with the policy's tokenizer, such as one that feedback has trained. May be larger.
    c.model.teacher = "runs/farm/ppo/export"
    c.model.teacher_adapter = ""  # A PEFT folder that is laid over it.
    common.trained_model(c.model)

    common.lora(c)

    common.rollout(c, batch_size=64, max_new_tokens=28)
    common.win_rate(c)

    c.steps = 70  # Rollouts, each with its updates.
    c.epochs = 1  # Passes over each rollout, each in a fresh order.
    c.minibatch_size = 32  # Responses per optimizer update; divides those of a rollout.

    c.divergence = "reverse_kl"  # Of policy and teacher at every position: reverse_kl, forward_kl or jsd.
    # What a token answers for: token (its own divergence), or sequence (those that follow it, too, which is unbiased in
    # the first update on a rollout).
    c.credit = "token"
    c.kl_estimator = "k1"  # Of the KL to the policy at step 0, which is reported: k1, k2 or k3.

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
    c.model.teacher = "runs/alpaca/ppo/export"
    c.rollout.batch_size = 16
    c.rollout.max_new_tokens = 128
    c.minibatch_size = 8
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    return c
