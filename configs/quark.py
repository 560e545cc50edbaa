"""Quark: learns from the best of what was sampled, close to the SFT model.

    python -m rlhf_jax.main --config=configs/quark.py --workdir=runs/farm/quark

One step = one rollout of `rollout.batch_size` prompts, which joins the pool; the pool is ranked, and `updates`
minibatches are drawn from its best quantile; with the variant all_quantiles from all of it.

What all trainers share stands in configs/common.py.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "all_quantiles": all_quantiles, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "quark"
    c.seed = (
        0  # Of the prompts that are drawn, their order, what is sampled, and the rows that are learned from.
    )

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

    common.rollout(c, batch_size=64, max_new_tokens=28)
    common.reward_sources(c)
    common.win_rate(c)

    c.steps = 70  # Rollouts, each with its updates.
    c.pool_rollouts = 1  # The last so many rollouts stay in the pool; 1: each is forgotten at the next.
    c.quantiles = 4  # Parts of equal size that the pool is cut into by score, anew after every rollout.
    # best: the best quantile alone. all: every response, behind a token for its quantile, which the tokenizer gets;
    # prompts are sampled behind that of the best, here and with the exported model, whose tokenizer says so.
    c.train_on = "best"
    c.minibatch_size = 16  # Rows per optimizer update.
    c.updates = 2  # Minibatches per rollout; drawn beyond the last row, rows come again in a fresh order.

    c.kl_coef = 0.05  # Weight in the loss of the exact KL to the reference, per token.
    c.entropy_coef = 0.0  # Weight of the entropy's bonus, per token.
    c.kl_estimator = "k1"  # Of objective/kl, which is measured on what is sampled: k1, k2 or k3.
    # Takes the place of the score of a response that did not end, so it is 0 or negative.
    c.missing_eos_penalty = -3.0

    common.optimizer(c, learning_rate=2e-4, warmup_steps=5)
    c.optimizer.schedule = "linear"
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-5

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=1, eval_every=20, save_every=25)
    c.best_metric = "eval/scores"  # Chooses the checkpoint that is exported; "": the last.
    c.best_mode = "max"
    return c


def all_quantiles() -> ConfigDict:
    c = microfarm()
    c.train_on = "all"
    c.data.max_prompt_length = 37  # With the token of its quantile.
    c.updates = 4
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "prompts.parquet"
    c.data.eval = ""
    c.data.template = "alpaca"
    c.data.max_prompt_length = 192
    c.model.policy = "runs/alpaca/sft/export"
    c.model.reward = "runs/alpaca/reward_model/export"
    c.rollout.batch_size = 32
    c.rollout.max_new_tokens = 128
    c.minibatch_size = 8
    c.steps = 20
    c.optimizer.learning_rate = 1e-5
    return c
