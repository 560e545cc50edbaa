"""RRHF on what the policy samples while it learns, scored by a reward model or a judge: the paper's online sampling.

    python -m rlhf_jax.main --config=configs/rrhf_online.py --workdir=runs/farm/rrhf_online
    python -m rlhf_jax.main --config=configs/rrhf_online.py:op_32 --workdir=runs/farm/rrhf_op_32

One step = one rollout of `rollout.batch_size` prompts with `rollout.samples` responses each, and those of
`data.provided` beside them; then `epochs` passes over the prompts in minibatches. The policy that samples is refreshed
after epochs * rollout.batch_size / minibatch_size updates. `op_32` is the paper's OP-32: refreshed every 32 updates, in
one pass, with the demonstrations that the prompts came with. `op_32_kl` ranks by the reward less 0.01 times the
log-ratio to the policy as it started, without which the paper's policy came far from natural text (perplexity 64).

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant, {"microfarm": microfarm, "op_32": op_32, "op_32_kl": op_32_kl, "alpaca": alpaca}
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "rrhf"
    c.seed = 0  # Of the prompts that are drawn, their order, and what is sampled.

    c.data = ConfigDict()
    c.data.train = "runs/farm/data/unlabeled.parquet"  # Prompts (instruction records or prompt records).
    c.data.eval = "runs/farm/data/val.parquet"  # Fixed prompts that are sampled at every evaluation.
    # Responses to prompts of data.train, which are scored and ranked beside the sampled ones: any records that `score`
    # reads, as demonstrations, pairs or lists of responses. It may be the same file. "": none.
    c.data.provided = ""
    c.data.eval_rows = 128  # At most this many prompts, drawn with the seed.
    c.data.max_prompt_length = 36  # Longer prompts are dropped and counted.
    c.data.too_long = "drop"  # Longer prompts: drop, or cut_prompt at its left.
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

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
    c.epochs = 2  # Passes over the prompts of each rollout, each in a fresh order.
    c.minibatch_size = 16  # Prompts per optimizer update; divides rollout.batch_size.

    c.rank_weight = 1.0  # Of the ranking term,
    c.sft_weight = 1.0  # and of the log-prob of the best response.
    c.length_penalty = 1.0  # Log-probs are divided by the tokens of a response to this power.
    # paper; token_mean: the best response's log-prob is divided, too; longest_row: both by the tokens of the prompt's
    # longest row, as the released code does by mistake.
    c.normalisation = "paper"
    # Responses are ranked by their score less this times the summed log-ratio of policy to reference.
    c.kl_coef = 0.0
    c.kl_estimator = "k1"  # Of that, and of the KL that is reported: k1 (the log-ratio itself), k2 or k3.
    # Takes the place of the score of a response that did not end, so it is 0 or negative.
    c.missing_eos_penalty = -3.0

    common.optimizer(c, learning_rate=2e-4, warmup_steps=5)
    c.optimizer.schedule = "linear"
    c.optimizer.b2 = 0.95

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=1, eval_every=20, save_every=25)
    c.best_metric = "eval/rlhf_reward"  # Chooses the checkpoint that is exported; "": the last.
    c.best_mode = "max"
    return c


def op_32() -> ConfigDict:
    """The sampling policy is refreshed every 32 updates, and provided responses are ranked, too."""
    c = microfarm()
    c.data.train = "runs/farm/data/preference.parquet"
    c.data.provided = "runs/farm/data/preference.parquet"
    c.rollout.batch_size = 512
    c.minibatch_size = 16
    c.epochs = 1
    c.steps = 8
    c.optimizer.warmup_steps = 1
    c.eval_every = 2
    c.save_every = 2
    return c


def op_32_kl() -> ConfigDict:
    c = op_32()
    c.kl_coef = 0.01
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
