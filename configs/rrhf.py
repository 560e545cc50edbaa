"""RRHF on several scored responses to a prompt, starting from the SFT model.

    farm() { python -m rlhf_jax.main --config=configs/$1.py --workdir=runs/farm/candidates/$2 "${@:3}"; }
    farm generate sampled --config.data.prompts=runs/farm/data/preference.parquet --config.data.rows=3000 \\
        --config.samples=4 --config.temperature=1.0
    farm score scores --config.data.responses=runs/farm/candidates/sampled/outputs.parquet
    farm score provided --config.data.responses=runs/farm/data/preference.parquet --config.data.rows=3000
    python -m rlhf_jax.main --config=configs/rrhf.py --workdir=runs/farm/rrhf

The first makes the candidates; --config.beams=4 --config.beam_groups=4 --config.diversity_penalty=1.0 behind it takes
diverse beam search, as the paper does. The second scores them with the reward model, the third the demonstrations that
the prompts came with. --config.data.train= of the last names what is ranked: scores (as here), provided, or both with a
comma. Ratings that `annotate` writes, and RRHF's own files, are read as they are. configs/rrhf_iterated.py does all of
it, and again from the model that it has made; configs/rrhf_online.py samples while it trains.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "rrhf"
    c.seed = 0  # Of the rows that are drawn, and their order.

    c.data = ConfigDict()
    # Prompts with scored responses, or ratings. Of several files, with commas, those to one prompt are put together.
    c.data.train = "runs/farm/candidates/scores/scores.parquet"
    c.data.eval = ""  # The same; "" holds out eval_rows of the training prompts.
    c.data.eval_rows = 200  # At most this many prompts, drawn with the seed.
    c.data.query = "instruction"  # RRHF's column query: an instruction for the template, or a whole prompt.
    c.data.max_length = 72  # Tokens of prompt + response + end, of any response.
    # Longer responses: drop, cut_response (no end then), or cut_prompt at its left, too.
    c.data.too_long = "drop"
    common.pair_rows(c.data)
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # Policy at step 0.
    common.trained_model(c.model)

    common.lora(c)

    c.rank_weight = 1.0  # Of the ranking term,
    c.sft_weight = 1.0  # and of the log-prob of the best response.
    c.length_penalty = 1.0  # Log-probs are divided by the tokens of a response to this power.
    # paper; token_mean: the best response's log-prob is divided, too; longest_row: both by the tokens of the prompt's
    # longest row, as the released code does by mistake.
    c.normalisation = "paper"

    c.batch_size = 16  # Prompts per step, over all devices.
    c.epochs = 1.0  # Passes over the prompts; may be a part of one.
    common.optimizer(c, learning_rate=2e-4, warmup_steps=10)

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=100, save_every=100)
    common.sampled_win_rate(c, max_prompt_length=36, max_new_tokens=28)
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "scores.parquet"
    c.data.template = "alpaca"
    c.data.max_length = 512
    c.model.init = "runs/alpaca/sft/export"
    c.batch_size = 8
    c.epochs = 3.0
    c.optimizer.learning_rate = 2e-5
    return c
